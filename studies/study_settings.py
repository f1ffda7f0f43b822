"""Settings of a study file: tables `[training]`, `[evaluation]`, `[pruning]` and smaller ones."""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    create_model,
    model_validator,
)

from rnn.config import (
    OPTIMIZERS,
    WHOLE_SEQUENCE,
    OptimizerConfig,
    OptimizerName,
    ParamValue,
    TrainingPrecision,
    count_updates,
)
from studies.records import Direction, StrictModel, unit, with_bounds

PrecisionSetting = Literal["auto", TrainingPrecision]
"""Precision of a study; ``auto`` becomes ``bf16`` or ``fp32`` when the study is created."""

PER_WORKER = {"lease", "checkpoint", "outage", "keep_weights"}
"""Settings that each worker chooses independently."""

SEQUENCE = "sequence"
"""As ``bptt_steps``: one update for each sequence, by its whole gradient."""

UPDATE_EVERY = "update_every"
"""Parameter: number of steps between two updates, in studies that vary it."""

_WindowSteps = Annotated[int, Field(ge=1, le=10_000)]

_OPTIMIZER_FIELDS = {
    "optimizer" if field.name == "name" else field.name: field for field in fields(OptimizerConfig)
}
OPTIMIZER_PARAMS = tuple(_OPTIMIZER_FIELDS)
"""Training settings that concern the optimizer alone."""


