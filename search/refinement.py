"""Derive the trials of a refinement from the best trials of its source study."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from optuna.trial import TrialState

from search.errors import UnfinishedSourceError
from studies.attributes import SOURCE_TRIALS
from studies.config import Refinement, StudyConfig, top_count
from studies.errors import ConfigError
from studies.grid import MAX_COMBINATIONS
from studies.space import BPTT_STEPS, REPLICATE, Params, param_order
from studies.storage.counts import TrialCounts
from studies.storage.create_study import PlannedTrial
from studies.storage.queries import TrialRow

MAX_UNCONFIRMED = 20_000
"""Number of new trials above which a user must confirm them with ``--yes``."""

_ParamsKey = tuple[tuple[str, Any], ...]


def derive_trials(
    trials: Sequence[TrialRow],
    counts: TrialCounts,
    config: StudyConfig,
    partial: bool = False,
    keep: float = 1,
    confirmed: bool = False,
) -> list[PlannedTrial]:
    """Apply a refinement's variants and replicates to the best trials of its source.

    Equal combinations become one trial that lists all source trials that led to it.

    Args:
        trials: grid trials of the source study.
        counts: number of them by state.
        config: config with a refinement.
        partial: accept an unfinished source.
        keep: fraction of the trials that pruning kept, if the source was pruned.
        confirmed: whether the user has confirmed any number of trials.

    Returns:
        Trials derived from the best source trial first.

    Raises:
        UnfinishedSourceError: if the source is unfinished, or has too few complete or kept trials.
        ConfigError: if a variant names a parameter that the source's trials lack, or the trials are
            too many.
    """
    refinement = config.refinement
    assert refinement is not None
    # Architectures are ranked: a source may contain replicates of each.
    architectures = {_architecture_key(trial) for trial in trials}
    has_replicates = len(architectures) < len(trials)
    planned = len(architectures) if has_replicates else counts.planned
    wanted = top_count(refinement.top, planned)
    if counts.finished < counts.planned and not partial:
        raise UnfinishedSourceError(
            f"study {refinement.source!r} has finished {counts.finished} of {counts.planned} "
            f"trials ({counts.running} running, {counts.waiting} waiting): finish it first, or use "
            "--partial"
        )
    if counts.pruned and wanted > (kept := top_count(keep, planned)):
        raise UnfinishedSourceError(
            f"study {refinement.source!r} was pruned to its top {kept} of {counts.planned} trials, "
            f"but refinement.top = {refinement.top} needs {wanted}: expected at most {kept}"
        )
    ranked = _rank_architectures(rank_trials(trials))
    if len(ranked) < wanted and not (partial and ranked):
        raise UnfinishedSourceError(
            f"study {refinement.source!r} has {len(ranked)} complete trials, but "
            f"refinement.top = {refinement.top} needs {wanted}: "
            + ("lower it" if ranked else "use another source")
        )
    count = min(wanted, len(ranked)) * len(refinement.variants) * refinement.replicates
    check_count(count, config.training.steps, confirmed)
    return _derive(ranked[:wanted], refinement, config.training.bptt_steps)


def check_count(
    count: int, steps: int, confirmed: bool, describe_duration: Callable[[int], str] = lambda _: ""
) -> None:
    """Require that the user confirms many new trials.

    Args:
        count: number of new trials.
        steps: training steps of each.
        confirmed: whether the user has confirmed any number.
        describe_duration: describes how long a number of trials take.

    Raises:
        ConfigError: if there are more than :data:`MAX_UNCONFIRMED` and the user has not, or more
            than a study can have.
    """
    if count > MAX_COMBINATIONS:
        raise ConfigError(
            f"{count:,} new trials are too many: expected at most {MAX_COMBINATIONS:,}"
        )
    if count > MAX_UNCONFIRMED and not confirmed:
        raise ConfigError(
            f"{count:,} new trials, {count * steps:,} training steps in all"
            f"{describe_duration(count)}: expected at most {MAX_UNCONFIRMED:,} trials; reduce "
            "them, or confirm with --yes"
        )


def rank_trials(trials: Iterable[TrialRow]) -> list[TrialRow]:
    """Return the complete trials, best first; ties by number."""
    complete = (trial for trial in trials if trial.state is TrialState.COMPLETE)
    return sorted(complete, key=lambda trial: (_loss(trial), trial.number))


def _loss(trial: TrialRow) -> float:
    """Return the value of a complete trial; one that is not finite, as of plain Optuna, is last."""
    return math.inf if trial.value is None else trial.value


def _architecture_key(trial: TrialRow) -> _ParamsKey:
    """Return a trial's parameters without the replicate."""
    names = [name for name in param_order(trial.params) if name != REPLICATE]
    return tuple((name, trial.params[name]) for name in names)


def _rank_architectures(ranked: list[TrialRow]) -> list[list[TrialRow]]:
    """Group replicates; the best mean first, ties by number."""
    groups: dict[_ParamsKey, list[TrialRow]] = {}
    for trial in ranked:
        groups.setdefault(_architecture_key(trial), []).append(trial)

    def sort_key(runs: list[TrialRow]) -> tuple[float, int]:
        return fmean(map(_loss, runs)), runs[0].number

    return sorted(groups.values(), key=sort_key)


def _derive(
    best: list[list[TrialRow]], refinement: Refinement, bptt_steps: int
) -> list[PlannedTrial]:
    sources: dict[tuple[object, ...], list[int]] = {}
    derived: dict[tuple[object, ...], Params] = {}
    varies_bptt_steps = any(BPTT_STEPS in variant for variant in refinement.variants)
    # Replicates must be new runs: the source's were selected for their values. A study without
    # replicates runs replicate 0.
    first = 1 + max(int(trial.params.get(REPLICATE, 0)) for runs in best for trial in runs)
    for runs in best:
        base = dict(_architecture_key(runs[0]))
        if varies_bptt_steps:
            base.setdefault(BPTT_STEPS, bptt_steps)
        for variant in refinement.variants:
            if unknown := variant.keys() - base.keys():
                raise ConfigError(
                    f"unknown parameter in refinement.variants: {', '.join(sorted(unknown))}; "
                    f"trials of {refinement.source!r} have {', '.join(base)}"
                )
            for replicate in range(first, first + refinement.replicates):
                params: Params = base | variant
                if refinement.replicates > 1:
                    params[REPLICATE] = replicate
                key = tuple(params.values())
                derived[key] = params
                numbers = sources.setdefault(key, [])
                numbers += [run.number for run in runs if run.number not in numbers]
    return [PlannedTrial(params, {SOURCE_TRIALS: sources[key]}) for key, params in derived.items()]
