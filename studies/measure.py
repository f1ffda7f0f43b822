"""Names, units and formats of a study's losses, for every task."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from studies.attributes import OBJECTIVE_NAMES
from studies.config import StudyConfig
from studies.messages import add_unit, format_signed, is_missing
from studies.records import NEXT_TOKEN

VALUE = "value"
"""Column of the value of the study's objective."""

SPLITS = ("test", "validation")
"""Held-out splits, that which ranks replicates first."""

_UNITS = {
    "nat/byte": ("nats per byte", "nats"),
    "nat/token": ("nats per token", "nats"),
    "nat/target": ("nats per target", "nats"),
    "variance": ("of the variance", "of the variance"),
}
"""Unit of a value and of a difference, by the unit of the task."""

_SIGNIFICANT = 3
"""Significant digits of the range of a study's values with which a difference is shown."""

_MAX_DIGITS = 9


@dataclass(frozen=True)
class Measure:
    """A loss, or another number of a study: its name, unit, direction, format and column.

    Attributes:
        name: name of the number: ``validation loss``.
        unit: unit of a value: ``nats per byte``; "" for none.
        loss: name of the loss on any data, as in "training loss".
        difference_unit: short unit of a difference: ``nats``; "" for none.
        least: least value that there can be, and so the least end of the interval of a mean.
        spec: format of a value. Losses that may have any size and sign have significant digits.
        difference_spec: format of a difference, without its sign.
        column: column of trial tables that has it.
        split: held-out split whose evaluation windows compare the runs.
        held_out: end of the names of the attributes with the losses on held-out data; "" where the
            value is the only number.
        held_out_unit: unit of these losses; "" for none.
        data: what a network is evaluated on: ``text``.
        window: what one loss on held-out data is of: ``evaluation window``.
        held_out_spec: format of these losses.
        is_named: whether a line of text names it, because its unit does not say what it is.
        curve: name of the points of a curve.
    """

    name: str
    unit: str
    loss: str = "loss"
    difference_unit: str = "nats"
    higher_is_better: bool = False
    least: float = -math.inf
    spec: str = ".4f"
    difference_spec: str = ".3f"
    column: str = VALUE
    split: str = "validation"
    held_out: str = "bits_per_byte"
    held_out_unit: str = "bits per byte"
    held_out_spec: str = ".3f"
    data: str = "text"
    window: str = "evaluation window"
    is_named: bool = False
    curve: str = "smoothed training loss"

    @property
    def is_value(self) -> bool:
        """Whether it is the value of the study's objective."""
        return self.column == VALUE

    @property
    def axis_title(self) -> str:
        """Title of an axis of it."""
        return add_unit(self.name, self.unit)

    def held_out_column(self, split: str) -> str:
        """Return the column with the loss of a trial on a held-out split."""
        return f"{split}_{self.held_out}" if self.held_out else VALUE

    def name_loss(self, split: str) -> str:
        """Return the name of the loss on a split: ``test loss``."""
        return f"{split} {self.loss}" if self.held_out else self.name

    def on_split(self, split: str) -> "Measure":
        """Return the measure of the loss on a held-out split."""
        return replace(
            self,
            name=self.name_loss(split),
            unit=self.held_out_unit,
            column=self.held_out_column(split),
            split=split,
        )

    def choose_metric(self, has_loss: Callable[[str], bool]) -> "Measure":
        """Return the number that ranks replicates: the loss on a held-out split, else this one.

        ``has_loss`` says whether all complete runs have an attribute.
        """
        for split in SPLITS if self.held_out else ():
            if has_loss(self.held_out_column(split)):
                return self.on_split(split)
        return self

    def with_decimals(self, values: Iterable[float]) -> "Measure":
        """Return the measure with the number of decimals that distinguishes some values.

        If they would show one as zero that is not, all have as many significant digits instead.
        """
        known = [value for value in values if math.isfinite(value)]
        spread = max(known) - min(known) if known else 0.0
        place = round(math.log10(spread)) if spread > 0 else 0
        digits = min(_MAX_DIGITS, max(0, _SIGNIFICANT - place))
        shows_all = all(abs(value) >= 10.0**-digits for value in known if value)
        spec = f".{digits}f" if shows_all else f".{_SIGNIFICANT}g"
        return replace(self, spec=spec, difference_spec=spec, held_out_spec=spec)

    def to_loss(self, values: Any) -> Any:
        """Return values of which the least is the best: the same, or their negatives."""
        return -values if self.higher_is_better else values

    def format_number(self, value: float) -> str:
        """Format a value without its unit."""
        return f"{value:{self.spec}}".replace("-", "−")

    def format(self, value: float) -> str:
        """Format a value with its unit."""
        return f"{self.format_number(value)} {self.unit}".rstrip()

    def describe(self, value: float) -> str:
        """Format a value for a line of text: ``1.4321 nats``, with its name if it is named."""
        text = f"{self.format_number(value)} {self.difference_unit}".rstrip()
        return f"{self.name} {text}" if self.is_named else text

    def format_size(self, difference: float) -> str:
        """Format the size of a difference with its unit: ``0.399 nats``."""
        return f"{difference:{self.difference_spec}} {self.difference_unit}".rstrip()

    def format_difference(self, difference: float) -> str:
        """Format a difference with its sign and unit: ``−0.399 nats``."""
        number = format_signed(difference, self.difference_spec)
        return f"{number} {self.difference_unit}".rstrip()

    def format_interval(self, low: float, high: float) -> str:
        """Format the ends of an interval to follow a difference; "" if they are unknown."""
        if is_missing(low):
            return ""
        ends = [format_signed(end, self.difference_spec) for end in (low, high)]
        return f" [{ends[0]}, {ends[1]}]"