class _StepSettings(StrictModel):
    """Training settings that come before those of the optimizer."""

    steps: PositiveInt = 10_000
    """Number of time steps to train for; rounded up to whole [updates](#updates)."""
    updates: PositiveInt | None = None
    """Number of [updates](#updates) to train for, in place of `steps`."""
    batch_size: PositiveInt = 256
    """Number of streams, the sequences that are read in parallel."""
    sequence_length: Annotated[int, Field(ge=2)] = 1000
    """Tokens of text that a stream reads from a random start, where the states are zero."""
    log_every: PositiveInt = 50
    """Steps between two log points, the points of a training curve; rounded up as `steps` are."""
    eval_every: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Updates between two points of the [held-out curves](#held-out-curves). `"auto"`: a twentieth
    of the training; fewer points if they would cost more than some 3%. 0: none."""


if TYPE_CHECKING:

    class _OptimizerSettings(_StepSettings, OptimizerConfig):
        optimizer: OptimizerName = OptimizerConfig().name

else:  # in this order, study files list them, and a grid varies them
    _OptimizerSettings = create_model(
        "_OptimizerSettings",
        __base__=_StepSettings,
        **{
            name: (with_bounds(field.type), field.default)
            for name, field in _OPTIMIZER_FIELDS.items()
        },
    )


class TrainingSettings(_OptimizerSettings):
    """How each network is trained; see :class:`rnn.training.loop.TrainConfig`.

    The settings of the optimizer are those of :class:`rnn.config.OptimizerConfig`.
    """

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Weight of the past in the smoothed training loss, an exponential moving average. It starts
    at 3 nats per token of text, and at the first loss of other tasks."""
    bptt_steps: _WindowSteps | Literal["sequence"] = 1
    """Number of steps that a gradient goes back. `"sequence"`: the whole sequence, with one update
    at its end."""
    update_every: _WindowSteps = 1
    """Number of steps between two [updates](#updates) of the weights; at most `bptt_steps`, unless
    that is 1."""

    @model_validator(mode="after")
    def _check_log_points(self) -> "TrainingSettings":
        if self.updates is None and self.log_every > self.steps:
            raise ValueError(
                f"log_every is {self.log_every} and steps {self.steps}: expected log_every of at "
                "most steps, because a trial's value is read at its log points; set "
                "training.log_every"
            )
        return self

    @property
    def length(self) -> "TrainingLength":
        """How long trials train, as it is stated in steps."""
        return TrainingLength(steps=self.steps, log_every=self.log_every)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The settings of the optimizer."""
        return OptimizerConfig(*(getattr(self, name) for name in OPTIMIZER_PARAMS))

    @property
    def gradient_window(self) -> tuple[int, int]:
        """W and U, as :class:`rnn.config.TrialConfig` has them."""
        if isinstance(self.bptt_steps, str):
            return WHOLE_SEQUENCE, WHOLE_SEQUENCE
        return self.bptt_steps, self.update_every


LENGTH_SETTINGS = ("steps", "updates", "log_every")
"""Training settings that say how long trials train, and where their log points are."""

TRAINING_PARAMS = tuple(
    name for name in TrainingSettings.model_fields if name not in (*LENGTH_SETTINGS, "eval_every")
)
"""Training settings that a grid can vary: trials are compared at the same log points."""

_SPECIFIC = {name for traits in OPTIMIZERS.values() for name in traits.settings}
"""Training settings that not all optimizers use."""


def uses_setting(optimizer: str, name: str, bptt_steps: ParamValue = 1) -> bool:
    """Return whether a trial with an optimizer and ``bptt_steps`` uses a training setting."""
    if name == UPDATE_EVERY:
        return bptt_steps != SEQUENCE
    return name not in _SPECIFIC or name in OPTIMIZERS[optimizer].settings


def used_params(params: Mapping[str, Any], training: TrainingSettings) -> dict[str, Any]:
    """Return a trial's parameters without the training settings that it does not use."""
    optimizer = str(params.get("optimizer", training.optimizer))
    window = params.get("bptt_steps", training.bptt_steps)
    return {name: params[name] for name in params if uses_setting(optimizer, name, window)}


WINDOW_PARAMS = ("sequence_length", "warmup_steps", "bptt_steps", UPDATE_EVERY)
"""Training settings that :func:`round_up_length` reads and that a grid can vary."""


def check_window(settings: TrainingSettings) -> None:
    """Check that the gradient of an update reaches all of its losses.

    Raises:
        ValueError: if it does not.
    """
    window, every = settings.gradient_window
    if 1 < window < every:
        raise ValueError(
            f"bptt_steps is {window} and update_every {every}: expected update_every of at most "
            f"bptt_steps, because a gradient that goes back {window} steps does not reach all "
            f"{every} losses of an update, or bptt_steps = 1, whose gradients cross no step; "
            f"exclude = [{{ bptt_steps = {window}, update_every = {every} }}] leaves out such "
            "trials of a grid"
        )


class TrainingLength(StrictModel):
    """How long the trials of a task train: to the end of an update, with one at each log point.

    Attributes:
        log_every: number of steps between two log points.
    """

    steps: PositiveInt
    log_every: PositiveInt


def round_up_length(
    length: TrainingLength, trials: Collection[tuple[TrainingSettings, int]]
) -> TrainingLength:
    """Return the least length of trials that has an update at each log point and at the end.

    Args:
        length: stated length; its steps do not count where the settings state ``updates``.
        trials: training settings of each trial of a task, and T, the steps of its sequences.

    Raises:
        ValueError: if the losses of an update lie further back than its gradient goes, the updates
            of trials coincide too seldom, or a warm-up has more updates than the training.
    """
    for settings, _ in trials:
        check_window(settings)
    windows = {(min(settings.gradient_window[1], T), T) for settings, T in trials}
    everys = [every for every, _ in windows]
    # The last window of a sequence is shorter where U does not divide T.
    whole = [T if T % every else every for every, T in windows]
    updates = next((settings.updates for settings, _ in trials), None)
    found = length
    for multiple in (1, math.lcm(*everys), math.lcm(*whole)):
        steps = _ceil(length.steps, multiple)
        if updates is not None:
            steps = _count_steps(updates, windows)
        log_every = min(steps, _ceil(length.log_every, multiple))
        found = TrainingLength(steps=steps, log_every=log_every)
        if _has_updates_at_log_points(found, windows):
            break
    if len(windows) > 1 and updates is None and found.steps > 2 * length.steps:
        raise ValueError(
            f"training.steps is {length.steps} and training.log_every {length.log_every}: expected "
            f"multiples of {multiple}, because the weights of different trials are updated after "
            "different steps, and losses are compared where all are"
        )
    for settings, sequence_steps in trials:
        count = count_updates(found.steps, sequence_steps, settings.gradient_window[1])
        if settings.warmup_steps > count:
            raise ValueError(
                f"training.warmup_steps is {settings.warmup_steps} and training.steps "
                f"{found.steps}, which have {count} updates: expected warmup_steps of "
                "at most the updates"
            )
    return found


_Windows = Collection[tuple[int, int]]
"""U, at most T, and T, the number of steps of a sequence, of trials."""


def _ceil(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _count_steps(updates: int, windows: _Windows) -> int:
    lengths = set()
    for every, sequence_steps in windows:
        sequences, rest = divmod(updates, -(-sequence_steps // every))
        lengths.add(sequences * sequence_steps + rest * every)
    if len(lengths) > 1:
        raise ValueError(
            f"training.updates is {updates}, which are {min(lengths)} to {max(lengths)} steps in "
            "trials of one task: expected training.steps, so that all train as long"
        )
    return lengths.pop()


def _has_updates_at_log_points(length: TrainingLength, windows: _Windows) -> bool:
    """Return whether a window of updates ends at every log point, and at the last step."""
    for every, sequence_steps in windows:
        # Log points fall on the same steps of the sequences again after so many.
        period = sequence_steps // math.gcd(length.log_every, sequence_steps)
        count = min(period, length.steps // length.log_every)
        points = [number * length.log_every for number in range(1, count + 1)]
        if any(step % sequence_steps % every for step in [*points, length.steps]):
            return False
    return True


# ------------------------------------------------------------------ smaller tables


DEFAULT_LEASE_SECONDS: float = 120
"""Duration of a lease, unless its worker chooses another; also that of an unreadable lease."""

MAX_LEASE_SECONDS: float = 7 * 86400
"""Longest duration of a lease: trials under a longer one might never run again."""


class EvaluationSettings(StrictModel):
    """How each trained network is evaluated."""

    windows: PositiveInt = 256
    """Maximum number of evaluation windows of text, evenly spaced over the split. For other tasks:
    number of held-out sequences, unless the task fixes it."""
    window_length: Annotated[int, Field(ge=2)] = 1000
    """Tokens in a window of text."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Final fraction of the training over which the weights are averaged; the mean is evaluated and
    saved. 0 for the last weights."""


class PruningSettings(StrictModel):
    """When to prune trials that are unlikely to finish among the best."""

    enabled: bool = False
    """Whether to prune; `--prune` sets it."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the trials to keep, in each task: what the next study needs as its
    `refinement.top`. All runs of an architecture count as one."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Share of these trials that is expected to survive, at least."""
    audit: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Number of architectures, chosen at random, that are trained to the end whatever the pruner
    decides, to measure what it loses; at most a tenth of all. 0 measures nothing."""


class LeaseSettings(StrictModel):
    """When a worker loses its trials."""

    seconds: Annotated[float, Field(ge=1, le=MAX_LEASE_SECONDS), unit("s")] = DEFAULT_LEASE_SECONDS
    """Time without a heartbeat after which a trial is requeued."""


class CheckpointSettings(StrictModel):
    """How often checkpoints are written."""

    seconds: Annotated[PositiveFloat, unit("s")] = 60
    """Time between two checkpoints of a running trial."""


class OutageSettings(StrictModel):
    """How long a worker waits for its storage."""

    seconds: Annotated[float, Field(ge=0), unit("s")] = 600
    """Time that a worker waits for a storage that does not answer."""


class MetricSettings(StrictModel):
    """The value of trials that are no networks of this program."""

    metric: str = Field(default="value", min_length=1)
    """Name of the value."""
    unit: str = ""
    """Unit of the value; `""` for none."""
    direction: Direction = "minimize"
    """Whether a lower value is better (`minimize`) or a higher one (`maximize`)."""


def _check_function(spec: str) -> str:
    source, _, name = spec.rpartition(":")
    if not source.endswith(".py") or not name.isidentifier():
        raise ValueError("expected a function of a file, as in train.py:train")
    return spec


class LoopSettings(MetricSettings):
    """A [training loop of your own](../how-to/your-own-loop.md), in place of networks of a task."""

    steps: PositiveInt = 1
    """Number of steps of a trial, in whatever the loop counts."""
    log_every: PositiveInt = 1
    """Steps between two log points; values that are logged between them are not stored."""
    function: Annotated[str, AfterValidator(_check_function)] | None = None
    """Function that runs one trial and returns its value, as `FILE.py:name`, for `rnn-search run`;
    by default a script claims the trials."""

    @model_validator(mode="after")
    def _check_log_points(self) -> "LoopSettings":
        if self.log_every > self.steps:
            raise ValueError(
                f"log_every is {self.log_every} and steps {self.steps}: expected log_every of at "
                "most steps"
            )
        return self


class ImportedResults(MetricSettings):
    """Results that another program recorded, in place of a grid to train.

    Attributes:
        source: file or study that the results were read from, for a reader.
        parameters: names of the parameters, in the order of the source.
        notes: what the import decided or left out, one sentence each.
        is_adaptive: whether a sampler may have chosen later rows by the results of earlier ones.
    """

    source: str
    parameters: list[str]
    notes: list[str] = []
    is_adaptive: bool = False
