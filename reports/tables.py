"""Tables of studies: one list of columns for HTML, text and data frames.

A column is one line: its heading for readers, what a row has in it, the format of its numbers, and
its name in data frames. Columns that a study lacks are left out by their condition.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from html import escape
from itertools import count, repeat
from typing import Any, Generic, TypeVar

import pandas as pd

from reports.analysis.hypotheses import HypothesisTest
from reports.analysis.leaderboard import LeaderboardEntry, StudySummary
from reports.analysis.solved import SolvedChange
from reports.formatting import format_number, format_stderr, objective_name
from reports.phrases import strong, to_html
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect, LevelEffect, rank_effects
from reports.stats.design import Contrast
from reports.stats.effects import Effect, PairedDifference
from reports.stats.scale import NATS, format_param, format_value
from studies.records import Direction

Row = TypeVar("Row")

TEXT = "s"
"""Format of values that are text already and stand under numbers, such as those of parameters."""

MARK = " *"
"""Follows an estimate that is significant."""

LONG = 24
"""Characters from which a text wants a wide column: it would make a row high in a narrow one."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        title: heading for a reader; "" for a column of data frames alone.
        value: what a row has in it. None, NaN and infinity are missing.
        spec: format of its numbers, which are aligned to the right; "" for text.
        unit: unit of the numbers, or another remark about them.
        name: name in data frames and in text; "" for a column of pages alone.
        ends: ends of the interval of the value, which are ``low`` and ``high`` in data frames.
        note: what follows the value for a reader, such as a mark or a standard error.
        hint: more about a cell, which a page shows when a reader points at it.
        condition: whether the table has the column.
        is_strong: whether it is emphasized.
    """

    title: str
    value: Callable[[Row], Any]
    spec: str = ""
    _: KW_ONLY
    unit: str = ""
    name: str = ""
    ends: Callable[[Row], tuple[float, float]] | None = None
    note: Callable[[Row], str] | None = None
    hint: Callable[[Row], Any] | None = None
    condition: object = True
    is_strong: bool = False

    def format(self, row: Row) -> tuple[str, str]:
        """Return a cell for a reader: the value, and what follows it; "" for what is missing.

        It may have marks of :func:`reports.phrases.strong`.
        """
        text, ends = _format(self.value(row), self.spec), ""
        if self.ends:
            low, high = (_format(end, self.spec) for end in self.ends(row))
            ends = f" [{low}, {high}]" if low and high else ""
        text += self.format_note(row)
        text = text.replace("-", "−") if self.spec else text
        return strong(text) if self.is_strong and text else text, ends.replace("-", "−")

    def format_note(self, row: Row) -> str:
        """Return what follows the value of a cell; "" where there is none."""
        return self.note(row) if self.note and _format(self.value(row), self.spec) else ""

    def expand(self) -> "list[tuple[str, Callable[[Row], Any], str]]":
        """Return the name, value and format of each of its columns in a data frame."""
        ends = self.ends
        if ends is None:
            return [(self.name, self.value, self.spec)]
        return [
            (self.name, self.value, self.spec),
            ("low", lambda row: ends(row)[0], self.spec),
            ("high", lambda row: ends(row)[1], self.spec),
        ]


def _to_int(value: float) -> int | None:
    """Return a count as an integer; None where it is not known."""
    return None if math.isnan(value) else int(value)


def _format(value: Any, spec: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(value) if isinstance(value, str) or not spec else format_number(value, spec)


class Table(Generic[Row]):
    """Rows with columns, for every place that shows them.

    Attributes:
        name: what the table shows; also the name of the file when a reader downloads it.
        rows: the rows.
        columns: the columns whose condition holds.
    """

    def __init__(self, name: str, rows: Iterable[Row], columns: Sequence[Column[Row]]) -> None:
        self.name = name
        self.rows = list(rows)
        self.columns = [column for column in columns if column.condition]

    def __html__(self) -> str:
        """Return the table as HTML that scrolls within its own width.

        The first column is the heading of its row if it is text. ``data-`` attributes hold full
        numbers, by which a page sorts, and which it writes as CSV: ``data-more`` is what this file
        has in further columns, the ends of an interval and what follows a value.
        """
        shown = [column for column in self.columns if column.title]
        noted = [any(map(column.format_note, self.rows)) for column in shown]
        heads = "".join(map(_render_head, shown, noted))
        rows = "\n".join(
            f"<tr>{''.join(map(_render_cell, shown, repeat(row), count(), noted))}</tr>"
            for row in self.rows
        )
        return (
            f'<div class="scroll" tabindex="0">\n<table class="sortable">\n'
            f"<caption>{escape(self.name)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
            f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the table as a data frame, with full numbers."""
        named = self._list_named()
        frame = pd.DataFrame({name: [value(row) for row in self.rows] for name, value, _ in named})
        counts = [name for name, _, spec in named if spec.endswith("d")]
        return frame.astype({name: "Int64" for name in counts if frame[name].hasnans})

    def to_text(self, *left_out: str) -> str:
        """Return the data frame as text, with formatted numbers; "" without rows.

        Args:
            left_out: names of columns that are not shown.
        """
        texts = {
            name: [_format(value(row), spec) for row in self.rows]
            for name, value, spec in self._list_named()
            if name not in left_out
        }
        return pd.DataFrame(texts).to_string(index=False) if self.rows else ""

    def _list_named(self) -> list[tuple[str, Callable[[Row], Any], str]]:
        return [each for column in self.columns if column.name for each in column.expand()]


