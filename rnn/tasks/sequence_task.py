"""Batches and evaluation of any task but text.

T is the number of time steps, B the number of streams.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rnn.config import TaskSpec
from rnn.engines import Engine
from rnn.errors import TaskError, is_out_of_memory
from rnn.network import Batch
from rnn.own_code import describe_error
from rnn.tasks.task import SPLITS, Array, Direction, FloatArray, SavedTask, Split, is_built_in
from rnn.training.evaluation import (
    CurveData,
    HeldOutResult,
    evaluate_sequences,
    select_curve_data,
    standard_error,
)

_SCALING_COUNT = 1024
"""Training sequences from which means and standard deviations are measured."""

_HELD_OUT_SEED = 2**40
"""Seed of the data of validation and test, which no seed of a study equals."""

_RESERVED_METRICS = {"loss", "stderr", "windows", "bits_per_byte"}
"""Results of held-out data that every trial records."""

_RESULTS = ("inputs", "targets", "mask", "resets", "slices")

_KINDS = {"numbers": "iubf", "integers": "iub", "booleans": "b"}
"""Kinds of NumPy's dtypes."""


class Scaling(NamedTuple):
    """Means and standard deviations of the numbers of a step.

    Attributes:
        mean: (size,)
        std: (size,), 1 for a constant.
    """

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]

    def standardize(self, values: Array) -> FloatArray:
        """Return numbers (…, size) with mean 0 and standard deviation 1."""
        return ((values - self.mean) / self.std).astype(np.float32)