TEXT = Measure("loss", "")
"""Measure of the losses of a text, whatever the objective."""

SOLVED = Measure(
    "share solved",
    "",
    loss="share solved",
    difference_unit="",
    higher_is_better=True,
    spec=".0%",
    difference_spec=".0%",
)
"""Measure of effects on tasks that say when they are solved: the share of the runs that are."""

_SEQUENCES = Measure(
    "loss",
    "",
    difference_unit="",
    spec=".5g",
    difference_spec=".3g",
    held_out="loss",
    held_out_unit="",
    held_out_spec=".5g",
    data="sequences",
    window="held-out sequence",
    is_named=True,
)
"""Measure of the losses of sequences, whatever the task."""


def find_measure(config: StudyConfig) -> Measure:
    """Return how the value of a study's objective is named and formatted."""
    if config.own_metric is not None:
        name = config.own_metric.metric
        unit = config.own_metric.unit
        return Measure(
            name,
            unit,
            loss=name,
            difference_unit=unit,
            higher_is_better=config.direction == "maximize",
            spec=".6g",
            difference_spec=".6g",
            held_out="",
            held_out_unit=unit,
            held_out_spec=".6g",
            is_named=True,
            curve="intermediate value" if config.is_imported else name,
        )
    task = config.task_record
    if task is None:
        return _find_common_measure(config)
    unit, difference_unit = _UNITS.get(task.loss_unit, (task.loss_unit, task.loss_unit))
    base = TEXT if task.loss == NEXT_TOKEN else _SEQUENCES
    return replace(
        base,
        name=OBJECTIVE_NAMES[config.objective].replace("loss", task.loss_name),
        unit=unit,
        loss=task.loss_name,
        difference_unit=difference_unit,
        least=-math.inf if task.loss == "own" else 0.0,
        held_out_unit=base.held_out_unit or unit,
        curve=f"smoothed training {task.loss_name}",
    )


def _find_common_measure(config: StudyConfig) -> Measure:
    """Return the measure of several tasks: losses of several kinds have no common name or unit."""
    found = [find_measure(config.at_task(task)) for task in config.task_records]
    if len({(measure.loss, measure.unit) for measure in found}) == 1:
        return found[0]
    return replace(
        _SEQUENCES, name=OBJECTIVE_NAMES[config.objective], curve="smoothed training loss"
    )
