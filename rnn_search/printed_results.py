"""Effects and verdicts of a study, as data frames, figures and printed lists."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from reports.analysis.leaderboard import LeaderboardEntry
from reports.findings import StudyFindings, TaskComparison, compare_across_tasks
from reports.formatting import to_plain
from reports.results import Results
from reports.sentences import list_agreement, list_answer, list_noise, list_warnings
from reports.stats.design import Contrast
from reports.stats.differences import PairedDifference
from reports.stats.effects import Effect
from rnn.errors import UserError
from studies.messages import expect_one_of
from studies.records import of_task

if TYPE_CHECKING:  # slow to import
    import plotly.graph_objects as go

    from reports.charts.chart import PaperWidth

_CONTRAST = ("parameter", "before", "after")


class _Shown(ABC):
    """A result that is printed as lines and a table, and in a notebook as a list and a table."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Return the table."""

    def to_latex(self, columns: Sequence[str] | None = None, digits: int = 3) -> str:
        """Return the table for LaTeX with the package ``booktabs``.

        Args:
            columns: columns of :meth:`to_frame`; None for the main ones.
            digits: decimals of numbers that are not whole.

        Raises:
            UserError: if there is no such column.
        """
        frame = self.to_frame()
        chosen = list(columns or (name for name in self._latex_columns if name in frame))
        if unknown := [name for name in chosen if name not in frame]:
            expected = expect_one_of(map(str, frame), unknown[0])
            raise UserError(f"the table has no column {unknown[0]!r}: {expected}")
        # LaTeX reads an underscore as a subscript.
        titles = [name.replace("_", " ") for name in chosen]
        return (
            frame[chosen]
            .set_axis(titles, axis=1)
            .to_latex(index=False, escape=True, float_format=f"{{:.{digits}f}}".format, na_rep="")
        )

    _latex_columns: ClassVar[Sequence[str]]
    """Columns of a table in a paper."""

    @abstractmethod
    def _plot(self) -> "go.Figure":
        """Plot the result."""

    def plot(self, width: "PaperWidth | None" = None) -> "go.Figure":
        """Plot the result; a notebook displays the figure.

        Args:
            width: ``"column"`` (85 mm) or ``"page"`` (178 mm) for a figure of that width with fonts
                of 8 points, for ``figure.write_image("effects.pdf")``.

        Raises:
            UserError: if the width is another one.
        """
        from reports.charts.chart import fit_to_paper

        return fit_to_paper(self._plot(), width)

    @abstractmethod
    def _list_lines(self) -> list[str]:
        """Return the lines."""

    def __repr__(self) -> str:
        frame = self.to_frame()
        lines = list(map(to_plain, self._list_lines()))
        if len(frame):
            lines.append(frame.to_string(index=False, float_format="{:.4g}".format))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(to_plain(line))}</li>" for line in self._list_lines())
        return f"<ul>{items}</ul>{self.to_frame().to_html(index=False, na_rep='')}"