def _render_head(column: Column[Any], is_noted: bool) -> str:
    unit = f" <small>{escape(column.unit)}</small>" if column.unit else ""
    more = _render_more((["from", "to"] if column.ends else []) + (["note"] if is_noted else []))
    style = ' class="number"' if column.spec else ""
    return f'<th scope="col"{style}{more}><span>{escape(column.title)}</span>{unit}</th>'


def _render_more(fields: Sequence[str]) -> str:
    return f' data-more="{escape(",".join(fields))}"' if fields else ""


def _render_cell(column: Column[Row], row: Row, index: int, is_noted: bool) -> str:
    text, ends = (str(to_html(part)) for part in column.format(row))
    attributes = ""
    if column.spec:
        attributes += f' class="number" data-sort="{escape(_format(column.value(row), ".10g"))}"'
    elif index and len(text) > LONG:
        attributes += ' class="long"'
    more = [_format(end, ".10g") for end in column.ends(row)] if column.ends else []
    attributes += _render_more(more + ([column.format_note(row).strip()] if is_noted else []))
    if column.hint and (hint := _format(column.hint(row), "")):
        attributes += f' title="{escape(hint)}"'
    ends = f" <small>{ends.strip()}</small>" if ends else ""
    if index or column.spec:
        return f"<td{attributes}>{text}{ends}</td>"
    return f'<th scope="row"{attributes}>{text}</th>'


# ---------------------------------------------------------------- effects


def tabulate_effects(
    effects: Sequence[Effect],
    conditional: Sequence[ConditionalEffect] = (),
    solved: Mapping[Contrast, SolvedChange] | None = None,
    name: str = "effects",
    spec: str = "",
) -> Table[Effect]:
    """Tabulate main effects, with what they depend on.

    Args:
        effects: the effects.
        conditional: the same within each value of the other parameters.
        solved: shares of the pairs that are solved before and after each change.
        name: name of the table.
        spec: format of an effect; by default that of the study's differences.
    """
    scale = effects[0].scale if effects else NATS
    spec = spec or scale.spec
    has_pairs = any(effect.pairs for effect in effects)
    ranked = rank_effects(effects, conditional)
    found = {each.main.contrast: each.condition for each in ranked if each.condition}

    changes = solved or {}

    def show_solved(each: Effect) -> str:
        if (change := changes.get(each.contrast)) is None:
            return ""
        mark = MARK if change.is_significant else ""
        return f"{change.before:.0%} → {change.after:.0%}{mark}"

    def get_solved(name: str, each: Effect) -> float:
        return getattr(changes[each.contrast], name) if each.contrast in changes else math.nan

    def depends_on(each: Effect) -> str:
        return found[each.contrast].parameter if each.contrast in found else ""

    def extreme(each: Effect, choose: Callable[[Iterable[float]], float]) -> float:
        condition = found.get(each.contrast)
        return choose(level.mean for level in condition.levels) if condition else math.nan

    return Table(
        name,
        effects,
        [
            *change_columns(lambda e: e),
            estimate_column("mean difference", lambda e: e, scale.unit, f"+{spec}", name="effect"),
            Column("improved", improved_share, ".0f", unit="%", condition=has_pairs),
            Column("pairs" if has_pairs else "", lambda e: e.pairs, ",d", name="pairs"),
            Column("missing", lambda e: e.missing_pairs, ",d", hint=_describe_missing,
                   condition=has_pairs),
            Column("solved", show_solved, TEXT, unit="of the pairs", condition=changes),
            *(Column("", partial(get_solved, name), name=f"solved_{name}", condition=changes)
              for name in SolvedChange._fields),
            Column("", lambda e: e.is_significant, name="significant"),
            Column("not tested" if any(e.reason for e in effects) else "", lambda e: e.reason,
                   name="reason"),
            Column("", lambda e: str(e.source), name="source"),
            Column("", depends_on, name="depends_on"),
            Column("", lambda e: extreme(e, min), f"+{spec}", name="least"),
            Column("", lambda e: extreme(e, max), f"+{spec}", name="greatest"),
        ],
    )  # fmt: skip


