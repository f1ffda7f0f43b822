"""Functional analysis of variance: the share of the variance that each parameter explains."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from reports.stats import Floats


def compute_variance_shares(
    columns: Floats,
    values: Floats,
    bounds: Floats,
    parameters: Sequence[Sequence[int]],
    trees: int,
) -> Floats:
    """Compute the share of the variance of the values that each parameter explains alone.

    The shares are those of a random forest's predictions over the whole space. Optuna's evaluator
    has the same forest and result, but walks through each tree for each value of a parameter,
    instead of adding all leaves at once.

    Source: Hutter, Hoos & Leyton-Brown, *An Efficient Approach for Assessing Hyperparameter
    Importance* (ICML 2014), algorithm 2.

    Args:
        columns: (runs, columns), encoded parameters.
        values: (runs,), finite.
        bounds: (columns, 2), the least and the greatest value of each column, which differ.
        parameters: columns of each parameter: one of a number, one for each category.
        trees: number of trees.

    Returns:
        (parameters,), means over the trees whose predictions vary. If none do, as where all values
        differ by less than 1e-8, zeros.
    """
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(trees, max_depth=64, random_state=0).fit(columns, values)
    shares = [
        _compute_tree_shares(each.tree_, bounds, parameters)
        for each in forest.estimators_
        if np.ptp(each.tree_.value[each.tree_.feature < 0]) > 0
    ]
    return np.mean(shares, axis=0) if shares else np.zeros(len(parameters))


def _compute_tree_shares(
    tree: Any, bounds: Floats, parameters: Sequence[Sequence[int]]
) -> list[float]:
    low, high = _find_leaves(tree, bounds)
    ranges, means = np.diff(bounds).ravel(), tree.value[tree.feature < 0, 0, 0]
    widths = (high - low) / ranges
    volumes = widths.prod(axis=1)
    means = means - volumes @ means  # so that a mean of squares is a variance
    shares = []
    for own in parameters:
        edges = [np.unique([*bounds[i], *tree.threshold[tree.feature == i]]) for i in own]
        weighted = means * np.delete(widths, own, axis=1).prod(axis=1)
        marginal = _add_leaves(weighted, low[:, own], high[:, own], edges)
        sizes = reduce(np.multiply.outer, map(np.diff, edges)) / ranges[own].prod()
        shares.append(float((sizes * marginal**2).sum() / (volumes @ means**2)))
    return shares


def _find_leaves(tree: Any, bounds: Floats) -> tuple[Floats, Floats]:
    """Return where the leaves begin and end, each (leaves, columns)."""
    low, high = np.tile(bounds.T[:, None], (1, tree.node_count, 1))
    nodes = np.array([0])
    while nodes.size:  # one level of the tree at a time
        nodes = nodes[tree.feature[nodes] >= 0]
        left, right, column = (
            each[nodes] for each in (tree.children_left, tree.children_right, tree.feature)
        )
        for children in (left, right):
            low[children], high[children] = low[nodes], high[nodes]
        high[left, column] = low[right, column] = tree.threshold[nodes]
        nodes = np.concatenate([left, right])
    return low[tree.feature < 0], high[tree.feature < 0]


def _add_leaves(weighted: Floats, low: Floats, high: Floats, edges: Sequence[Floats]) -> Floats:
    """Return the sum of the leaves' values in each cell of the grid with these edges.

    Each is added to its last cell and subtracted from the cell before its first; running sums from
    the last cell fill the rest. From the first cell, the time would double with each category.
    """
    before, cells = (
        np.stack([np.searchsorted(*each) for each in zip(edges, ends.T, strict=True)], axis=1) - 1
        for ends in (low, high)
    )
    for axis in range(len(edges)):
        inner = before[:, axis] >= 0
        subtracted = cells[inner]
        subtracted[:, axis] = before[inner, axis]
        cells = np.concatenate([cells, subtracted])
        weighted = np.concatenate([weighted, -weighted[inner]])
        before = np.concatenate([before, before[inner]])
    totals = np.zeros([len(values) - 1 for values in edges])
    np.add.at(totals, tuple(cells.T), weighted)
    for axis in range(totals.ndim):
        totals = np.flip(np.flip(totals, axis).cumsum(axis), axis)
    return totals