@dataclass(frozen=True, eq=False, repr=False)
class Effects(_Shown):
    """Main effects of the parameters of a study, printed as the answer and a table.

    Attributes:
        findings: findings of the study.
    """

    findings: StudyFindings
    _latex_columns = (*_CONTRAST, "effect", "low", "high", "pairs")

    @property
    def answer(self) -> list[str]:
        """Lines of the answer to the study's question, as in the report."""
        return [to_plain(line) for line in list_answer(self.findings)]

    @property
    def warnings(self) -> list[str]:
        """Lines of warnings, as in the report."""
        return [to_plain(warning) for warning in list_warnings(self.findings)]

    def to_frame(self) -> pd.DataFrame:
        """Return the effects as a table, one row per change, ranked as in the report.

        - ``parameter``, ``before``, ``after``: the change
        - ``effect``: mean difference over the pairs; negative is better, unless higher values are
        - ``low``, ``high``: ends of its 95% interval
        - ``pairs``, ``seeds``: number of pairs of architectures, and of runs of each
        - ``excluded_pairs``: number of pairs that cannot show the change and do not count
        - ``p``: p-value of no effect, corrected for the number of effects
        - ``significant``: whether it is below 5%; ``reason`` says why an effect is not tested
        - ``method``: what the interval rests on
        - ``depends_on``: parameter on which the effect depends

        If the task says when it is solved, effects are differences of the share of solved runs, so
        that positive is better:

        - ``solved_before``, ``solved_after``: shares of the runs that are solved
        - ``rescued``, ``ruined``: number of pairs of runs of which only the second or the first is
        - ``lower``, ``lower_of``, ``lower_p``: in how many pairs of runs the loss is lower, and the
          p-value of Wilcoxon's test, corrected for the number of effects

        If the study has a ``report_threshold``, ``threshold_before``, ``threshold_after`` and
        ``threshold_p`` are the shares of runs better than it, and their corrected p-value.
        """
        rows = []
        for ranked in self.findings.ranked:
            effect = ranked.main
            condition = ranked.condition
            row = _describe_contrast(effect.contrast) | _describe_difference(effect)
            row |= {
                "excluded_pairs": effect.excluded_pairs,
                "reason": effect.reason,
                "method": str(effect.method),
                "depends_on": condition.parameter if condition else "",
            }
            row |= _describe_shares(effect)
            reached = self.findings.threshold_effects.get(effect.contrast)
            if reached is not None:
                row |= {
                    "threshold_before": reached.solved_before,
                    "threshold_after": reached.solved_before + reached.mean,
                    "threshold_p": reached.p_adjusted,
                }
            rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else [*_CONTRAST, "effect", "low", "high"])

    def conditional_frame(self) -> pd.DataFrame:
        """Return each effect within each value of every other parameter.

        The columns of :meth:`to_frame` describe the effect where the parameter ``by`` has this
        ``value``. ``range`` is the difference between the greatest and the least effect by this
        parameter. ``differs`` tells whether it is significant, ``rivals_main`` whether it is also
        at least as large as the main effect, ``opposite_signs`` whether significant effects have
        both signs. Where no pair can show the change, ``excluded`` says why, and there is no
        effect.
        """
        rows = [
            _describe_contrast(found.contrast)
            | {"by": found.parameter, "value": level.value}
            | _describe_difference(level)
            | {
                "range": found.difference.mean,
                "differs": found.is_significant,
                "rivals_main": found.rivals_main,
                "opposite_signs": found.has_opposite_signs,
            }
            for found in self.findings.conditional
            for level in found.levels
        ]
        rows += [
            _describe_contrast(found.contrast)
            | {"by": found.parameter, "value": level.value}
            | {"pairs": level.pairs, "excluded": level.obstacle}
            for found in self.findings.conditional
            for level in found.excluded
        ]
        return pd.DataFrame(rows)

    def _plot(self) -> "go.Figure":
        """Plot each effect with its interval."""
        from reports.charts.comparison_plots import chart_effects

        return chart_effects(self.findings).figure

    def _list_lines(self) -> list[str]:
        noise = [sentence.rstrip(".") for sentence in list_noise(self.findings)[:1]]
        return [*self.answer, *(f"warning: {warning}" for warning in self.warnings), *noise]


def _describe_contrast(contrast: Contrast) -> dict[str, Any]:
    return {name: getattr(contrast, name) for name in _CONTRAST}


def _describe_solved(entry: LeaderboardEntry) -> dict[str, Any]:
    if entry.solved is None:
        return {}
    low, high = entry.solved.interval
    counts = {"solved": entry.solved.solved, "ended": entry.solved.runs}
    return counts | {"share_low": low, "share_high": high}


def _describe_shares(effect: Effect) -> dict[str, Any]:
    if effect.shares is None or effect.ranks is None:
        return {}
    return {
        "solved_before": effect.solved_before,
        "solved_after": effect.solved_before + effect.mean,
        "rescued": effect.shares.rescued,
        "ruined": effect.shares.ruined,
        "lower": effect.ranks.lower,
        "lower_of": effect.ranks.pairs,
        "lower_p": effect.ranks.p,
    }


def _describe_difference(difference: PairedDifference) -> dict[str, Any]:
    return {
        "effect": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "pairs": difference.pairs,
        "seeds": difference.seeds,
        "p": difference.p if difference.p_adjusted is None else difference.p_adjusted,
        "significant": difference.is_significant,
    }


