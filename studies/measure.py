"""Names, units, precision and columns of a study's losses: the one place that knows each task's."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from reports.stats.scale import NATS, Scale
from studies.attributes import OBJECTIVE_NAMES
from studies.config import StudyConfig

SPLITS = ("test", "validation")
"""Held-out splits, that which ranks replicates first."""

_UNITS = {"nat/target": ("nats per target", "nats"), "variance": ("of the variance",) * 2}
"""Unit of a value and of a difference, by the unit of the task."""


@dataclass(frozen=True)
class Measure:
    """How the losses of a study are named and measured.

    Attributes:
        name: name of a trial's value: ``validation loss``.
        unit: unit of a value: ``nats per byte``; "" for none.
        scale: name of the loss on any data, unit of a difference, direction and precision. Losses
            that may have any size and sign have significant digits.
        held_out: end of the names of the attributes with the losses on held-out data.
        held_out_unit: unit of these losses; "" for none.
        data: what a network is evaluated on: ``text``.
        window: what one loss on held-out data is of: ``evaluation window``.
        is_text: whether the losses are those of a text.
        curve: name of the points of a curve.
    """

    name: str
    unit: str
    scale: Scale = NATS
    held_out: str = "bits_per_byte"
    held_out_unit: str = "bits per byte"
    data: str = "text"
    window: str = "evaluation window"
    is_text: bool = True
    curve: str = "smoothed training loss"

    @property
    def loss(self) -> str:
        """Name of the loss on any data, as in "training loss"."""
        return self.scale.name

    @property
    def spec(self) -> str:
        """Format of a value."""
        return self.scale.value_spec

    def column(self, split: str) -> str:
        """Return the attribute of a trial with its loss on a held-out split."""
        return f"{split}_{self.held_out}"

    def name_loss(self, split: str) -> str:
        """Return the name of the loss on a split: ``test loss``."""
        return f"{split} {self.loss}"

    def format(self, value: float, unit: str | None = None) -> str:
        """Format a value with the unit of a difference, or with another one."""
        unit = self.scale.unit if unit is None else unit
        return f"{value:{self.spec}} {unit}".rstrip()

    def describe(self, value: float) -> str:
        """Format a value for a line of text: ``1.4321 nats``, of other tasks with its name."""
        return self.format(value) if self.is_text else f"{self.name} {self.format(value)}"


TEXT = Measure("loss", "")
"""Measure of the losses of a text, whatever the objective."""


def find_measure(config: StudyConfig) -> Measure:
    """Return how the losses of a study are named and measured."""
    if config.results is not None:
        name, unit = config.results.metric, config.results.unit
        scale = Scale(unit, config.direction == "maximize", ".6g", ".6g", name)
        curve = "intermediate value"
        return Measure(name, unit, scale, "loss", unit, is_text=False, curve=curve)
    if config.task_records:
        found = [find_measure(config.at_task(task)) for task in config.task_records]
        first, is_same = found[0], len({(each.loss, each.unit) for each in found}) == 1
        if is_same:
            return first
        # Losses of several kinds have no common name or unit.
        name, curve = OBJECTIVE_NAMES[config.objective], "smoothed training loss"
        scale = replace(first.scale, name="loss", unit="")
        return replace(first, name=name, unit="", scale=scale, held_out_unit="", curve=curve)
    name, task = OBJECTIVE_NAMES[config.objective], config.task_record
    if task is None:
        return Measure(name, f"nats per {config.token_name}")
    unit, short_unit = _UNITS.get(task.loss_unit, (task.loss_unit,) * 2)
    loss, data, window = task.loss_name, "sequences", "held-out sequence"
    name = name.replace("loss", loss)
    curve = f"smoothed training {loss}"
    scale = Scale(short_unit, False, ".3g", ".5g", loss)
    return Measure(name, unit, scale, "loss", unit, data, window, False, curve)


def choose_split(measure: Measure, has_loss: Callable[[str], bool]) -> str | None:
    """Return the held-out split whose loss ranks replicates; None if runs lack each.

    Args:
        measure: how the study's losses are named.
        has_loss: whether all complete runs have an attribute.
    """
    return next((split for split in SPLITS if has_loss(measure.column(split))), None)