def tabulate_conditional(
    conditional: Sequence[ConditionalEffect], name: str = "conditional effects"
) -> Table[tuple[ConditionalEffect, LevelEffect]]:
    """Tabulate the effects within each value of the other parameters, a row for each value."""
    scale = conditional[0].main.scale if conditional else NATS
    spec = scale.spec

    def describe_finding(each: ConditionalEffect) -> str:
        parts = ["opposite signs"] if each.has_opposite_signs else []
        return ", ".join([*parts, *(["depends on it"] if each.rivals_main else [])])

    return Table(
        name,
        [(each, level) for each in conditional for level in each.levels],
        [
            *change_columns(lambda row: row[0].main),
            Column("by", lambda row: format_param(row[0].parameter)),
            Column("value", lambda row: format_value(row[1].value), TEXT),
            estimate_column("effect", lambda row: row[1], scale.unit, f"+{spec}", name="effect"),
            Column("pairs", lambda row: row[1].pairs, ",d", name="pairs"),
            Column("", lambda row: row[1].is_significant, name="significant"),
            Column("", lambda row: row[0].parameter, name="by"),
            Column("", lambda row: row[1].value, name="value"),
            Column("range", lambda row: row[0].difference.mean, spec, unit=scale.unit, name="range",
                   note=lambda row: MARK if row[0].is_significant else ""),
            Column("finding", lambda row: describe_finding(row[0])),
            Column("", lambda row: row[0].is_significant, name="differs"),
            Column("", lambda row: row[0].rivals_main, name="rivals_main"),
            Column("", lambda row: row[0].has_opposite_signs, name="opposite_signs"),
        ],
    )  # fmt: skip


def tabulate_hypotheses(tests: Sequence[HypothesisTest], results: Results) -> Table[HypothesisTest]:
    """Tabulate the hypotheses of a study with their verdicts."""
    scale = results.scale

    def describe_verdict(test: HypothesisTest) -> str:
        return ": ".join(filter(None, [test.verdict, test.problem]))

    return Table(
        "hypotheses",
        tests,
        [
            Column("statement", lambda test: test.hypothesis.statement, name="statement"),
            Column("change", lambda test: test.change, name="change"),
            Column("expected", lambda test: test.hypothesis.expect, name="expected"),
            Column("margin", lambda test: test.hypothesis.margin, "g", name="margin"),
            estimate_column("effect", lambda test: test.effect, scale.unit, f"+{scale.spec}",
                            note=lambda test: "", name="effect"),
            Column("pairs", lambda test: test.effect and test.effect.pairs, ",d", name="pairs"),
            Column("verdict", describe_verdict, name="verdict", is_strong=True),
            Column("registered", lambda test: test.mark, name="registered"),
        ],
    )  # fmt: skip


def change_columns(effect: Callable[[Row], Effect]) -> list[Column[Row]]:
    """Return the columns that name the change of a row."""
    return [
        Column("change", lambda row: effect(row).contrast.label,
               hint=lambda row: effect(row).description),
        *contrast_columns(lambda row: effect(row).contrast),
    ]  # fmt: skip


def contrast_columns(contrast: Callable[[Any], Any]) -> list[Column[Any]]:
    """Return the columns of a data frame that name the contrast of a row."""
    return [
        Column("", lambda row: contrast(row).parameter, name="parameter"),
        Column("", lambda row: contrast(row).before, name="before"),
        Column("", lambda row: contrast(row).after, name="after"),
    ]


def estimate_column(
    title: str,
    estimate: Callable[[Any], Any],
    unit: str,
    spec: str,
    note: Callable[[Any], str] | None = None,
    **attributes: Any,
) -> Column[Any]:
    """Return the column of an estimate with its interval, marked where it is significant.

    Args:
        title: its heading.
        estimate: returns the estimate of a row; None without one.
        unit: unit of the estimate.
        spec: its format.
        note: what follows it; by default a mark where it is significant.
        attributes: other attributes of the column.
    """

    def get(row: Any, name: str) -> Any:
        return getattr(estimate(row), name) if estimate(row) else math.nan

    return Column(
        title,
        lambda row: get(row, "mean"),
        spec,
        unit=unit,
        ends=lambda row: (get(row, "low"), get(row, "high")),
        note=note or (lambda row: MARK if getattr(estimate(row), "is_significant", False) else ""),
        **attributes,
    )


