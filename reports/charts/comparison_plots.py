"""A study's runs on held-out text → what tells its architectures apart."""

from collections.abc import Sequence

import pandas as pd

from reports.charts import alt_text as in_words
from reports.charts import effect_plots as figures
from reports.charts.chart import Chart
from reports.data.results import Results
from reports.stats.comparison import Comparison, Difference, LossesByRun, compare, paired_difference
from studies.space import REPLICATE

MOST = 20
"""Architectures in the picture of all pairs."""


def comparison_of(results: Results, best: Sequence[str]) -> Comparison | None:
    """Compare each two of a study's replicated architectures.

    Args:
        results: of the study.
        best: the architectures to compare, the best first.

    Returns:
        None if the study has no replicates.
    """
    if not results.has_replicates:
        return None
    rows = results.complete[results.complete["architecture"].isin(best)]
    runs = _lanes(results, rows) or _values(results, rows)
    return compare({name: runs[name] for name in best})


def differences_to_best(results: Results, best: Sequence[str]) -> dict[str, Difference]:
    """Return the difference of each single run to the best one, on the same lanes of text.

    Args:
        results: of the study.
        best: the architectures to compare, the best first.

    Returns:
        By architecture, without the best; empty if the study has replicates or recorded no lanes.
    """
    rows = results.complete[results.complete["architecture"].isin(best)]
    runs = None if results.has_replicates else _lanes(results, rows)
    if runs is None:
        return {}
    return {name: paired_difference(runs[name], runs[best[0]]) for name in best[1:]}


def drawing_of(comparison: Comparison) -> Chart | None:
    """Draw what each two architectures differ by; None for fewer than two."""
    names = comparison.names[:MOST]
    if len(names) < 2:
        return None
    note = (
        "A row less a column, in the order of the table: blue, the row is better; orange, it is "
        "worse; in brackets and without a colour, the two are not told apart."
    )
    if len(names) < len(comparison.names):
        note += f" The best {MOST} of {len(comparison.names)} are drawn; all were compared."
    return Chart(
        "Each two of them",
        figures.differences(comparison, names),
        in_words.differences(comparison, names),
        note,
        width=340 + 62 * len(names),
    )


def _lanes(results: Results, rows: pd.DataFrame) -> dict[str, LossesByRun] | None:
    """Return each architecture's runs lane by lane; None if some have none, or others."""
    windows = [results.windows.get(int(number), []) for number in rows.index]
    if 0 in (lengths := set(map(len, windows))) or len(lengths) != 1:
        return None
    return _by_architecture(rows, windows)


def _values(results: Results, rows: pd.DataFrame) -> dict[str, LossesByRun]:
    """Return each architecture's runs by one number each."""
    return _by_architecture(rows, [[value] for value in rows[results.metric.column]])


def _by_architecture(
    rows: pd.DataFrame, windows: Sequence[Sequence[float]]
) -> dict[str, LossesByRun]:
    numbers = rows[REPLICATE] if REPLICATE in rows else [0] * len(rows)
    found: dict[str, dict[int, Sequence[float]]] = {}
    for name, number, own in zip(rows["architecture"], numbers, windows, strict=True):
        found.setdefault(name, {})[int(number)] = own
    return dict(found)
