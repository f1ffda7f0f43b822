"""Decisions of the pruner on a study's trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studies.attributes import AuditLook
from studies.storage.storage import AuditDecision


@dataclass(frozen=True)
class PruneDecision:
    """Decision that a trial at a rung is paused or pruned.

    Attributes:
        is_final: whether the trial is pruned rather than paused.
        attributes: user attributes to record with the trial.
    """

    is_final: bool
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Decisions:
    """Decisions on a study's trials.

    Attributes:
        stops: trials at a rung that are paused or pruned, by id.
        resumed: ids of paused trials to resume, the most promising first.
        pruned: user attributes of the paused trials to prune, by id.
        audited: decisions about audited trials to store, by id.
        looks: planned looks at the audited trials to store before anything is pruned, by name.
    """

    stops: Mapping[int, PruneDecision] = field(default_factory=dict)
    resumed: Sequence[int] = ()
    pruned: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    audited: Mapping[int, AuditDecision] = field(default_factory=dict)
    looks: Mapping[str, AuditLook] = field(default_factory=dict)
