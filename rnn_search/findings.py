"""What a study says: effects and verdicts. Slow to import: pandas."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from reports.analysis.leaderboard import (
    LeaderboardEntry,
    StudySummary,
    summarize_study,
)
from reports.errors import ReportError
from reports.findings import StudyFindings, compare_across_tasks
from reports.narrative import (
    describe_insignificance,
    describe_noise,
    explain_missing_effects,
    list_warnings,
)
from reports.phrases import (
    describe_agreement,
    describe_smallest,
    name_unit,
    to_plain,
)
from reports.results import Results, find_replicates
from reports.stats.effects import Effect
from reports.stats.task_contrasts import TaskContrast
from reports.study_reader import read_results
from reports.tables import (
    Column,
    Table,
    contrast_columns,
    tabulate_conditional,
    tabulate_effects,
    tabulate_hypotheses,
    tabulate_leaderboard,
)
from studies.errors import StudiesError
from studies.storage.changes import list_derived
from studies.storage.open import read_storage

if TYPE_CHECKING:  # slow to import
    import plotly.graph_objects as go


class _Printed(ABC):
    """Findings that are printed as their table, with remarks below it."""

    _left_out: ClassVar[tuple[str, ...]] = ()
    """Columns of data frames that are not printed."""

    def __repr__(self) -> str:
        text = self._tabulate().to_text(*self._left_out)
        return "\n".join(filter(None, [text, *self._list_remarks()]))

    def _repr_html_(self) -> str:
        remarks = "".join(f"<p>{escape(each)}</p>" for each in self._list_remarks())
        return self._tabulate().__html__() + remarks

    @abstractmethod
    def _tabulate(self) -> Table[Any]:
        """Return the table."""

    @abstractmethod
    def _list_remarks(self) -> list[str]:
        """Return the lines below the table, the unit first; empty ones are left out."""


@dataclass(frozen=True, eq=False, repr=False)
class Effects(_Printed):
    """Main effects of the parameters of a study; printed as their table.

    Attributes:
        findings: findings of the study, with the replicates of studies that derive from it.
    """

    findings: StudyFindings

    _left_out = ("source",)  # the same in each row of most tables, and a remark says it

    @property
    def effects(self) -> list[Effect]:
        """The effects, with their contrasts."""
        return self.findings.effects

    @property
    def unit(self) -> str:
        """Unit of the effects; "" for none."""
        return self.findings.results.measure.unit

    @property
    def warnings(self) -> list[str]:
        """What a reader of the effects must know, such as why there are none, in clauses."""
        findings, effects = self.findings, self.effects
        warnings = [to_plain(warning) for warning in list_warnings(findings)]
        if not effects:
            warnings.append(explain_missing_effects(findings))
        elif all(effect.reason for effect in effects):
            warnings.append(describe_insignificance(effects))
        return warnings

    @property
    def table(self) -> pd.DataFrame:
        """One row per contrast.

        Columns: ``parameter``, the values ``before`` and ``after``, their mean difference
        ``effect`` (negative is better, unless higher values are) with the ends ``low`` and ``high``
        of its 95% interval, the number of ``pairs``, whether it is ``significant``: whether the
        interval excludes zero, without a correction for the number of effects, the ``reason`` why
        it is not tested, and the ``source`` of the interval. Where the effect depends on
        another parameter, ``depends_on`` names that, and ``least`` and ``greatest`` are the effects
        at its values (``docs/statistics.md``). Where the study or its task says when a trial is
        solved, ``solved_before`` and ``solved_after`` are shares of the pairs, and ``solved_p`` the
        p-value of an exact sign test, corrected for all changes. Without matched pairs the effects
        are by least squares over all parameters.
        """
        return self._tabulate().to_frame()

    def _tabulate(self) -> Table[Effect]:
        spec = self.findings.results.scale.value_spec
        return tabulate_effects(
            self.effects, self.findings.conditional, self.findings.solved, spec=spec
        )

    @property
    def conditional(self) -> pd.DataFrame:
        """One row per contrast, other parameter and value of it.

        Columns: those of a contrast, as in :attr:`table`, here within the ``value`` of the
        parameter ``by``; all values have the same pairs. ``range`` is the difference between the
        greatest and the least effect by this parameter, ``differs`` whether it is significant,
        ``rivals_main`` whether it is also at least as large as the main effect, and
        ``opposite_signs`` whether significant effects have both signs. ``docs/statistics.md`` says
        how significance is corrected; the intervals are not.
        """
        return tabulate_conditional(self.findings.conditional).to_frame()

    def plot(self) -> "go.Figure":
        """Plot each effect with its interval; a notebook displays the figure."""
        from reports.charts.comparison_plots import plot_effects

        return plot_effects(self.effects, self.unit)

    def _list_remarks(self) -> list[str]:
        unit = name_unit("effects", self.unit) if self.effects else ""
        return [
            unit,
            *describe_noise(self.findings)[:1],
            *(f"warning: {each}" for each in self.warnings),
        ]


@dataclass(frozen=True, eq=False, repr=False)
class TaskEffects:
    """Main effects in each of several tasks; printed as their table.

    Attributes:
        by_task: effects in each task, by its name.
        contrasts: what each change does in all tasks.
    """

    by_task: dict[str, Effects]
    contrasts: list[TaskContrast]

    @property
    def table(self) -> pd.DataFrame:
        """One row per task and contrast: ``task``, then the columns of :attr:`Effects.table`.

        ``p_adjusted`` is the p-value corrected for all changes in all tasks, by which a change
        helps or harms in :attr:`agreement`.
        """
        p_values = {
            (task, each.contrast): found.p_adjusted
            for each in self.contrasts
            for task, found in each.by_task.items()
        }
        tables = [
            each.table.assign(
                task=task,
                p_adjusted=[p_values.get((task, e.contrast), math.nan) for e in each.effects],
            )
            for task, each in self.by_task.items()
        ]
        table = pd.concat(tables, ignore_index=True)
        return table[["task", *table.columns.drop("task")]]

    @property
    def agreement(self) -> pd.DataFrame:
        """One row per contrast: its values, and in how many ``tasks`` it ``helps`` and ``harms``.

        It does so in the tasks where its effect is significant, corrected for all changes in all
        tasks; ``agrees`` tells whether these are two or more, of one sign.
        """
        columns = [
            *contrast_columns(lambda row: row.contrast),
            Column("", lambda row: len(row.by_task), name="tasks"),
            Column("", lambda row: len(row.helps), name="helps"),
            Column("", lambda row: len(row.harms), name="harms"),
            Column("", lambda row: row.agrees, name="agrees"),
        ]
        return Table("agreement", self.contrasts, columns).to_frame()

    def __repr__(self) -> str:
        named = [f"task {name}\n{each!r}" for name, each in self.by_task.items()]
        return "\n".join([*named, describe_agreement(self.contrasts)])

    def _repr_html_(self) -> str:
        return self.table.to_html(na_rep="")


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts(_Printed):
    """Verdicts on the replicated architectures of a study; printed as their table.

    Attributes:
        summary: the architectures, ranked and compared.
        results: results of the study.
    """

    summary: StudySummary
    results: Results

    @property
    def unit(self) -> str:
        """Unit of the losses and differences; "" for none."""
        return self.results.metric.unit

    @property
    def margin(self) -> float:
        """Largest difference to the best that makes no difference, ``refinement.margin``."""
        assert self.summary.judgement is not None
        return self.summary.judgement.margin

    @property
    def smallest(self) -> str | None:
        """The smallest architecture that is as good as the best and smaller than the best mean.

        None if no smaller one is shown to be, or if there is none: the best mean may itself be the
        smallest. The printed table says which.
        """
        return self.summary.smallest.label if self.summary.smallest else None

    @property
    def table(self) -> pd.DataFrame:
        """One row per architecture, the best mean first.

        Columns: ``architecture``, ``runs``, mean ``loss`` (adjusted for the order of the data where
        numbers of runs differ) with the ends ``low`` and ``high`` of its 95% interval,
        ``difference`` to the best mean, the ``verdict``: ``worse``, ``as good`` (``at_most`` is
        below the margin) or ``undecided``, of the best mean ``best mean``; ``at_most``: upper
        confidence bound of the difference to the best architecture, whichever that is; and
        ``parameters`` (``docs/statistics.md``). Losses and differences are in ``unit``.
        """
        return self._tabulate().to_frame()

    def _tabulate(self) -> Table[LeaderboardEntry]:
        return tabulate_leaderboard(self.results, self.summary, self.summary.entries)

    def _list_remarks(self) -> list[str]:
        smallest = to_plain(describe_smallest(self.summary, self.unit))
        return [name_unit("losses and differences", self.unit), smallest]


def find_effects(results: Results, storage: str) -> Effects:
    """Estimate the effects in a study's results, see :meth:`rnn_search.Study.effects`.

    Args:
        results: results with a complete trial.
        storage: URL of the storage, in which studies of replicates may derive from it.
    """
    (findings,) = _add_replicates([results], storage)
    return Effects(findings)


def find_hypotheses(results: Results, storage: str) -> pd.DataFrame:
    """Test the hypotheses that a study stores; arguments are those of `find_effects`."""
    (findings,) = _add_replicates([results], storage)
    return tabulate_hypotheses(findings.hypotheses, findings.results).to_frame()


def compare_tasks(results: Results, storage: str) -> TaskEffects:
    """Estimate the effects in each of several tasks; arguments are those of `find_effects`."""
    found = _add_replicates(results.split_tasks(), storage)
    comparison = compare_across_tasks(each.results for each in found)
    by_task = {each.results.task: Effects(each) for each in found}
    return TaskEffects(by_task, comparison.contrasts if comparison else [])


def _add_replicates(parts: Sequence[Results], storage: str) -> list[StudyFindings]:
    """Return findings that know the replicates in studies of a storage that derive from a study."""
    derived = _read_derived(storage, parts[0].name)
    return [StudyFindings(replace(e, replicates=find_replicates(e, derived))) for e in parts]


def _read_derived(url: str, source: str) -> list[Results]:
    """Read the studies of a storage that derive from a study."""
    derived = []
    with closing(read_storage(url)) as storage:
        for name in list_derived(storage, source):
            with suppress(StudiesError, ReportError):  # damaged, or deleted meanwhile
                derived.append(read_results(storage, name, False, False, False))
    return derived


def find_verdicts(results: Results) -> Verdicts:
    """Compare the replicated architectures of a study, see :meth:`rnn_search.Study.verdicts`."""
    summary = summarize_study(results)
    if summary.judgement is None:
        raise ReportError(
            f"study {results.name!r} has no replicates to compare: expected one derived with "
            "refinement.replicates of 2 or more"
        )
    return Verdicts(summary, results)
