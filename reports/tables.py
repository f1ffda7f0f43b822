"""Tables of studies: one list of columns for HTML, text, Markdown and data frames.

A column is one line: its heading for readers, what a row has in it, the format of its numbers, and
its name in data frames. Columns that a study lacks are left out by their condition.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from html import escape
from typing import Any, Generic, TypeVar

import pandas as pd

from reports.analysis.hypothesis_tests import Finding, HypothesisTest
from reports.analysis.leaderboard import CostSummary, LeaderboardEntry, StudySummary
from reports.formatting import (
    escape_markdown,
    format_number,
    format_stderr,
    objective_name,
)
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect, LevelEffect, rank_effects
from reports.stats.effects import Effect, PairedDifference
from reports.stats.hypotheses import ContrastOutcomes, Verdict
from reports.stats.pareto import FrontMember, ParetoFront
from reports.stats.scale import NATS, add_unit, format_param, format_value
from studies.records import Direction

Row = TypeVar("Row")

TEXT = "s"
"""Format of values that are text already and stand under numbers, such as those of parameters."""

MARK = " *"
"""Follows an estimate that is significant."""


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
        """Return a cell for a reader: the value, and what follows it; "" for what is missing."""
        text, ends = _format(self.value(row), self.spec), ""
        if self.ends:
            low, high = (_format(end, self.spec) for end in self.ends(row))
            ends = f" [{low}, {high}]" if low and high else ""
        note = self.note(row) if self.note and text else ""
        return (text + note).replace("-", "−") if self.spec else text + note, ends.replace("-", "−")

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
        numbers, by which a page sorts, and which it writes as CSV.
        """
        shown = [column for column in self.columns if column.title]
        heads = "".join(map(_render_head, shown))
        rows = "\n".join(
            f"<tr>{''.join(_render_cell(column, row, i) for i, column in enumerate(shown))}</tr>"
            for row in self.rows
        )
        return (
            f'<div class="scroll" tabindex="0">\n<table class="sortable">\n'
            f"<caption>{escape(self.name)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
            f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
        )

    def to_markdown(self) -> str:
        """Return the table as Markdown, with a line for each row."""
        shown = [column for column in self.columns if column.title]
        lines = [[add_unit(escape_markdown(each.title), each.unit) for each in shown]]
        lines.append(["---:" if each.spec else ":---" for each in shown])
        for row in self.rows:
            cells = [escape_markdown("".join(column.format(row))) for column in shown]
            lines.append(
                [
                    f"**{text}**" if column.is_strong and text else text
                    for column, text in zip(shown, cells, strict=True)
                ]
            )
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def to_frame(self) -> pd.DataFrame:
        """Return the table as a data frame, with full numbers."""
        named = [each for column in self.columns if column.name for each in column.expand()]
        return pd.DataFrame({name: [value(row) for row in self.rows] for name, value, _ in named})

    def to_text(self, *left_out: str) -> str:
        """Return the data frame as text, with formatted numbers.

        Args:
            left_out: names of columns that are not shown.
        """
        frame = self.to_frame().drop(columns=list(left_out))
        specs = {name: spec for column in self.columns for name, _, spec in column.expand()}
        for name in frame:
            frame[name] = [_format(value, specs[str(name)]) for value in frame[name].tolist()]
        return frame.to_string(index=False)


def _render_head(column: Column[Any]) -> str:
    unit = f" <small>{escape(column.unit)}</small>" if column.unit else ""
    ends = ' data-ends="from,to"' if column.ends else ""
    style = ' class="number"' if column.spec else ""
    return f'<th scope="col"{style}{ends}><span>{escape(column.title)}</span>{unit}</th>'


