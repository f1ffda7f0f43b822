"""What a report says about a task other than text."""

from dataclasses import dataclass

from reports.analysis.leaderboard import LeaderboardEntry
from studies.records import Direction, Floors, TaskRecord

LOSS = "loss"
"""Name of the loss among the numbers of floors and slices."""

_LOSSES = {
    "cross-entropy": "cross-entropy of the classes, in nats per target",
    "squared error": "mean squared error, in the square of the data’s units",
    "standardized squared error": "mean squared error of targets with mean 0 and standard "
    "deviation 1 on the training split: a fraction of their variance",
    "own": "that of the task’s own method loss",
}

RECURRENT = "small network with memory"
"""Name of the one floor that keeps its states."""

_FLOORS = {
    "recurrent": RECURRENT,
    "memoryless": "small network without memory",
    "last_value": "last value",
    "constant": "best constant",
}
"""Name of each floor, in the order of a table."""


@dataclass(frozen=True)
class FloorRow:
    """A row of the table of floors.

    Attributes:
        name: what predicts.
        loss: its validation loss.
        metrics: its metrics by name, as far as they are known.
    """

    name: str
    loss: float
    metrics: dict[str, float]


def list_floors(floors: Floors | None, best: LeaderboardEntry) -> list[FloorRow]:
    """List the floors below the best network; empty if none are stored.

    Args:
        floors: floors of the study.
        best: its best architecture, whose numbers are those of the validation split.
    """
    if floors is None:
        return []
    rows = [FloorRow(best.full_label, best.validation_loss, best.validation_metrics)]
    for key, name in _FLOORS.items():
        if numbers := getattr(floors, key):
            metrics = {metric: value for metric, value in numbers.items() if metric != LOSS}
            rows.append(FloorRow(name, numbers[LOSS], metrics))
    return rows


def describe_direction(direction: Direction) -> str:
    """Say whether a higher or a lower value of a metric is better."""
    return "higher is better" if direction == "maximize" else "lower is better"


def describe_loss(task: TaskRecord) -> str:
    """Describe the loss of a task."""
    return _LOSSES[task.loss]
