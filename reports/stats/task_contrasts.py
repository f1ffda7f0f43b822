"""What changes do in several tasks: whether effects agree, and which tasks a change helps to solve.

Each task has the same architectures, so the same matched pairs estimate a change in each. Losses of
different tasks do not compare, so no mean is taken over tasks: the signs of the significant effects
are compared, and shares of solved networks where a task is solved or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.stats.design import Contrast
from reports.stats.effects import CONFIDENCE, Effect
from reports.stats.hypotheses import ContrastOutcomes
from reports.stats.replicates import adjust_by_holm

MIN_AGREEING = 2
"""Tasks with a significant effect of one sign from which a change is said to agree across tasks."""


@dataclass(frozen=True)
class TaskEffect:
    """A change in one task.

    Attributes:
        effect: its effect.
        p_adjusted: p-value after Holm's correction for all changes in all tasks.
        solved: its matched pairs by whether each network has solved the task, their p-value
            corrected in the same way; None for a task that is not solved or unsolved.
    """

    effect: Effect
    p_adjusted: float
    solved: ContrastOutcomes | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the effect is significant, corrected for all changes in all tasks."""
        return self.effect.is_significant and self.p_adjusted < 1 - CONFIDENCE

    @property
    def shares(self) -> tuple[float, float] | None:
        """Shares of the pairs whose network has solved the task before and after the change."""
        if self.solved is None or not self.solved.pairs:
            return None
        both, pairs = self.solved.both_good, self.solved.pairs
        return (both + self.solved.ruined) / pairs, (both + self.solved.rescued) / pairs


@dataclass(frozen=True)
class TaskContrast:
    """A change in all tasks that have its matched pairs.

    Attributes:
        contrast: the change.
        by_task: what it does, by the name of the task.
    """

    contrast: Contrast
    by_task: Mapping[str, TaskEffect]

    @property
    def helps(self) -> list[str]:
        """Tasks in which it improves the loss significantly."""
        return self._list_significant(True)

    @property
    def harms(self) -> list[str]:
        """Tasks in which it worsens the loss significantly."""
        return self._list_significant(False)

    def _list_significant(self, is_better: bool) -> list[str]:
        return [
            task
            for task, each in self.by_task.items()
            if each.is_significant and each.effect.is_improvement == is_better
        ]

    @property
    def agrees(self) -> bool:
        """Whether it has significant effects in several tasks, all of the same sign."""
        found = sorted((len(self.helps), len(self.harms)))
        return found[0] == 0 and found[1] >= MIN_AGREEING

    @property
    def agreement(self) -> str:
        """Whether the signs agree, for a reader: ``helps in 3 of 4, harms in 1``."""
        parts = [
            f"{verb} in {len(tasks)}"
            for verb, tasks in (("helps", self.helps), ("harms", self.harms))
            if tasks
        ]
        if not parts:
            return f"undecided in {len(self.by_task)}"
        parts[0] += f" of {len(self.by_task)}"
        return ", ".join(parts)


def compare_tasks(
    effects: Mapping[str, Sequence[Effect]],
    solved: Mapping[str, Sequence[ContrastOutcomes]],
) -> list[TaskContrast]:
    """Arrange the effects of changes by change and task.

    Args:
        effects: effects in each task.
        solved: matched pairs by whether each network has solved the task, of the tasks for which
            that is known.

    Returns:
        The changes, those with significant effects in most tasks first.
    """
    outcomes = [(task, each) for task, found in solved.items() for each in found]
    p_solved = adjust_by_holm(np.array([each.p for _, each in outcomes]))
    known = {
        (task, each.contrast): replace(each, p_adjusted=float(p))
        for (task, each), p in zip(outcomes, p_solved, strict=True)
    }
    listed = [(task, each) for task, found in effects.items() for each in found]
    p_effects = adjust_by_holm(np.array([each.p for _, each in listed]))
    changes: dict[Contrast, dict[str, TaskEffect]] = {}
    for (task, each), p in zip(listed, p_effects, strict=True):
        effect = TaskEffect(each, float(p), known.get((task, each.contrast)))
        changes.setdefault(each.contrast, {})[task] = effect
    found = [TaskContrast(contrast, by_task) for contrast, by_task in changes.items()]
    return sorted(found, key=lambda each: -len(each.helps) - len(each.harms))