class SequenceTask:
    """A task of any class that keeps the contract of :mod:`rnn.tasks.task`.

    Args:
        definition: instance of the class.
        name: name of the task, in messages.

    Attributes:
        definition: the instance.
        name: the name.
        initial_loss: None: the smoothed loss starts at the first loss.
        metrics: whether to maximize or minimize each metric, by name.
        eval_lengths: further lengths at which networks are evaluated.
        solved: bounds from which a network has solved the task, of metrics or of ``loss``.
        loss_unit: unit of a loss that has no fixed one; "" for none.
        output_names: a name for each number to predict, if the definition has any.
        is_standardized: whether numbers are standardized.
        is_consecutive: whether each held-out sequence continues the one before, with its states.
        resets_often: see :class:`rnn.config.TaskSpec`.
        notices: what the user should know about the data, one sentence each.

    Raises:
        TaskError: if an attribute of the definition is missing or invalid.
    """

    initial_loss = None

    def __init__(self, definition: Any, name: str) -> None:
        self.definition = definition
        self.name = name
        self._held_out: dict[tuple[Split, int, int | None], Batch] = {}
        self._inputs, self._reads_tokens = self._read_size("input_size", "vocabulary")
        self._outputs, self._predicts_classes = self._read_size("output_size", "classes")
        default = {"accuracy": "maximize"} if self._predicts_classes else {"mae": "minimize"}
        try:
            self.metrics: dict[str, Direction] = dict(getattr(definition, "metrics", default))
            self.eval_lengths = list(getattr(definition, "eval_lengths", ()))
            self.output_names = list(getattr(definition, "output_names", ()))
            self.solved: dict[str, float] = dict(getattr(definition, "solved", {}))
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"task {name}: {error}: expected metrics and solved to be dicts, eval_lengths and "
                "output_names to be lists"
            ) from error
        self.is_standardized = bool(getattr(definition, "standardize", False))
        self.is_consecutive = bool(getattr(definition, "consecutive", False))
        self.resets_often = bool(getattr(definition, "resets_often", False))
        self.notices = list(getattr(definition, "notices", ()))
        self.loss_unit = str(getattr(definition, "loss_unit", ""))
        if not callable(getattr(definition, "sample", None)):
            raise TaskError(
                f"task {name} has no method sample: expected sample(self, split, rng, count, "
                "length=None)"
            )
        parameters = inspect.signature(definition.sample).parameters
        self._takes_index = "index" in parameters
        self._takes_length = "length" in parameters
        self._check_results()

    def _check_results(self) -> None:
        """Require that what the definition says about results fits together."""
        name = self.name
        if self.eval_lengths and not self._takes_length:
            raise TaskError(
                f"task {name} has eval_lengths, and its sample no parameter length: expected one"
            )
        for metric, direction in self.metrics.items():
            is_known = metric in ("accuracy", "mae") or hasattr(self.definition, metric)
            if direction not in ("maximize", "minimize") or not is_known:
                raise TaskError(
                    f"task {name} has the metric {metric!r}: {direction!r}: expected a dict from "
                    'the name of a method to "maximize" or "minimize"'
                )
            if metric in _RESERVED_METRICS:
                raise TaskError(
                    f"task {name} has the metric {metric}, the name of another result: rename it"
                )
        for measured, bound in self.solved.items():
            if measured not in (*self.metrics, "loss") or not isinstance(bound, int | float):
                raise TaskError(
                    f"task {name} is solved at {measured!r}: {bound!r}: expected a dict from loss, "
                    "or a metric, to a number"
                )
        if self.output_names and len(self.output_names) != self._outputs:
            raise TaskError(
                f"task {name} has {len(self.output_names)} output_names: expected one for each of "
                f"{self._outputs} outputs"
            )

    def _read_size(self, numbers: str, symbols: str) -> tuple[int, bool]:
        """Return how many numbers or symbols a step has, and whether it is a symbol."""
        found = [name for name in (numbers, symbols) if hasattr(self.definition, name)]
        if len(found) != 1:
            given = " and ".join(found) or "neither"
            raise TaskError(
                f"task {self.name} has {given} of {numbers} and {symbols}: expected one of them"
            )
        size = getattr(self.definition, found[0])
        if not isinstance(size, int) or size < 1:
            raise TaskError(
                f"{found[0]} of task {self.name} is {size!r}: expected an integer of 1 or more"
            )
        return size, found[0] == symbols

    def measure(self, name: str, outputs: Any, targets: Any) -> Any:
        """Return a metric (K, N) of outputs (K, N, outputs) and targets of N sequences: tensors."""
        outputs = self.to_units(outputs)
        targets = targets if self._predicts_classes else self.to_units(targets)
        rows = outputs.flatten(0, 1)  # (K·N, outputs)
        wanted = targets.expand(len(outputs), *targets.shape).flatten(0, 1)
        if hasattr(self.definition, name):
            measured = self._call(name, rows, wanted)
        elif name == "accuracy":
            measured = rows.argmax(1) == wanted
        else:
            measured = (rows - wanted).abs().mean(1)
        return measured.view(outputs.shape[:2])

    def compute_loss(self, outputs: Any, targets: Any) -> Any:
        """Return the task's own losses (N,); see :attr:`rnn.config.TaskSpec.loss`."""
        return self._call("loss", outputs, targets)

    def _call(self, name: str, outputs: Any, targets: Any) -> Any:
        """Call a method of a user's class; require a tensor (N,) for N outputs and targets."""
        try:
            result = getattr(self.definition, name)(outputs, targets)
        except Exception as error:  # a user's method may raise any
            if is_out_of_memory(error):
                raise
            raise TaskError(f"{name} of task {self.name} raises {describe_error(error)}") from error
        if getattr(result, "shape", None) != outputs.shape[:1]:
            given = tuple(result.shape) if hasattr(result, "shape") else type(result).__name__
            raise TaskError(
                f"{name} of task {self.name} returns {given} for {len(outputs)} targets: expected "
                f"a tensor ({len(outputs)},), a number for each"
            )
        return result

    @property
    def persistence(self) -> list[int] | None:
        """Number of the input that each output repeats in the forecast of the last value.

        None if there is no such forecast. A class repeats the token.
        """
        stated = getattr(self.definition, "persistence", None)
        if stated is not None:
            return list(stated)
        is_alike = self._inputs == self._outputs and self._reads_tokens == self._predicts_classes
        return list(range(1 if self._reads_tokens else self._inputs)) if is_alike else None

    @cached_property
    def spec(self) -> TaskSpec:
        """What networks read and predict."""
        batch = self._sample("train", np.random.default_rng(0), 2, index=0)
        return TaskSpec(
            self._inputs,
            self._outputs,
            self._reads_tokens,
            self._predicts_classes,
            batch.mask is None and batch.resets is None,
            self.compute_loss if hasattr(self.definition, "loss") else None,
            self.resets_often,
        )

    @cached_property
    def needs_input(self) -> bool:
        """Whether a target may need the input of its own step.

        If the definition does not say it: whether most steps have a target.
        """
        stated = getattr(self.definition, "needs_input", None)
        if stated is not None:
            return stated  # type: ignore[no-any-return]  # the record of the task checks its type
        batch = self._sample("train", np.random.default_rng(0), 32, index=0)
        return batch.mask is None or bool((batch.mask > 0).mean() > 0.5)

    @cached_property
    def steps(self) -> int:
        """T, the number of steps of the training's sequences."""
        return len(self._sample("train", np.random.default_rng(0), 1, index=0).inputs)

    def steps_per_sequence(self, sequence_length: int) -> int:
        return self.steps

    def train_batch(
        self, seed: int, index: int, replicate: int, batch_size: int, sequence_length: int
    ) -> Batch:
        rng = np.random.default_rng([seed, index, replicate])
        batch = self._sample("train", rng, batch_size, index=index)
        steps = len(batch.inputs)
        is_dense = batch.mask is None and batch.resets is None
        if (steps, is_dense) != (self.steps, self.spec.is_dense):
            raise TaskError(
                f"task {self.name} returned training sequences of {steps} steps "
                f"{'without' if is_dense else 'with'} mask or resets: expected {self.steps} steps "
                f"{'without' if self.spec.is_dense else 'with'} them, as in the first batch"
            )
        if not batch.weights.any():
            raise TaskError(
                f"task {self.name} draws no target in training batch {index}: expected one or more "
                "steps of a mask above 0"
            )
        return self._standardize(batch)

    def held_out(self, split: Split, count: int, length: int | None = None) -> Batch:
        """Return the sequences on which networks are evaluated, the same for every study.

        Args:
            split: ``validation`` or ``test``.
            count: number of sequences, unless the task has fixed held-out data.
            length: number of steps; None for the task's own.

        Raises:
            TaskError: if a sequence breaks the contract, or none has a target.
        """
        rng = np.random.default_rng([_HELD_OUT_SEED, SPLITS.index(split), length or 0])
        batch = self._sample(split, rng, count, length)
        if not batch.weights.any():
            raise TaskError(f"task {self.name}: no step of split {split} has a target")
        return self._standardize(batch)

    def evaluate(
        self,
        stack: Engine,
        split: Literal["validation", "test"],
        windows: int,
        window_length: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        is_test = split == "test"
        attributes: list[dict[str, Any]] = []
        for result in self._evaluate(stack, split, windows, None, on_step):
            measured: dict[str, Any] = {
                f"{split}_loss": float(result.losses.mean()),
                f"{split}_windows": [float(f"{loss:.6g}") for loss in result.losses.tolist()],
                "test_metrics" if is_test else "metrics": result.metrics,
            }
            if len(result.losses) > 1:
                measured[f"{split}_stderr"] = float(standard_error(result.losses))
            if result.slices and not is_test:
                measured["slices"] = result.slices
            attributes.append(measured)
        for length in () if is_test else self.eval_lengths:
            evaluated = self._evaluate(stack, split, windows, length, on_step)
            for measured, result in zip(attributes, evaluated, strict=True):
                loss = float(result.losses.mean())
                measured.setdefault("lengths", {})[length] = {"loss": loss, **result.metrics}
        return attributes

    def _evaluate(
        self,
        stack: Engine,
        split: Split,
        count: int,
        length: int | None,
        on_step: Callable[[], None],
    ) -> list[HeldOutResult]:
        batch = self._draw_once(split, count, length)
        streams = 1 if self.is_consecutive else count
        return evaluate_sequences(
            stack, batch, self._measures, streams, on_step, self.is_consecutive
        )

    def select_curve_data(self, windows: int, window_length: int, inputs: int) -> CurveData:
        batch = self._draw_once("validation", windows, None)
        return select_curve_data(batch, self._measures, inputs, self.is_consecutive)

    def _draw_once(self, split: Split, count: int, length: int | None) -> Batch:
        """Return held-out sequences, drawn once for all networks."""
        key = split, count, length
        if key not in self._held_out:
            self._held_out[key] = self.held_out(split, count, length)
        return self._held_out[key]

    @property
    def _measures(self) -> dict[str, Callable[[Any, Any], Any]]:
        return {name: partial(self.measure, name) for name in self.metrics}

    def summarize_held_out(self, count: int) -> list[float]:
        sums = []
        for split in SPLITS[1:]:
            for length in (None, *self.eval_lengths):
                batch = self.held_out(split, count, length)
                resets = np.zeros(0) if batch.resets is None else batch.resets
                for part in (batch.inputs, batch.targets, batch.weights, resets):
                    values = part.astype(np.float64).ravel()
                    places = np.linspace(1, 2, len(values))
                    sums += [float(np.maximum(signed, 0) @ places) for signed in (values, -values)]
        return sums

    def save(self) -> SavedTask:
        spec = self.spec
        return SavedTask(
            PurePath(self.name).name,
            spec.inputs,
            spec.outputs,
            spec.reads_tokens,
            spec.predicts_classes,
            spec.loss is not None,
            self.output_names,
            _list_scaling(self.input_scaling),
            _list_scaling(self.target_scaling),
        )

    def to_units(self, values: Any) -> Any:
        """Return outputs or targets (…, outputs) in the units of the data: tensors or arrays."""
        scaling = self.target_scaling
        if scaling is None:
            return values
        if isinstance(values, np.ndarray):
            return values * scaling.std + scaling.mean
        return values * values.new_tensor(scaling.std) + values.new_tensor(scaling.mean)

    @cached_property
    def input_scaling(self) -> Scaling | None:
        """Means and standard deviations of the inputs on the training split; None if not used."""
        if self._reads_tokens or not self.is_standardized:
            return None
        return _measure(self._scaling_batch.inputs, np.ones(self._scaling_batch.inputs.shape[:2]))

    @cached_property
    def target_scaling(self) -> Scaling | None:
        """The same of the targets, where numbers are predicted by their squared error."""
        is_squared = not self._predicts_classes and not hasattr(self.definition, "loss")
        if not is_squared or not self.is_standardized:
            return None
        return _measure(self._scaling_batch.targets, self._scaling_batch.weights)

    @cached_property
    def _scaling_batch(self) -> Batch:
        rng = np.random.default_rng(_HELD_OUT_SEED)
        return self._sample("train", rng, _SCALING_COUNT, index=0)

    def _standardize(self, batch: Batch) -> Batch:
        inputs = batch.inputs
        targets = batch.targets
        if self.input_scaling is not None:
            inputs = self.input_scaling.standardize(inputs)
        if self.target_scaling is not None:
            targets = self.target_scaling.standardize(targets)
        inputs, targets = (
            values.astype(np.float32) if values.dtype == np.float64 else values
            for values in (inputs, targets)
        )
        return batch._replace(inputs=inputs, targets=targets)

    # -------------------------------------------------------------- what sample returns

    def _sample(
        self,
        split: Split,
        rng: np.random.Generator,
        count: int,
        length: int | None = None,
        index: int = 0,
    ) -> Batch:
        """Return a batch as the definition draws it, with the time as the first axis."""
        options: dict[str, Any] = {"index": index} if self._takes_index else {}
        if self._takes_length:
            options["length"] = length
        try:
            result = self.definition.sample(split, rng, count, **options)
        except TaskError:
            raise
        except Exception as error:  # of any kind: the code is the user's
            if is_built_in(type(self.definition)):  # then it is no error of the user's
                raise
            raise TaskError(f"sample of task {self.name} raises {describe_error(error)}") from error
        if not isinstance(result, Mapping) or not {"inputs", "targets"} <= result.keys():
            raise self._error("", type(result).__name__, "a dict with inputs and targets")
        for name in result:
            if name not in _RESULTS:
                raise self._error("", repr(name), f"only {', '.join(_RESULTS)}")
        shape = np.shape(result["inputs"])[:2]  # (B, T)
        if len(shape) < 2 or not all(shape):
            raise self._error("inputs", f"shape {shape}", "one step or more of each sequence")
        if split == "train":
            shape = count, shape[1]
        mask = result.get("mask")
        resets = result.get("resets")
        targets = result["targets"]
        if mask is not None:
            mask = self._read_array("mask", mask, "numbers", shape).astype(np.float32)
            if not (np.isfinite(mask).all() and (mask >= 0).all()):
                raise self._error(
                    "mask", "a negative weight or one that is not finite", "0 or more"
                )
        targets = np.asarray(targets)
        per_sequence = shape[:1] if self._predicts_classes else (shape[0], self._outputs)
        # Targets (B, m) of several steps of one number would be ambiguous.
        if targets.shape in {shape[:1], per_sequence} - {shape}:
            if mask is not None:
                raise self._error("targets", "one of each sequence and a mask", "no mask with it")
            mask = np.zeros(shape, np.float32)
            mask[:, -1] = 1
            full = np.zeros((*shape, *per_sequence[1:]), targets.dtype)
            full[:, -1] = targets.reshape(per_sequence)
            targets = full
        slices = {}
        for name, given in dict(result.get("slices") or {}).items():
            labels = self._read_array(f"slice {name}", given, "integers", shape, shape[:1])
            labels = labels if labels.shape == shape else np.broadcast_to(labels[:, None], shape)
            slices[str(name)] = _time_first(labels.astype(np.int64))
        if resets is not None:
            resets = _time_first(self._read_array("resets", resets, "booleans", shape))
        everywhere = np.ones(shape, bool)
        read = self._inputs, self._reads_tokens, everywhere
        predicted = self._outputs, self._predicts_classes, everywhere if mask is None else mask > 0
        return Batch(
            self._read_values("inputs", result["inputs"], *read),
            self._read_values("targets", targets, *predicted),
            None if mask is None else _time_first(mask),
            resets,
            slices,
        )

    def _read_values(
        self, part: str, given: Any, size: int, are_symbols: bool, counted: npt.NDArray[np.bool_]
    ) -> Array:
        """Return symbols (T, B) below a size, or numbers (T, B, size); zeros where none count."""
        if are_symbols:
            values = self._read_array(part, given, "integers", counted.shape)
            values = np.where(counted, values, 0)
            if not (values.min() >= 0 and values.max() < size):
                wrong = values.min() if values.min() < 0 else values.max()
                raise self._error(part, f"a value {wrong}", f"0 to {size - 1}")
            return _time_first(values.astype(np.int64))
        full = *counted.shape, size
        values = self._read_array(part, given, "numbers", full, *[counted.shape] * (size == 1))
        values = np.where(counted[..., None], values.reshape(full), 0)
        if not np.isfinite(values).all():
            raise self._error(part, "a number that is not finite", "finite numbers")
        # Rounded to 32 bits, numbers far from 0 would all be the same before they are standardized.
        return _time_first(values.astype(np.float64 if self.is_standardized else np.float32))

    def _read_array(self, part: str, given: Any, kind: str, *shapes: tuple[int, ...]) -> Array:
        """Return an array of a kind (:data:`_KINDS`) that has one of the shapes."""
        values = np.asarray(given)
        if values.shape not in shapes or values.dtype.kind not in _KINDS[kind]:
            found = f"shape {values.shape} and dtype {values.dtype}"
            raise self._error(part, found, f"{kind} {' or '.join(map(str, shapes))}")
        return values

    def _error(self, part: str, given: str, expected: str) -> TaskError:
        where = f"sample of task {self.name} returned {part}{' with ' * bool(part)}{given}"
        return TaskError(f"{where}: expected {expected}")


def _time_first(values: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(values, 0, 1))


def _list_scaling(scaling: Scaling | None) -> list[tuple[float, float]]:
    if scaling is None:
        return []
    return list(zip(scaling.mean.tolist(), scaling.std.tolist(), strict=True))


def _measure(values: Array, weights: Array) -> Scaling:
    """Return the weighted mean and standard deviation of numbers (T, B, size)."""
    counted = values.reshape(-1, values.shape[-1]).astype(np.float64)
    shares = weights.reshape(-1, 1) / weights.sum()
    mean = (counted * shares).sum(0)
    std = np.sqrt((np.square(counted - mean) * shares).sum(0))
    # A constant varies by rounding alone.
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    return Scaling(mean, std)