def _render_cell(column: Column[Row], row: Row, index: int) -> str:
    text, ends = (escape(part) for part in column.format(row))
    if column.is_strong and text:
        text = f"<strong>{text}</strong>"
    attributes = ""
    if column.spec:
        attributes += f' class="number" data-sort="{escape(_format(column.value(row), ".10g"))}"'
    if column.ends:
        low, high = (_format(end, ".10g") for end in column.ends(row))
        attributes += f' data-ends="{low},{high}"'
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
    name: str = "effects",
    spec: str = "",
) -> Table[Effect]:
    """Tabulate main effects, with what they depend on.

    Args:
        effects: the effects.
        conditional: the same within each value of the other parameters.
        name: name of the table.
        spec: format of an effect; by default that of the study's differences.
    """
    scale = effects[0].scale if effects else NATS
    spec = spec or scale.spec
    ranked = rank_effects(effects, conditional)
    found = {each.main.contrast: each.condition for each in ranked if each.condition}

    def depends_on(each: Effect) -> str:
        return found[each.contrast].parameter if each.contrast in found else ""

    def extreme(each: Effect, name: str) -> float:
        condition = found.get(each.contrast)
        return getattr(condition, name).mean if condition else math.nan

    def describe_missing(each: Effect) -> str:
        if not each.missing_pairs:
            return ""
        return (
            f"pairs with a value before the change only: {each.only_before}; after the change "
            f"only: {each.only_after}; neither: {each.neither}"
        )

    return Table(
        name,
        effects,
        [
            Column("change", lambda e: e.contrast.label, hint=lambda e: e.description),
            *contrast_columns(lambda e: e.contrast),
            estimate_column("mean difference", lambda e: e, scale.unit, f"+{spec}", name="effect"),
            Column("improved", improved_share, ".0f", unit="%"),
            Column("pairs", lambda e: e.pairs, ",d", name="pairs"),
            Column("missing", lambda e: e.missing_pairs, ",d", hint=describe_missing),
            Column("", lambda e: e.is_significant, name="significant"),
            Column("not tested" if any(e.reason for e in effects) else "", lambda e: e.reason,
                   name="reason"),
            Column("", lambda e: str(e.source), name="source"),
            Column("", depends_on, name="depends_on"),
            Column("", lambda e: extreme(e, "least"), f"+{spec}", name="least"),
            Column("", lambda e: extreme(e, "greatest"), f"+{spec}", name="greatest"),
        ],
    )  # fmt: skip