def _describe_missing(effect: Effect) -> str:
    if not effect.missing_pairs:
        return ""
    return (
        f"pairs with a value before the change only: {effect.only_before}; after the change only: "
        f"{effect.only_after}; neither: {effect.neither}"
    )


def improved_share(effect: PairedDifference) -> float | None:
    """Return the percentage of pairs that a change improves; None without pairs."""
    return 100 * effect.improved_count / effect.pairs if effect.pairs else None


# ---------------------------------------------------------------- architectures


def tabulate_leaderboard(
    results: Results,
    summary: StudySummary,
    entries: Sequence[LeaderboardEntry],
    name: str = "leaderboard",
) -> Table[LeaderboardEntry]:
    """Tabulate architectures, the best first.

    Args:
        results: results of the study.
        summary: ranking and comparison of all its architectures.
        entries: those of them that are shown.
        name: name of the table.
    """
    metric, measure, best = results.metric, results.measure, summary.best
    spec, unit = metric.scale.value_spec, measure.held_out_unit
    is_replicated, has_networks = results.has_replicates, best.architecture is not None
    margin = f"margin {summary.judgement.margin}" if summary.judgement else ""
    held_out_spec = find_held_out_spec(results)
    return Table(
        name,
        entries,
        [
            Column(results.noun, lambda e: e.label, name="architecture"),
            Column("trial", lambda e: e.number, "d"),
            *_best_values(entries, "best " if results.nuisance else ""),
            Column("runs", lambda e: e.runs, "d", name="runs", condition=is_replicated),
            Column(measure.loss if metric.is_value else metric.name, lambda e: e.mean, spec,
                   unit=", ".join(filter(None, ["mean" if is_replicated else "", metric.unit])),
                   ends=(lambda e: (e.low, e.high)) if is_replicated else None, name="loss"),
            Column("", lambda e: e.mean - best.mean, f"+{spec}", name="difference"),
            *metric_columns(results.metric_columns, results, lambda e: e.metrics),
            Column("standard deviation", lambda e: e.std, spec, condition=is_replicated),
            Column("verdict", lambda e: "best mean" if e is best else str(e.verdict or ""),
                   unit=margin, name="verdict", condition=summary.has_verdicts),
            Column("at most", lambda e: e.bound, f"+{spec}", unit="vs. best", name="at_most",
                   condition=summary.has_verdicts),
            Column(measure.name_loss("validation"), lambda e: e.validation_loss, held_out_spec,
                   unit=unit, note=lambda e: format_stderr(e.validation_stderr, held_out_spec),
                   condition=results.shows_validation),
            estimate_column("vs. best", lambda e: e.gap, unit, f"+{spec}",
                      condition=summary.compares_single_runs),
            Column("effective context", lambda e: str(e.context.estimate()) if e.context else "",
                   TEXT, unit=f"{results.config.token_name}s",
                   condition=any(each.context for each in entries)),
            Column("recall accuracy", lambda e: 100 * e.recall_accuracy, ".1f", unit="%",
                   condition=any(each.recall_accuracy >= 0 for each in entries)),
            Column(objective_name(results.config), lambda e: e.value, spec,
                   unit=results.measure.unit, condition=not metric.is_value),
            Column("parameters", lambda e: _to_int(e.parameter_count), ",d", name="parameters",
                   condition=has_networks),
            Column("time", lambda e: e.seconds, ",.1f", unit="s", condition=has_networks),
            Column("source trials", lambda e: ", ".join(map(str, e.source_trials)),
                   condition=results.config.refinement),
        ],
    )  # fmt: skip


def _best_values(entries: Sequence[LeaderboardEntry], prefix: str) -> list[Column[Any]]:
    """Return a column for each nuisance parameter of which architectures have their best value."""

    def get(name: str, row: LeaderboardEntry) -> str:
        return format_value(row.best_values.get(name))

    names = dict.fromkeys(name for each in entries for name in each.best_values)
    return [Column(prefix + format_param(name), partial(get, name), TEXT) for name in names]


def metric_columns(
    names: Iterable[str], results: Results, metrics: Callable[[Any], Mapping[str, Any]]
) -> list[Column[Any]]:
    """Return a column for each metric of a task."""
    task = results.config.task_record

    def get(name: str, row: Any) -> float | None:
        return metrics(row).get(name)

    return [
        Column(name, partial(get, name), ".4g", unit=describe_direction(task.metrics[name]))
        for name in names
        if task
    ]


def describe_direction(direction: Direction) -> str:
    """Say whether a higher or a lower value of a metric is better."""
    return "higher is better" if direction == "maximize" else "lower is better"


def find_held_out_spec(results: Results) -> str:
    """Return the format of a loss on held-out data: of text with a digit less."""
    return ".3f" if results.config.is_text else results.scale.value_spec
