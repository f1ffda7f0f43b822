"""The training loop: a step is one time step of all streams; every U steps there is one update."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnn.config import TrialConfig, count_updates
from rnn.engines import Engine
from rnn.network import Batch, Window
from rnn.tasks.task import TrainingData
from rnn.training import checkpoint
from rnn.training.checkpoint import TrainState
from rnn.training.evaluation import CurveData, evaluate_sequences
from rnn.training.step import TrainStep

CURVE_POINTS = 20
"""Points of the held-out curves of a training, unless it is short or sets ``eval_every``."""

_STEPS_PER_CURVE_STEP = 10
_MIN_CURVE_UPDATES = 30
"""Training steps for each step that a point reads, and updates between two points, at least: a step
without gradients, of few streams, takes up to a third of the time of a training step, and a few
whole sequences one after another up to that of an update."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        steps: number of time steps.
        batch_size: B, the number of streams.
        sequence_length: tokens of text that a stream reads before it restarts elsewhere; L tokens
            give L − 1 steps, since the last one is only predicted. Other tasks decide themselves.
        log_every: number of steps between two log points.
        smoothing: weight of the past in the smoothed loss, per step that has a target.
        seed: seed of the order of the data.
        average_fraction: last fraction of the steps over which weights are averaged; see
            :meth:`TrainLoop.swap_in_averaged_weights`.
        eval_every: number of updates between two points of the held-out curves; None to choose it,
            0 for no curves. Another point is at the end.
    """

    steps: int
    batch_size: int
    sequence_length: int
    log_every: int
    smoothing: float
    seed: int
    average_fraction: float = 0.0
    eval_every: int | None = None

    @property
    def averaging_start_step(self) -> int:
        """The step after which weights enter the average; the last step if none do."""
        return self.steps - int(Fraction(str(self.average_fraction)) * self.steps)


@dataclass(frozen=True)
class LogPoint:
    """The smoothed losses after a number of steps.

    Attributes:
        step: number of steps, a multiple of ``log_every``.
        ema_losses: smoothed loss of each network; not finite after divergence.
    """

    step: int
    ema_losses: tuple[float, ...]


class TrainLoop:
    """Training of networks in lockstep, from step 0 or from a checkpoint.

    Args:
        stack: networks to train in place; replaced by a smaller stack when some are removed.
        data: what they are trained on.
        train_config: settings of the run.
        train_states: state to resume each network from, all of the same step. The stack must
            already have their weights.
        curve_data: held-out data that the networks are measured on meanwhile; None for none.

    Attributes:
        stack: the networks in training.
        configs: their configs; lists of per-network values have the same order.
        step: number of steps done.
        seconds: each network's share of the training time.
        curves: smoothed loss of each network at each log point so far, by step.
        metrics: held-out loss and metrics of each network so far, each by step. Once weights are
            averaged, they are those of the average, as at the end.
    """

    configs: tuple[TrialConfig, ...]
    seconds: list[float]
    curves: list[dict[int, float]]
    metrics: list[dict[str, dict[int, float]]]

    def __init__(
        self,
        stack: Engine,
        data: TrainingData,
        train_config: TrainConfig,
        train_states: Mapping[TrialConfig, TrainState] | None = None,
        curve_data: CurveData | None = None,
    ) -> None:
        self.data = data
        self.train_config = train_config
        self._sequence_steps = data.steps_per_sequence(train_config.sequence_length)
        self._update_every = stack.configs[0].update_every
        self._reach = max(stack.configs[0].bptt_steps, self._update_every)
        self._total_updates = self._count_updates(train_config.steps)
        self._averaging_start_step = train_config.averaging_start_step
        self._curve_data = curve_data
        self._eval_every = 0 if curve_data is None else self._choose_eval_every(curve_data)
        self._timed_until: float | None = None  # while training
        self._restore(stack, train_states or {})

    def train(self, on_step: Callable[[], None] = lambda: None) -> Iterator[LogPoint]:
        """Train every network to the last step.

        A network whose loss is not finite does not affect the others. Networks may be removed
        during training.

        Args:
            on_step: callback after every update; an exception that it raises ends the training.

        Yields:
            The remaining log points, one every ``log_every`` steps from the first loss on.
        """
        if self.step >= self.train_config.steps or not self.configs:
            return
        self._timed_until = time.monotonic()
        try:
            windows = self._count_updates(self.step)
            for window, loss_steps in self._windows():
                train_step = self._train_step
                updates = self._train_step.updates
                train_step.optimizer.set_learning_rates(windows, self._total_updates)
                train_step.step(window, loss_steps)
                windows += 1
                self.step += window.advance
                if train_step.updates > updates:
                    self._average_weights()
                    self._measure()
                if self.step % self.train_config.log_every == 0 and train_step.has_loss:
                    yield self._log()
                    self._timed_until = time.monotonic()  # the caller's time is not training time
                on_step()
                if not self.configs:
                    return
        finally:
            self._account_time()
            self._timed_until = None

    def swap_in_averaged_weights(self) -> None:
        """Replace the weights by their average over the last steps; call after the last step.

        At a constant learning rate the iterates scatter about a point that their average is closer
        to (Polyak & Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992): the
        average has a lower loss that varies less between runs.
        """
        if self._average is not None:
            self.stack.parameters.load_flat(self._average)

    def remove_configs(self, removed: Collection[TrialConfig]) -> None:
        """Continue without some networks, in a smaller stack."""
        self._account_time()
        kept = {
            config: self.train_state(config) for config in self.configs if config not in removed
        }
        if not kept:
            self.configs = ()
            self.seconds = []
            self.curves = []
            self.metrics = []
            return
        weights = {config: train_state.weights for config, train_state in kept.items()}
        stack = self.stack
        del self.stack, self._train_step  # memory may not suffice for both stacks
        self._restore(stack.with_configs(weights), kept)

    def train_state(self, config: TrialConfig) -> TrainState:
        """Return the state to resume a network's training from; call between two steps."""
        self._account_time()
        k = self.configs.index(config)
        parameters = self.stack.parameters
        train_step = self._train_step
        first, second = (parameters.extract(k, flat) for flat in train_step.optimizer.moments)
        return TrainState(
            step=self.step,
            seconds=self.seconds[k],
            weights=parameters.extract(k, parameters.values),
            moments=(first, second),
            states=[state[k].to("cpu", copy=True) for state in train_step.states],
            ema_loss=train_step.ema_losses[k].to("cpu", copy=True),
            curve=dict(self.curves[k]),
            average=None if self._average is None else parameters.extract(k, self._average),
            source_hashes=self._source_hashes[k],
            torch_versions=self._torch_versions[k],
            updates=self.updates,
            averaged=self._averaged,
            metrics={name: dict(points) for name, points in self.metrics[k].items()},
        )

    @property
    def updates(self) -> int:
        """Number of updates done."""
        return self._train_step.updates

    def _restore(self, stack: Engine, train_states: Mapping[TrialConfig, TrainState]) -> None:
        self.stack = stack
        self.configs = stack.configs
        settings = self.train_config
        self._train_step = train_step = TrainStep(
            stack, settings.batch_size, settings.smoothing, self.data.initial_loss
        )
        self._average: Tensor | None = None  # (P,)
        self._averaged = 0
        self.step = 0
        self.seconds = [0.0] * len(self.configs)
        self.curves = [{} for _ in self.configs]
        self.metrics = [{} for _ in self.configs]
        code = checkpoint.source_hash()
        torch_version = checkpoint.torch_version()
        self._source_hashes: list[tuple[str, ...]] = [(code,) for _ in self.configs]
        self._torch_versions: list[tuple[str, ...]] = [(torch_version,) for _ in self.configs]
        for k, config in enumerate(self.configs):
            if (saved := train_states.get(config)) is None:
                continue
            self.step = saved.step
            train_step.updates = saved.updates
            self._averaged = saved.averaged
            self.seconds[k] = saved.seconds
            self.curves[k] = dict(saved.curve)
            self.metrics[k] = {name: dict(points) for name, points in saved.metrics.items()}
            self._source_hashes[k] = _append_latest(saved.source_hashes, code)
            self._torch_versions[k] = _append_latest(saved.torch_versions, torch_version)
            for flat, moments in zip(train_step.optimizer.moments, saved.moments, strict=True):
                stack.parameters.load(k, flat, moments)
            for state, saved_state in zip(train_step.states, saved.states, strict=True):
                state[k].copy_(saved_state)
            train_step.ema_losses[k].copy_(saved.ema_loss)
            if saved.average is not None:
                if self._average is None:
                    self._average = torch.zeros_like(stack.parameters.values)
                stack.parameters.load(k, self._average, saved.average)
        train_step.optimizer.updates.fill_(train_step.updates)

    def _average_weights(self) -> None:
        if self.step <= self._averaging_start_step:
            return
        values = self.stack.parameters.values
        if self._average is None:
            self._average = torch.zeros_like(values)
        self._averaged += 1
        self._average.lerp_(values, 1 / self._averaged)

    def _choose_eval_every(self, data: CurveData) -> int:
        """Return the number of updates between two measurements; 0 for none.

        Unless it is set, there are :data:`CURVE_POINTS`, or as many as cost some 3% of the
        training, at log points if these are at equal numbers of updates.
        """
        settings = self.train_config
        if settings.eval_every is not None:
            return settings.eval_every
        of_steps = _STEPS_PER_CURVE_STEP * len(data.batch.inputs) / settings.steps
        least = max(_MIN_CURVE_UPDATES, self._total_updates * max(1 / CURVE_POINTS, of_steps))
        log_updates = max(1, self._count_updates(settings.log_every))
        return math.ceil(least / log_updates) * log_updates

    def _measure(self) -> None:
        """Add a point to the held-out curves, if it is time for one."""
        every = self._eval_every
        is_last = self.step >= self.train_config.steps
        if self._curve_data is None or not every or (self.updates % every and not is_last):
            return
        parameters = self.stack.parameters
        weights = None if self._average is None else parameters.values.clone()
        self.swap_in_averaged_weights()
        batch, metrics = self._curve_data
        results = evaluate_sequences(self.stack, batch, metrics, batch.inputs.shape[1])
        if weights is not None:
            parameters.load_flat(weights)
        for curves, result in zip(self.metrics, results, strict=True):
            for name, value in {"loss": float(result.losses.mean()), **result.metrics}.items():
                curves.setdefault(f"validation_{name}", {})[self.step] = value

    def _log(self) -> LogPoint:
        point = LogPoint(self.step, tuple(self._train_step.ema_losses.tolist()))
        for curve, loss in zip(self.curves, point.ema_losses, strict=True):
            curve[point.step] = loss
        self._account_time()
        return point

    def _account_time(self) -> None:
        """Divide the training time since the last call among the networks."""
        if self._timed_until is None:
            return
        now = time.monotonic()
        share = (now - self._timed_until) / max(1, len(self.configs))
        self.seconds = [seconds + share for seconds in self.seconds]
        self._timed_until = now

    def _count_updates(self, steps: int) -> int:
        return count_updates(steps, self._sequence_steps, self._update_every)

    def _windows(self) -> Iterator[tuple[Window, int]]:
        """Yield what each update to come reads, and how many of its steps have targets."""
        step = self.step
        last_step = self.train_config.steps
        while step < last_step:
            index, begin = divmod(step, self._sequence_steps)
            drawn = self._draw(index)
            batch = next(iter(drawn.values()))  # several have neither mask nor resets
            resets, continues = self._find_resets(batch)
            end = min(self._sequence_steps, begin + last_step - step)
            if begin == 0 and continues:
                self._train_step.continue_sequence()
            elif begin == 0:
                self._train_step.begin_sequence()
            has_target = np.asarray(batch.weights.any(1))  # (T,)
            configs = None
            for first in range(begin, end, self._update_every):
                if configs is not self.configs:  # at the beginning, and after a removal
                    configs = self.configs
                    inputs, targets, mask = self._arrange(drawn)
                stop = min(first + self._update_every, end)
                # The last window of a sequence may be shorter, at its end.
                start = max(0, first + self._update_every - self._reach)
                with_target = np.flatnonzero(has_target[first:stop])
                # Outputs before the first target are not needed.
                predicted = slice(first + (with_target[0] if len(with_target) else 0), stop)
                window = Window(
                    inputs[start:stop],
                    targets[predicted],
                    None if mask is None else mask[predicted],
                    tuple((t - start, resets[t]) for t in resets if start <= t < stop),
                    start == 0 and not continues,
                    stop - first,
                )
                yield window, len(with_target)
            step += end - begin

    def _draw(self, index: int) -> dict[int, Batch]:
        """Return the batch of each replicate with a number."""
        settings = self.train_config
        return {
            replicate: self.data.train_batch(
                settings.seed, index, replicate, settings.batch_size, settings.sequence_length
            )
            for replicate in dict.fromkeys(config.replicate for config in self.configs)
        }

    def _find_resets(self, batch: Batch) -> tuple[dict[int, Tensor], bool]:
        """Return which streams (B,) are reset at which steps; whether no sequence begins there."""
        if batch.resets is None:
            return {}, False
        begins = bool(batch.resets[0].all())
        streams = {
            int(t): torch.from_numpy(batch.resets[t]).to(self.stack.device)
            for t in np.flatnonzero(batch.resets.any(1))
            if t or not begins
        }
        return streams, not begins

    def _arrange(self, drawn: Mapping[int, Batch]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the inputs, targets and mask of the networks; see :class:`Window`."""
        batches = [drawn[config.replicate] for config in self.configs]
        is_common = len({config.replicate for config in self.configs}) == 1
        first = batches[0]
        device = self.stack.device

        def arrange(parts: Sequence[npt.NDArray[Any]]) -> Tensor:
            tensor = torch.from_numpy(parts[0] if is_common else np.stack(parts, 1)).to(device)
            return tensor if tensor.is_floating_point() else tensor.long()

        mask = None
        if first.mask is not None:
            mask = torch.from_numpy(first.mask).to(device, self.stack.parameters.values.dtype)
        inputs = arrange([batch.inputs for batch in batches])
        return inputs, arrange([batch.targets for batch in batches]), mask


def _append_latest(versions: tuple[str, ...], latest: str) -> tuple[str, ...]:
    return (*(version for version in versions if version != latest), latest)
