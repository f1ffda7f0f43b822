"""Architectures by their cost: the Pareto front, and which cheaper ones are not worse.

An architecture is on the front if none that costs as much or less has a lower held-out loss. The
front of noisy losses has members by luck: among equal architectures, one that costs more enters it
whenever its run happens to be better. So each member is compared with the cheaper architectures,
and each architecture off the front with the member that costs as much or less.

Replicated architectures are compared by run and window, corrected for all pairs of the study
(:mod:`reports.stats.replicates`). Single runs are compared over the evaluation windows: Student's
interval of their differences covers other text, but no other run.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from reports.stats.effects import CONFIDENCE
from reports.stats.replicates import (
    Comparison,
    Difference,
    compare_single_runs,
    find_difference,
)

Cost = Literal["parameters", "seconds"]
"""Cost of an architecture: its weights and biases, or the computing time of a run in seconds."""


@dataclass(frozen=True)
class CostedArchitecture:
    """An architecture with its costs and its loss.

    Attributes:
        label: name of the architecture.
        number: number of its trial; None for a baseline cell of another study.
        parameters: number of weights and biases.
        seconds: mean computing time of a run; NaN where it is not comparable.
        loss: held-out loss, the mean over its runs.
        best_values: values of the nuisance parameters at which it is the best.
        cell: name of the baseline cell of another study; "" for an architecture of this one.
    """

    label: str
    number: int | None
    parameters: float
    seconds: float
    loss: float
    best_values: dict[str, Any] = field(default_factory=dict)
    cell: str = ""

    def cost(self, cost: Cost) -> float:
        """Return one of its costs."""
        return self.parameters if cost == "parameters" else self.seconds


@dataclass(frozen=True)
class FrontMember:
    """An architecture on the front.

    Attributes:
        architecture: the architecture.
        gap: difference to the best architecture of the study; None for the best, and without
            losses on the same evaluation windows.
        cheaper: cheapest architecture that costs less and is not significantly worse; None if all
            of them are.
    """

    architecture: CostedArchitecture
    gap: Difference | None
    cheaper: CostedArchitecture | None


@dataclass(frozen=True)
class ParetoFront:
    """Pareto front of a study by one cost.

    Attributes:
        cost: the cost.
        members: architectures on the front, the cheapest first.
        similar: architectures off the front that are not significantly worse than the member which
            costs as much or less.
        worse: architectures that are.
        references: baseline cells of other studies.
        left_out: number of architectures whose cost is not comparable.
    """

    cost: Cost
    members: list[FrontMember]
    similar: list[CostedArchitecture]
    worse: list[CostedArchitecture]
    references: list[CostedArchitecture]
    left_out: int


class ReplicatedComparisons:
    """Differences over runs and windows, corrected for all pairs of the study.

    Of an architecture that got no runs for later planned looks, those of its own looks.

    Args:
        comparisons: comparisons of the study, that of the latest look first.
        worse: architectures with the verdict that they are worse than the best.
    """

    def __init__(self, comparisons: Sequence[Comparison], worse: Collection[str] = ()) -> None:
        self._comparisons = comparisons
        self._worse = frozenset(worse)
        self._known = {name for each in comparisons for name in each.names}

    def knows(self, label: str) -> bool:
        """Return whether an architecture was compared."""
        return label in self._known

    def gap(self, label: str, best: str) -> Difference | None:
        """Return the difference of an architecture to the best."""
        return find_difference(self._comparisons, label, best)

    def find_worse(self, label: str) -> set[str]:
        """Return the architectures that are significantly worse than one, at any look."""
        worse = {
            name
            for each in self._comparisons
            for name in each.names
            if (found := each.between(label, name)) and found.is_significant and found.mean < 0
        }
        return worse | self._worse if label == self._comparisons[0].best else worse


class SingleRunComparisons:
    """Differences of which Student's interval over the windows lies above zero.

    Args:
        windows: loss on each window, as many for each architecture.
    """

    def __init__(self, windows: Mapping[str, Sequence[float]]) -> None:
        self._labels = list(windows)
        self._places = {label: i for i, label in enumerate(windows)}
        self._losses = np.array([windows[label] for label in self._labels])  # (N, W)

    def knows(self, label: str) -> bool:
        """Return whether an architecture was evaluated on the windows."""
        return label in self._places

    def gap(self, label: str, best: str) -> Difference | None:
        """Return the difference of an architecture to the best."""
        first, second = (self._losses[self._places[each]].tolist() for each in (label, best))
        (difference,) = compare_single_runs([first], second)
        return difference

    def find_worse(self, label: str) -> set[str]:
        """Return the architectures that are worse than one beyond the variation over windows."""
        from scipy import special

        d = self._losses - self._losses[self._places[label]]  # (N, W)
        count = d.shape[1]
        half = special.stdtrit(count - 1, (1 + CONFIDENCE) / 2) * d.std(axis=1, ddof=1) / count**0.5
        return {self._labels[i] for i in np.flatnonzero(d.mean(axis=1) > half)}


def find_front(
    cost: Cost,
    costed: Mapping[str, CostedArchitecture],
    compared: ReplicatedComparisons | SingleRunComparisons,
    references: Sequence[CostedArchitecture] = (),
) -> ParetoFront | None:
    """Find the front by one cost; None if fewer than two costs are known.

    Args:
        cost: the cost.
        costed: architectures by label.
        compared: which of them are significantly worse than others.
        references: baseline cells of other studies.
    """
    known = {label: each for label, each in costed.items() if np.isfinite(each.cost(cost))}
    if len({each.cost(cost) for each in known.values()}) < 2:  # nothing to trade
        return None
    order = sorted(known, key=lambda label: (known[label].cost(cost), known[label].loss))
    best = min(costed, key=lambda label: costed[label].loss)
    on_front: list[str] = []
    off_front: list[tuple[str, str]] = []
    for label in order:
        if not on_front or known[label].loss < known[on_front[-1]].loss:
            on_front.append(label)
        else:
            off_front.append((label, on_front[-1]))
    worse = {label: compared.find_worse(label) for label in on_front}
    members = []
    for label in on_front:
        limit = known[label].cost(cost)
        cheaper = (known[name] for name in order if name not in worse[label])
        first = next((each for each in cheaper if each.cost(cost) < limit), None)
        gap = None if label == best else compared.gap(label, best)
        members.append(FrontMember(known[label], gap, first))
    return ParetoFront(
        cost,
        members,
        [known[label] for label, member in off_front if label not in worse[member]],
        [known[label] for label, member in off_front if label in worse[member]],
        [each for each in references if np.isfinite([each.cost(cost), each.loss]).all()],
        len(costed) - len(known),
    )
