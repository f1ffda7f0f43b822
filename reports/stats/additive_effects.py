"""Effects by least squares, of parameters that no matched pair of runs compares.

The value of a run is fitted as a sum of one term for each parameter: an effect is what a change
does if effects add up. Errors allow noise that differs between runs (HC3; Long & Ervin, *Using
Heteroscedasticity Consistent Standard Errors in the Linear Regression Model*, 2000).

A text, a switch or a number of few values has an effect for each level but the first. A number of
many values enters linearly; its effect is that of the greatest value tried against the least. A
parameter that some runs lack is compared among the others, and does not change these: a level that
brings such a parameter with it is compared at its average.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reports.stats import Floats
from reports.stats.design import Contrast, order_values
from reports.stats.differences import Method
from reports.stats.effects import Effect

MAX_LEVELS = 5
"""Values of a number up to which each has an effect of its own."""

MIN_RUNS = 5
"""Runs that a level needs."""

MIN_DEGREES = 4
"""Degrees of freedom that the residuals need."""

WIDE = 100
"""Ratio of the greatest to the least value from which the axis of a number may be logarithmic."""

_TOLERANCE = 1e-8
"""Size below which a share, or noise as a share of the range of the values, is rounding."""


class _Term(NamedTuple):
    """A change and its column (runs,) of the design; ``runs`` have the rarer of its levels."""

    contrast: Contrast
    column: Floats
    runs: int


def estimate_additive_effects(
    columns: Mapping[str, Sequence[Any]],
    values: Sequence[float] | Floats,
    higher_is_better: bool = False,
) -> list[Effect]:
    """Estimate the effects of all parameters from runs at different settings.

    Args:
        columns: the parameter of each run, (runs,) by name; None where a run lacks it.
        values: (runs,), finite.
        higher_is_better: whether a higher value is better.

    Returns:
        Effects in the order of the parameters; one that cannot be estimated has an obstacle.
    """
    y = np.asarray(values, dtype=np.float64)
    terms = [term for name, column in columns.items() for term in _build_terms(name, column)]
    design = np.column_stack([np.ones(len(y)), *(term.column for term in terms)])
    for column in columns.values():  # so that runs that lack a parameter do not change its effect
        lacks = np.array([value is None for value in column], dtype=np.float64)
        if np.linalg.matrix_rank(np.column_stack([design, lacks])) > np.linalg.matrix_rank(design):
            design = np.column_stack([design, lacks])
    left, sizes, right = np.linalg.svd(design, full_matrices=False)
    rank = int((sizes > _TOLERANCE * sizes[0]).sum())
    left = left[:, :rank]
    right = right[:rank]
    weights = (right.T / sizes[:rank]) @ left.T  # (columns, runs), of the values in coefficients
    centered = y - y.mean()  # a large constant would cost digits
    residuals = centered - left @ (left.T @ centered)
    free = 1 - (left**2).sum(axis=1)  # 0 for a run that alone determines a coefficient
    is_alone = free < _TOLERANCE
    inflated = np.where(is_alone, 0, residuals / np.where(is_alone, 1, free))
    least = _TOLERANCE * np.ptp(y)  # values without noise differ from their fit by rounding
    errors = np.sqrt((weights**2) @ np.maximum(inflated**2, least**2))
    is_separate = (right**2).sum(axis=0) > 1 - _TOLERANCE
    rests_on_one = (np.abs(weights[:, is_alone]) > _TOLERANCE).any(axis=1)

    effects = []
    for i, term in enumerate(terms, start=1):
        obstacle = ""
        if len(y) - rank < MIN_DEGREES:
            obstacle = f"too few runs: {len(y)} of {rank + MIN_DEGREES}"
        elif term.runs < MIN_RUNS:
            obstacle = f"fewer than {MIN_RUNS} runs have one of the values"
        elif not is_separate[i]:
            obstacle = "it cannot be separated from other parameters"
        elif rests_on_one[i]:
            obstacle = "it rests on a single run"
        effect = Effect(
            contrast=term.contrast,
            pairs=0,
            differences=0,
            mean=np.nan if obstacle else float(weights[i] @ centered),
            error=np.nan if obstacle else float(errors[i]),
            degrees=float(max(0, len(y) - rank)),
            method=Method.ADDITIVE,
            improved_count=0,
            higher_is_better=higher_is_better,
            obstacle=obstacle,
        )
        effects.append(effect)
    return effects


def is_logarithmic(numbers: Floats) -> bool:
    """Return whether the values of a number are to be placed on a logarithmic axis.

    They are positive, cover a ratio of :data:`WIDE`, and their median is nearer to the middle of a
    logarithmic axis than of a linear one.
    """
    if numbers.min() <= 0 or numbers.max() / numbers.min() < WIDE:
        return False
    places = [(np.median(axis) - axis.min()) / np.ptp(axis) for axis in (np.log(numbers), numbers)]
    of_logarithm, of_number = np.abs(np.array(places) - 0.5).tolist()
    return bool(of_logarithm < of_number)


def _build_terms(name: str, column: Sequence[Any]) -> Iterator[_Term]:
    """Yield the terms of a parameter, centered over the runs that have it; 0 for others."""
    is_known = np.array([value is not None for value in column])
    known = [value for value in column if value is not None]
    levels = order_values(set(known))
    if len(levels) < 2:
        return

    def place(codes: Floats) -> Floats:
        placed = np.zeros(len(column))
        placed[is_known] = codes - codes.mean()
        return placed

    is_number = not any(isinstance(value, bool | np.bool_ | str) for value in levels)
    if is_number and len(levels) > MAX_LEVELS:
        axis = np.array(known, dtype=np.float64) / max(abs(levels[0]), abs(levels[-1]))
        if is_logarithmic(axis):
            axis = np.log(axis)
        codes = (axis - axis.min()) / np.ptp(axis)
        contrast = Contrast(name, _shorten(levels[0]), _shorten(levels[-1]))
        yield _Term(contrast, place(codes), len(known))
        return
    first = known.count(levels[0])
    for level in levels[1:]:
        codes = np.array([float(value == level) for value in known])
        yield _Term(Contrast(name, levels[0], level), place(codes), min(first, known.count(level)))


def _shorten(number: float) -> float:
    """Return a number that a sampler drew with three significant digits, to be read."""
    return number if isinstance(number, int) else float(f"{number:.3g}")