@dataclass(frozen=True, eq=False, repr=False)
class TaskEffects(_Shown):
    """Main effects in each of several tasks, printed as what they have in common.

    Attributes:
        by_task: effects in each task, by its name.
        comparison: what each change does in all tasks.
    """

    by_task: dict[str, Effects]
    comparison: TaskComparison
    _latex_columns = ("task", *Effects._latex_columns)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per task and contrast: ``task``, then the columns of :class:`Effects`."""
        frames = [effects.to_frame().assign(task=task) for task, effects in self.by_task.items()]
        frame = pd.concat(frames, ignore_index=True)
        return frame[["task", *frame.columns.drop("task")]]

    def agreement_frame(self) -> pd.DataFrame:
        """Return one row per change: in how many of its ``tasks`` it ``helps`` and ``harms``.

        Effects that are significant count, corrected for all changes in all tasks. ``agrees`` tells
        whether there are two or more, all of one sign.
        """
        rows = [
            _describe_contrast(found.contrast)
            | {
                "tasks": len(found.by_task),
                "helps": len(found.helps),
                "harms": len(found.harms),
                "agrees": found.agrees,
            }
            for found in self.comparison.contrasts
        ]
        return pd.DataFrame(rows)

    def plot(self, width: "PaperWidth | None" = None, task: str = "") -> "go.Figure":
        """Plot the effects in each task side by side, or those in one of them.

        Raises:
            UserError: if the width is another one, or there is no such task.
        """
        if not task:
            return super().plot(width)
        if task not in self.by_task:
            raise UserError(f"no effects in task {task!r}: {expect_one_of(self.by_task, task)}")
        return self.by_task[task].plot(width)

    def _plot(self) -> "go.Figure":
        from reports.charts.comparison_plots import plot_tasks

        return plot_tasks({name: effects.findings for name, effects in self.by_task.items()})

    def _list_lines(self) -> list[str]:
        return list_agreement(self.comparison)


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts(_Shown):
    """Verdicts on replicated architectures, printed as the answer and a table.

    Attributes:
        findings: findings of the study.
    """

    findings: StudyFindings
    _latex_columns = ("architecture", "runs", "loss", "value", "low", "high", "verdict")

    @property
    def smallest(self) -> str | None:
        """The smallest architecture that is as good as the best; None if none is shown to be."""
        smallest = self.findings.summary.smallest
        return smallest.label if smallest else None

    def to_frame(self) -> pd.DataFrame:
        """Return one row per architecture, the best mean first.

        - ``architecture``, ``runs``, ``parameters``: the network, its runs and its size
        - ``loss``: mean over the runs, with the ends ``low`` and ``high`` of its 95% interval;
          ``value`` where trials are no networks
        - ``difference``: difference to the best mean
        - ``verdict``: ``best mean``, ``as good``, ``undecided`` or ``worse``
        - ``at_most``: upper confidence bound of the difference to the best architecture; below the
          margin, the verdict is ``as good``

        If the task says when it is solved, ``loss`` is the median, ``low`` and ``high`` are the
        least and the largest loss; ``solved`` of ``ended`` runs are solved, with the ends
        ``share_low`` and ``share_high`` of the 95% interval of their share; the verdict is ``fewer
        solved`` if that is significant.
        """
        summary = self.findings.summary
        rows = [
            {
                "architecture": entry.label,
                "runs": entry.runs,
                "loss": entry.loss,
                "low": entry.low,
                "high": entry.high,
                "difference": entry.loss - summary.best.loss,
                "verdict": summary.name_verdict(entry),
                "at_most": entry.bound,
                **_describe_solved(entry),
                "parameters": entry.parameter_count,
            }
            for entry in summary.entries
        ]
        frame = pd.DataFrame(rows)
        if self.findings.results.config.has_networks:
            return frame.astype({"parameters": "Int64"})
        return frame.rename(columns={"loss": "value"})

    def _plot(self) -> "go.Figure":
        """Plot the runs of each architecture, and their mean."""
        from reports.charts.comparison_plots import chart_replicates

        return chart_replicates(self.findings).figure

    def _list_lines(self) -> list[str]:
        return list_answer(self.findings)


def find_effects(results: Results) -> Effects | TaskEffects:
    """Estimate the effects in results, see :meth:`rnn_search.Study.effects`."""
    found = [StudyFindings(part) for part in results.split_tasks()]
    comparison = compare_across_tasks(found)
    if comparison is None:
        return Effects(found[0])
    by_task = {findings.results.task: Effects(findings) for findings in found}
    return TaskEffects(by_task, comparison)


def frame_hypotheses(results: Results) -> pd.DataFrame:
    """Test the hypotheses that a study stores, see :meth:`rnn_search.Study.hypotheses`."""
    rows = [
        {
            "statement": test.hypothesis.statement,
            "change": test.change,
            "expected": test.hypothesis.expect,
            "margin": of_task(test.hypothesis.margin),
            "effect": test.effect.mean if test.effect else math.nan,
            "low": test.effect.low if test.effect else math.nan,
            "high": test.effect.high if test.effect else math.nan,
            "pairs": test.effect.pairs if test.effect else 0,
            "verdict": ": ".join(filter(None, [test.verdict, test.problem])),
            "registered": test.mark,
        }
        for test in StudyFindings(results).hypotheses
    ]
    return pd.DataFrame(rows)