def tabulate_conditional(
    conditional: Sequence[ConditionalEffect], name: str = "conditional effects", spec: str = ""
) -> Table[tuple[ConditionalEffect, LevelEffect]]:
    """Tabulate the effects within each value of the other parameters, a row for each value."""
    scale = conditional[0].main.scale if conditional else NATS
    spec = spec or scale.spec

    def describe_finding(each: ConditionalEffect) -> str:
        parts = ["opposite signs"] if each.has_opposite_signs else []
        return ", ".join([*parts, *(["depends on it"] if each.rivals_main else [])])

    return Table(
        name,
        [(each, level) for each in conditional for level in each.levels],
        [
            Column("change", lambda row: row[0].contrast.label),
            *contrast_columns(lambda row: row[0].contrast),
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


def tabulate_outcomes(outcomes: Sequence[ContrastOutcomes], name: str = "") -> Table[Any]:
    """Tabulate which changes bring trials below a threshold."""
    return Table(
        name,
        outcomes,
        [
            Column("change", lambda e: e.contrast.label, hint=lambda e: e.contrast.description),
            *contrast_columns(lambda e: e.contrast),
            Column("", lambda e: e.both_good, name="both_good"),
            Column("rescued", lambda e: e.rescued, ",d", name="rescued"),
            Column("ruined", lambda e: e.ruined, ",d", name="ruined"),
            Column("", lambda e: e.both_bad, name="both_bad"),
            Column("pairs", lambda e: e.pairs, ",d"),
            Column("unknown" if any(e.unknown for e in outcomes) else "", lambda e: e.unknown, ",d",
                   name="unknown"),
            Column("", lambda e: e.p, name="p"),
            Column("p", lambda e: e.p_adjusted, ".2g", unit="sign test, corrected",
                   name="p_adjusted", note=lambda e: MARK if e.is_significant else ""),
            Column("", lambda e: e.is_significant, name="significant"),
        ],
    )  # fmt: skip


def tabulate_findings(
    tests: Sequence[tuple[int | None, HypothesisTest]], results: Results, name: str = "hypotheses"
) -> Table[tuple[int | None, HypothesisTest, Finding | None]]:
    """Tabulate the findings about hypotheses.

    Args:
        tests: tests of hypotheses, with their numbers; None where a page has one of them.
        results: results of the study.
        name: name of the table.
    """
    scale, threshold = results.scale, results.config.report_threshold
    has_threshold, is_list = threshold is not None, any(number for number, _ in tests)

    def effect(row: Any) -> Effect | None:
        return row[2].effect if row[2] and row[2].effect.pairs else None

    def count(row: Any, attribute: str) -> Any:
        return getattr(row[2].outcomes, attribute) if row[2] and row[2].outcomes else None

    def state(test: HypothesisTest) -> str:
        if not test.is_exploratory:
            return test.mark
        return "exploratory" + (f": {test.mark}" if test.mark != "exploratory" else "")

    return Table(
        name,
        [
            (number, test, finding)
            for number, test in tests
            for finding in _list_findings(test)
        ],
        [
            Column("number", lambda row: row[0], "d", condition=is_list),
            Column("comparison", lambda row: row[2].contrast if row[2] else row[1].problem),
            estimate_column("mean difference", effect, scale.unit, f"+{scale.spec}",
                            note=lambda row: ""),
            Column("pairs", lambda row: row[2].effect.pairs if row[2] else 0, ",d"),
            Column("improved", lambda row: improved_share(row[2].effect) if row[2] else None,
                   ".0f", unit="%"),
            Column("verdict", lambda row: row[2].verdict if row[2] else Verdict.NOT_TESTABLE,
                   is_strong=True),
            Column("rescued", lambda row: count(row, "rescued"), ",d", condition=has_threshold),
            Column("ruined", lambda row: count(row, "ruined"), ",d", condition=has_threshold),
            Column("of", lambda row: count(row, "pairs"), ",d", unit="pairs",
                   condition=has_threshold),
            Column(f"verdict {scale.good_side} {threshold}",
                   lambda row: row[2].outcome_verdict if row[2] else None, is_strong=True,
                   condition=has_threshold),
            Column("status", lambda row: state(row[1]), condition=is_list),
        ],
    )  # fmt: skip


def _list_findings(test: HypothesisTest) -> Sequence[Finding | None]:
    """Return the findings of a test; None in their place if it is not testable."""
    return test.findings or ([None] if test.is_untestable else [])


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


def tabulate_front(
    front: ParetoFront, summary: CostSummary, name: str = "Pareto front"
) -> Table[FrontMember]:
    """Tabulate the architectures on a Pareto front, the cheapest first."""
    measure, unit = summary.measure, summary.measure.held_out_unit
    members = [each.architecture for each in front.members]
    worse = "significantly" if summary.is_replicated else "distinguishably"

    def name_cheaper(member: FrontMember) -> str | None:
        return member.cheaper.label if member.cheaper else None

    return Table(
        name,
        front.members,
        [
            Column("on the front", lambda e: e.architecture.label, name="architecture"),
            Column("", lambda e: e.architecture.number, name="trial"),
            *_best_values(members, "", lambda e: e.architecture.best_values),
            Column("parameters", lambda e: e.architecture.parameters, ",.0f", name="parameters"),
            Column("time", lambda e: e.architecture.seconds, ",.2f", unit="s", name="seconds"),
            Column(measure.loss, lambda e: e.architecture.loss, measure.spec, unit=unit,
                   name=measure.held_out),
            estimate_column("vs. best", lambda e: e.gap, unit, f"+{measure.spec}", name="gap"),
            Column(f"cheapest that is not {worse} worse", lambda e: name_cheaper(e) or "none"),
            Column("", name_cheaper, name="cheapest_not_worse"),
        ],
    )  # fmt: skip


def _best_values(
    entries: Sequence[Any],
    prefix: str,
    values: Callable[[Any], Mapping[str, Any]] = lambda entry: entry.best_values,
) -> list[Column[Any]]:
    """Return a column for each nuisance parameter of which architectures have their best value."""

    def get(name: str, row: Any) -> str:
        return format_value(values(row).get(name))

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
