"""What was said of the first search of this kind: each statement with what tests it, and a rule.

A rule says when a statement holds, when it does not, and when neither can be told. What is tested
is a mean difference over matched pairs. So is which of two changes is worth more: in a two by two
design the difference of their main effects is that between the points with the one change alone
and those with the other alone (Box, Hunter & Hunter, *Statistics for Experimenters*, 2nd edition,
chapter 5).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from reports.formatting import format_param
from reports.stats.effects import MIN_PAIRS, FactorialTable, Floats, interval


class Verdict(StrEnum):
    """What a study's numbers say of a statement."""

    HOLDS = "holds"
    UNDECIDED = "undecided"
    FAILS = "does not hold"


@dataclass(frozen=True)
class Change:
    """What is compared: points with these values against points with those, all else equal.

    Attributes:
        words: the comparison, for a person.
        before: a value for each parameter that differs, in a pair's first point.
        after: in its second.
    """

    words: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Worth:
    """What a change is worth.

    Attributes:
        pairs: matched pairs whose points both have a value.
        mean: of the pairs' differences, after less before, nats; NaN without pairs.
        low: the lower end of the bootstrap's 95% interval of the mean; NaN with fewer than two.
        high: the upper end.
        improved_count: in how many of the pairs the value is lower after the change.
    """

    pairs: int
    mean: float
    low: float
    high: float
    improved_count: int


@dataclass(frozen=True)
class Rule:
    """When a statement holds and when it does not; these exclude each other, and else neither.

    Attributes:
        holds: given what the change is worth and the margin.
        fails: the same.
        holds_if: in words, with the ``{margin}``.
        fails_if: the same.
    """

    holds: Callable[[Worth, float], bool]
    fails: Callable[[Worth, float], bool]
    holds_if: str
    fails_if: str

    def verdict(self, worth: Worth, margin: float) -> Verdict:
        """Judge; few pairs decide nothing."""
        if worth.pairs < MIN_PAIRS:
            return Verdict.UNDECIDED
        if self.holds(worth, margin):
            return Verdict.HOLDS
        return Verdict.FAILS if self.fails(worth, margin) else Verdict.UNDECIDED


LOWERS = Rule(
    lambda worth, margin: worth.high < 0,
    lambda worth, margin: worth.high >= 0 and worth.low >= -margin,
    "the interval lies below 0",
    "the interval lies above −{margin}, and not below 0",
)
DOES_NOT_LOWER = Rule(LOWERS.fails, LOWERS.holds, LOWERS.fails_if, LOWERS.holds_if)
MAKES_NO_DIFFERENCE = Rule(
    lambda worth, margin: -margin <= worth.low and worth.high <= margin,
    lambda worth, margin: worth.low > margin or worth.high < -margin,
    "the interval lies within ±{margin}",
    "the interval lies outside ±{margin}",
)


@dataclass(frozen=True)
class Statement:
    """A statement, and how it is tested.

    Attributes:
        claim: the statement.
        compared: in words.
        rule: by which it is judged.
        changes: to be judged, given a study's grid.
        redact: changes whose worth is shown above, and not judged.
        is_of_all: whether it is said of all the changes at once: of them the one that speaks most
            against it is shown, and its verdict is the statement's.
    """

    claim: str
    compared: str
    rule: Rule
    changes: Callable[[FactorialTable], Iterable[Change]]
    redact: tuple[Change, ...] = ()
    is_of_all: bool = False


def _on(switch: str) -> Change:
    return Change(f"{format_param(switch)}: on against off", {switch: False}, {switch: True})


def _always(*changes: Change) -> Callable[[FactorialTable], Iterable[Change]]:
    return lambda grid: changes


def _rivals(grid: FactorialTable) -> Iterator[Change]:
    """Yield the new state against each other switch, turned the way that lowers the loss."""
    # Both states with and without the old one differ from both with and without the new one by
    # what the new one alone differs from the old one alone.
    yield Change("new state against old state", {"state_source": "old"}, {"state_source": "new"})
    for switch in _SWITCHES:
        gain = worth_of(grid, _on(switch))
        is_better_on = not gain.mean > 0
        yield Change(
            f"new state against {'' if is_better_on else 'no '}{format_param(switch)}",
            {"state_source": "old", switch: is_better_on},
            {"state_source": "both", switch: not is_better_on},
        )


def _wider(grid: FactorialTable) -> Iterator[Change]:
    for less, more in itertools.pairwise(grid.axes.get("state_size", ())):
        words = f"state size: {more} against {less}"
        yield Change(words, {"state_size": less}, {"state_size": more})


_SWITCHES = ("residual", "input_gate", "forget_gate", "output_gate", "state_gate")

_NEW = Change("new state: read or not", {"state_source": "old"}, {"state_source": "both"})
_OLD = Change("old state: read or not", {"state_source": "new"}, {"state_source": "both"})
_GATE_FOR_GATE = Change(
    "forget gate against state gate",
    {"forget_gate": False, "state_gate": True},
    {"forget_gate": True, "state_gate": False},
)

STATEMENTS = (
    Statement(
        "The forget gate lowers the loss.",
        "on against off",
        LOWERS,
        _always(_on("forget_gate")),
    ),
    Statement(
        "An input gate does not lower the loss.",
        "on against off",
        DOES_NOT_LOWER,
        _always(_on("input_gate")),
    ),
    Statement(
        "An output gate of its own does not lower the loss.",
        "on against off",
        DOES_NOT_LOWER,
        _always(_on("output_gate")),
    ),
    Statement(
        "That the read-out sees the new state is worth more than any other switch.",
        "the new state, without the other switch, against the switch without the new state; of all "
        "switches, each turned the way that lowers the loss, the one that comes nearest",
        LOWERS,
        _rivals,
        redact=(_NEW,),
        is_of_all=True,
    ),
    Statement(
        "Whether the read-out sees the old state beside the new one makes no difference.",
        "both states against the new one alone",
        MAKES_NO_DIFFERENCE,
        _always(_OLD),
    ),
    Statement(
        "The state gate is worth less than was thought. (What was thought is no number; here: less "
        "than the forget gate.)",
        "the forget gate without the state gate against the state gate without the forget gate",
        LOWERS,
        _always(_GATE_FOR_GATE),
        redact=(_on("state_gate"),),
    ),
    Statement(
        "The residual lowers the loss.",
        "on against off",
        LOWERS,
        _always(_on("residual")),
    ),
    Statement(
        "Two layers are better than three.",
        "two against three",
        LOWERS,
        _always(Change("layers: 2 against 3", {"layers": 3}, {"layers": 2})),
    ),
    Statement(
        "A wider state is better.",
        "each state size against the next smaller one",
        LOWERS,
        _wider,
    ),
)


def worth_of(grid: FactorialTable, change: Change) -> Worth:
    """Return what a change is worth; without pairs where the grid lacks what is compared."""
    sides = (change.before, change.after)
    lacks = any(v not in grid.axes.get(name, ()) for side in sides for name, v in side.items())
    before, after = (np.empty(0) if lacks else _part(grid, side) for side in sides)
    differences = (after - before)[~np.isnan(after - before)]
    low, high = interval(differences)
    mean = float(differences.mean()) if len(differences) else math.nan
    return Worth(len(differences), mean, low, high, int((differences < 0).sum()))


def _part(grid: FactorialTable, chosen: Mapping[str, Any]) -> Floats:
    """Return the values where some parameters have these values, in the order of the rest."""
    where = (
        values.index(chosen[name]) if name in chosen else slice(None)
        for name, values in grid.axes.items()
    )
    return np.ravel(grid.values[tuple(where)])
