"""Results of a study of several tasks, compared between the tasks."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from reports.analysis.audited_effects import compute_study_effects
from reports.analysis.outcomes import build_outcome_table
from reports.data.results import Results
from reports.data.trial_table import metric_column
from reports.stats.hypotheses import compute_outcomes
from reports.stats.task_contrasts import TaskContrast, compare_tasks
from studies.records import TaskRecord

_SOLVED, _UNSOLVED = 0.0, 1.0
"""Stand for values: of outcomes, the lower is the better."""


@dataclass(frozen=True)
class TaskComparison:
    """What a study of several tasks says about all of them.

    Attributes:
        name: name of the study.
        tasks: records of the tasks that have complete trials, by name.
        contrasts: the changes.
        solved: numbers of complete networks that have solved a task, and of all, by task.
    """

    name: str
    tasks: dict[str, TaskRecord]
    contrasts: list[TaskContrast]
    solved: dict[str, tuple[int, int]]


def compare_across_tasks(results: Iterable[Results]) -> TaskComparison | None:
    """Compare the results of each of several tasks; None for those of one.

    Args:
        results: results of each task of a study, of :meth:`Results.split_tasks`.
    """
    tasks = {each.task: each for each in results if each.task}
    if not tasks:
        return None
    judged = {name: judged for name, each in tasks.items() if (judged := _judge_solved(each))}
    return TaskComparison(
        next(iter(tasks.values())).name,
        {name: each.config.list_tasks()[""] for name, each in tasks.items()},
        compare_tasks(
            {name: compute_study_effects(each).effects for name, each in tasks.items()},
            {
                name: compute_outcomes(build_outcome_table(each, (_SOLVED + _UNSOLVED) / 2))
                for name, each in judged.items()
            },
        ),
        {
            name: (int((each.complete["value"] == _SOLVED).sum()), len(each.complete))
            for name, each in judged.items()
        },
    )


def _judge_solved(results: Results) -> Results | None:
    """Return results with outcomes as values; None if the task does not say when it is solved."""
    task, table = results.config.task_record, results.table
    if task is None or not task.solved:
        return None
    columns = {name: metric_column("validation", name) for name in task.solved}
    if any(column not in table for column in columns.values()):
        return None
    solved = [
        task.has_solved({name: row[column] for name, column in columns.items()})
        for row in table[list(columns.values())].to_dict("records")
    ]
    values = np.where(table["value"].notna(), np.where(solved, _SOLVED, _UNSOLVED), np.nan)
    return replace(results, table=table.assign(value=values))
