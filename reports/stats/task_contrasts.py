"""What changes do in several tasks: whether their effects agree.

Each task has the same architectures, so the same matched pairs estimate a change in each. Losses of
different tasks do not compare, so no mean is taken over tasks: the signs of the significant effects
are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.stats.design import Contrast
from reports.stats.effects import AdjustedEffect, Effect, adjust_effects

MIN_AGREEING = 2
"""Tasks with a significant effect of one sign from which a change is said to agree across tasks."""


@dataclass(frozen=True)
class TaskContrast:
    """A change in all tasks that have its matched pairs.

    Attributes:
        contrast: the change.
        by_task: its effect by the name of the task, corrected for all changes in all tasks.
    """

    contrast: Contrast
    by_task: Mapping[str, AdjustedEffect]

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


def compare_tasks(effects: Mapping[str, Sequence[Effect]]) -> list[TaskContrast]:
    """Arrange the effects of changes in each task by change, those significant in most first."""
    changes = _adjust(effects)
    found = [TaskContrast(contrast, by_task) for contrast, by_task in changes.items()]
    return sorted(found, key=lambda each: -len(each.helps) - len(each.harms))


def _adjust(
    effects: Mapping[str, Sequence[Effect]],
) -> dict[Contrast, dict[str, AdjustedEffect]]:
    """Correct effects for all changes in all tasks, and arrange them by change and task."""
    tasks = [task for task, found in effects.items() for _ in found]
    adjusted = adjust_effects([each for found in effects.values() for each in found])
    changes: dict[Contrast, dict[str, AdjustedEffect]] = {}
    for task, each in zip(tasks, adjusted, strict=True):
        changes.setdefault(each.effect.contrast, {})[task] = each
    return changes
