"""The training loop: one step is one time step of all lanes and one update of all weights."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from rnn.config import TrialConfig
from rnn.data.corpus import TokenArray, gather_windows
from rnn.models.factory import TrainableNetwork
from rnn.training import checkpoint
from rnn.training.checkpoint import TrainState
from rnn.training.step import TrainStep

EMA_INIT = 3.0
"""Where the smoothed loss begins, nats a symbol."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run.

    Attributes:
        steps: time steps, each with an update.
        batch_size: B, the number of lanes.
        sequence_length: symbols in a lane before it starts anew elsewhere; n symbols give n − 1
            steps, the last one being only foretold.
        log_every: steps between two log points.
        learning_rate: Adam's.
        smoothing: the weight of the past in the smoothed loss.
        seed: of the text's order; see :func:`sample_batch`.
        average: the last part of the steps over which the weights are averaged; see
            :meth:`TrainLoop.swap_in_averaged_weights`.
    """

    steps: int
    batch_size: int
    sequence_length: int
    log_every: int
    learning_rate: float
    smoothing: float
    seed: int
    average: float = 0.0

    @property
    def averaging_start_step(self) -> int:
        """The step after which the weights enter the average; the last if there is none."""
        return self.steps - int(Fraction(str(self.average)) * self.steps)


@dataclass(frozen=True)
class LogPoint:
    """Where a population stands after so many steps.

    Attributes:
        step: steps done, a multiple of ``log_every``.
        smoothed_losses: for each member, nats a symbol; not finite once a member has diverged.
    """

    step: int
    smoothed_losses: tuple[float, ...]


def sample_batch(
    text: TokenArray, settings: TrainConfig, number: int, replicate: int = 0
) -> TokenArray:
    """Draw the lanes of a run's n-th sequence, one random start a lane.

    They depend on the seed, the number and the replicate alone: every architecture reads the same
    text in the same order (common random numbers), and again another order in the next replicate; a
    resumed run needs no generator's state.

    Returns:
        (sequence_length, B) symbols.
    """
    random = np.random.default_rng([settings.seed, number, replicate])
    last = len(text) - settings.sequence_length
    starts = random.integers(0, last, settings.batch_size, endpoint=True)  # (B,)
    return gather_windows(text, starts, settings.sequence_length)


def _nothing() -> None:
    return


class TrainLoop:
    """The training of a population: how far it has come, and how it goes on from there.

    Args:
        stack: trained in place, on the device where it is; it becomes a smaller one when
            members leave. Its members are of one replicate.
        text: (length,) the training split, at least one sequence long.
        settings: of the run.
        progress: of each member, where they go on from; all have done the same steps. The weights
            are the population's own concern.

    Attributes:
        configs: those that are trained, in the order in which all is listed that each has its own
            of.
        step: steps done.
        seconds: for each member its share of the wall time that they took.
        curves: for each member the smoothed loss at each log point so far, by step.
        code: for each member the fingerprints of the code that trained it, this process's last.

    Raises:
        ValueError: if the members are of several replicates.
    """

    configs: tuple[TrialConfig, ...]
    seconds: list[float]
    curves: list[dict[int, float]]
    code: list[tuple[str, ...]]

    def __init__(
        self,
        stack: TrainableNetwork,
        text: TokenArray,
        settings: TrainConfig,
        progress: Mapping[TrialConfig, TrainState] | None = None,
    ) -> None:
        replicates = {config.replicate for config in stack.configs}
        if len(replicates) > 1:
            raise ValueError(
                f"members are of the replicates {sorted(replicates)}; allowed: one, for each reads "
                "the text in an order of its own; train the others in a run of their own"
            )
        self.text = text
        self.settings = settings
        self._averaged_after = settings.averaging_start_step
        self._charged: float | None = None  # when, while it is trained
        self._take_up(stack, progress or {})

    def train(self, on_step: Callable[[], None] = _nothing) -> Iterator[LogPoint]:
        """Train every member to the last step, and say at each log point where it stands.

        A member whose loss is not finite stays so; its fellows are not touched by it. Members may
        be dropped meanwhile.

        Args:
            on_step: called after every step; what it raises ends the training.

        Yields:
            The log points still to come, one every ``log_every`` steps.
        """
        if self.step >= self.settings.steps or not self.configs:
            return
        self._charged = time.monotonic()
        try:
            for reads, targets, begins in self._steps():
                if begins:
                    self._program.begin_sequence()
                self._program.step(reads, targets)
                self.step += 1
                self._average_weights()
                if self.step % self.settings.log_every == 0:
                    yield self._log()
                    self._charged = time.monotonic()  # what was done meanwhile is no training
                on_step()
                if not self.configs:
                    return
        finally:
            self._charge()
            self._charged = None

    def swap_in_averaged_weights(self) -> None:
        """Put the mean of the weights, over the steps that it is taken over, in their place.

        The iterates of a constant learning rate wander about where their mean lies (Polyak &
        Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992): the mean foretells
        better, and differs less between two runs. To be called after the last step.
        """
        if self._mean is None:
            return
        self.stack.parameters.replace(self._mean)

    def drop(self, leaving: Collection[TrialConfig]) -> None:
        """Go on without some members: from now on they cost nothing."""
        self._charge()
        staying = {
            config: self.progress(config) for config in self.configs if config not in leaving
        }
        if not staying:
            self.configs, self.seconds, self.curves, self.code = (), [], [], []
            return
        weights = {config: progress.weights for config, progress in staying.items()}
        like = self.stack
        del self.stack, self._program  # there may be no memory for both
        self._take_up(like.of(weights), staying)

    def progress(self, config: TrialConfig) -> TrainState:
        """Return all that a member's training goes on from, between two steps."""
        self._charge()
        k = self.configs.index(config)
        parameters, program = self.stack.parameters, self._program
        first, second = (parameters.of(k, moments) for moments in program.optimizer.moments)
        return TrainState(
            self.step,
            self.seconds[k],
            parameters.of(k, parameters.values),
            (first, second),
            [state[k].to("cpu", copy=True) for state in program.states],
            program.smoothed[k].to("cpu", copy=True),
            dict(self.curves[k]),
            None if self._mean is None else parameters.of(k, self._mean),
            self.code[k],
        )

    def _take_up(self, stack: TrainableNetwork, progress: Mapping[TrialConfig, TrainState]) -> None:
        self.stack = stack
        self.configs = stack.configs
        settings = self.settings
        self._program = program = TrainStep(
            stack, settings.batch_size, settings.learning_rate, settings.smoothing
        )
        program.smoothed.fill_(EMA_INIT)
        self._mean: Tensor | None = None  # (P,)
        self.step = 0
        self.seconds = [0.0] * len(self.configs)
        self.curves = [{} for _ in self.configs]
        current = checkpoint.source_hash()
        self.code = [(current,) for _ in self.configs]
        for k, config in enumerate(self.configs):
            if (own := progress.get(config)) is None:
                continue
            self.step = own.step
            self.seconds[k], self.curves[k] = own.seconds, dict(own.curve)
            self.code[k] = (*(code for code in own.code if code != current), current)
            for flat, moments in zip(program.optimizer.moments, own.moments, strict=True):
                stack.parameters.put(k, flat, moments)
            for state, before in zip(program.states, own.states, strict=True):
                state[k].copy_(before)
            program.smoothed[k].copy_(own.smoothed)
            if own.average is not None:
                if self._mean is None:
                    self._mean = torch.zeros_like(stack.parameters.values)
                stack.parameters.put(k, self._mean, own.average)
        program.optimizer.updates.fill_(self.step)

    def _average_weights(self) -> None:
        count = self.step - self._averaged_after
        if count < 1:
            return
        values = self.stack.parameters.values
        if self._mean is None:
            self._mean = torch.zeros_like(values)
        self._mean.lerp_(values, 1 / count)

    def _log(self) -> LogPoint:
        point = LogPoint(self.step, tuple(self._program.smoothed.tolist()))
        for curve, loss in zip(self.curves, point.smoothed_losses, strict=True):
            curve[point.step] = loss
        self._charge()
        return point

    def _charge(self) -> None:
        """Charge the members with the time of training since this was done last."""
        if self._charged is None:
            return
        now = time.monotonic()
        share = (now - self._charged) / max(1, len(self.configs))
        self.seconds = [seconds + share for seconds in self.seconds]
        self._charged = now

    def _steps(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield for each step to come what lanes read, foretell (B,), and if a sequence begins."""
        steps_a_sequence = self.settings.sequence_length - 1
        first = self.step
        while first < self.settings.steps:
            number, begin = divmod(first, steps_a_sequence)
            replicate = self.configs[0].replicate
            drawn = torch.from_numpy(sample_batch(self.text, self.settings, number, replicate))
            drawn = drawn.to(self.stack.device)  # (L, B)
            end = min(steps_a_sequence, begin + self.settings.steps - first)
            for t in range(begin, end):
                yield drawn[t], drawn[t + 1], t == 0
            first += end - begin
