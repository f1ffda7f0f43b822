"""Blocks of an incomplete factorial design that lack no combination."""

import itertools
import math
from collections.abc import Iterator, Sequence

import pandas as pd

from reports.formatting import format_param, format_value


def find_full_factorial_blocks(
    table: pd.DataFrame, parameters: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Find the largest blocks of an incomplete factorial design that lack no combination.

    Where combinations are excluded, a parameter's effect is confounded with the effects of the
    parameters that the exclusion ties it to; within a full block it is not.

    Args:
        table: one row per trial, with a column for each parameter.
        parameters: parameters that vary.

    Returns:
        Rows by the name of the block, such as ``state size is 256``; empty if the design is full,
        or if no single parameter splits it into full blocks.
    """
    if _is_full(table, parameters):
        return {}
    candidates = dict(
        itertools.chain.from_iterable(
            _split_if_full(table, name, parameters) for name in parameters
        )
    )
    rows = {name: set(block.index) for name, block in candidates.items()}
    return {
        name: block
        for name, block in candidates.items()
        if not any(rows[name] < rows[other] for other in candidates)
    }


def _split_if_full(
    table: pd.DataFrame, parameter: str, parameters: Sequence[str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    blocks = dict(iter(table.groupby(parameter)))
    if len(blocks) > 1 and all(_is_full(block, parameters) for block in blocks.values()):
        for value, block in blocks.items():
            yield f"{format_param(parameter)} is {format_value(value)}", block


def _is_full(table: pd.DataFrame, parameters: Sequence[str]) -> bool:
    combinations = math.prod(table[name].nunique() for name in parameters)
    return not parameters or len(table.drop_duplicates(list(parameters))) == combinations
