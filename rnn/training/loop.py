"""The training loop: one step is one time step of all streams and one update of all weights."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from rnn.config import TrialConfig
from rnn.data.corpus import TokenArray, gather_windows
from rnn.engines import Engine
from rnn.training import checkpoint
from rnn.training.checkpoint import TrainState
from rnn.training.step import TrainStep

EMA_INIT = 3.0
"""Initial value of the smoothed loss, in nats per token."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        steps: number of time steps, each with an update.
        batch_size: B, the number of streams.
        sequence_length: tokens that a stream reads before it restarts elsewhere; L tokens give
            L − 1 steps, since the last one is only predicted.
        log_every: number of steps between two log points.
        smoothing: weight of the past in the smoothed loss.
        seed: seed of the text order; see :func:`sample_batch`.
        average_fraction: last fraction of the steps over which weights are averaged; see
            :meth:`TrainLoop.swap_in_averaged_weights`.
    """

    steps: int
    batch_size: int
    sequence_length: int
    log_every: int
    smoothing: float
    seed: int
    average_fraction: float = 0.0

    @property
    def averaging_start_step(self) -> int:
        """The step after which weights enter the average; the last step if none do."""
        return self.steps - int(Fraction(str(self.average_fraction)) * self.steps)


@dataclass(frozen=True)
class LogPoint:
    """The smoothed losses after a number of steps.

    Attributes:
        step: number of steps, a multiple of ``log_every``.
        ema_losses: smoothed loss of each network, in nats per token; not finite after divergence.
    """

    step: int
    ema_losses: tuple[float, ...]


def sample_batch(
    text: TokenArray, train_config: TrainConfig, sequence: int, replicate: int = 0
) -> TokenArray:
    """Draw the streams of a run's n-th sequence, with a random start for each stream.

    They depend on the seed, the number of the sequence and the replicate alone. Every architecture
    reads the same text in the same order (common random numbers), and a resumed run needs no
    generator state.

    Returns:
        Tokens (sequence_length, B).
    """
    rng = np.random.default_rng([train_config.seed, sequence, replicate])
    last_start = len(text) - train_config.sequence_length
    starts = rng.integers(0, last_start, train_config.batch_size, endpoint=True)  # (B,)
    return gather_windows(text, starts, train_config.sequence_length)


class TrainLoop:
    """Training of networks in lockstep, from step 0 or from a checkpoint.

    Args:
        stack: networks of one replicate, or of several if they can read separate texts; trained in
            place, and replaced by a smaller stack when networks are removed.
        text: training split (length,), at least one sequence long.
        train_config: settings of the run.
        train_states: state to resume each network from, all of the same step. The stack must
            already have their weights.

    Attributes:
        stack: the networks in training.
        configs: their configs; lists of per-network values have the same order.
        step: number of steps done.
        seconds: each network's share of the training time.
        curves: smoothed loss of each network at each log point so far, by step.

    Raises:
        ValueError: if the networks are of several replicates and read a common text.
    """

    configs: tuple[TrialConfig, ...]
    seconds: list[float]
    curves: list[dict[int, float]]

    def __init__(
        self,
        stack: Engine,
        text: TokenArray,
        train_config: TrainConfig,
        train_states: Mapping[TrialConfig, TrainState] | None = None,
    ) -> None:
        replicates = {config.replicate for config in stack.configs}
        if len(replicates) > 1 and not stack.separate_texts:
            raise ValueError(
                f"networks are of the replicates {sorted(replicates)}: expected one, since each "
                "replicate reads the text in another order"
            )
        self.text = text
        self.train_config = train_config
        self._averaging_start_step = train_config.averaging_start_step
        self._timed_until: float | None = None  # while training
        self._restore(stack, train_states or {})

    def train(self, on_step: Callable[[], None] = lambda: None) -> Iterator[LogPoint]:
        """Train every network to the last step.

        A network whose loss is not finite does not affect the others. Networks may be removed
        during training.

        Args:
            on_step: callback after every step; an exception that it raises ends the training.

        Yields:
            The remaining log points, one every ``log_every`` steps.
        """
        if self.step >= self.train_config.steps or not self.configs:
            return
        self._timed_until = time.monotonic()
        try:
            for tokens, targets, begins_sequence in self._steps():
                if begins_sequence:
                    self._train_step.begin_sequence()
                self._train_step.optimizer.set_learning_rates(self.step, self.train_config.steps)
                self._train_step.step(tokens, targets)
                self.step += 1
                self._average_weights()
                if self.step % self.train_config.log_every == 0:
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
            self.configs, self.seconds, self.curves = (), [], []
            return
        weights = {config: train_state.weights for config, train_state in kept.items()}
        stack = self.stack
        del self.stack, self._train_step  # memory may not suffice for both stacks
        self._restore(stack.with_configs(weights), kept)

    def train_state(self, config: TrialConfig) -> TrainState:
        """Return the state to resume a network's training from; call between two steps."""
        self._account_time()
        k = self.configs.index(config)
        parameters, train_step = self.stack.parameters, self._train_step
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
        )

    def _restore(self, stack: Engine, train_states: Mapping[TrialConfig, TrainState]) -> None:
        self.stack = stack
        self.configs = stack.configs
        settings = self.train_config
        self._train_step = train_step = TrainStep(stack, settings.batch_size, settings.smoothing)
        train_step.ema_losses.fill_(EMA_INIT)
        self._average: Tensor | None = None  # (P,)
        self.step = 0
        self.seconds = [0.0] * len(self.configs)
        self.curves = [{} for _ in self.configs]
        code, torch_version = checkpoint.source_hash(), checkpoint.torch_version()
        self._source_hashes: list[tuple[str, ...]] = [(code,) for _ in self.configs]
        self._torch_versions: list[tuple[str, ...]] = [(torch_version,) for _ in self.configs]
        for k, config in enumerate(self.configs):
            if (saved := train_states.get(config)) is None:
                continue
            self.step = saved.step
            self.seconds[k], self.curves[k] = saved.seconds, dict(saved.curve)
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
        train_step.optimizer.updates.fill_(self.step)
        train_step.position = self.step % (self.train_config.sequence_length - 1)

    def _average_weights(self) -> None:
        count = self.step - self._averaging_start_step
        if count < 1:
            return
        values = self.stack.parameters.values
        if self._average is None:
            self._average = torch.zeros_like(values)
        self._average.lerp_(values, 1 / count)

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

    def _steps(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield tokens, targets and whether a sequence begins, for each step to come.

        Tokens and targets are (B,), or (K, B) while the networks are of several replicates.
        """
        steps_per_sequence = self.train_config.sequence_length - 1
        step = self.step
        while step < self.train_config.steps:
            sequence, begin = divmod(step, steps_per_sequence)
            drawn = {
                replicate: sample_batch(self.text, self.train_config, sequence, replicate)
                for replicate in {config.replicate for config in self.configs}
            }
            end = min(steps_per_sequence, begin + self.train_config.steps - step)
            configs = None
            for t in range(begin, end):
                if configs is not self.configs:  # at the beginning, and after a removal
                    configs = self.configs
                    tokens = self._arrange(drawn)
                yield tokens[t], tokens[t + 1], t == 0
            step += end - begin

    def _arrange(self, drawn: Mapping[int, TokenArray]) -> Tensor:
        """Return the tokens of the networks: (sequence_length, B), or (sequence_length, K, B)."""
        texts = [drawn[config.replicate] for config in self.configs]
        is_common = len({config.replicate for config in self.configs}) == 1
        tokens = torch.from_numpy(texts[0] if is_common else np.stack(texts, 1))
        return tokens.to(self.stack.device)


def _append_latest(versions: tuple[str, ...], latest: str) -> tuple[str, ...]:
    return (*(version for version in versions if version != latest), latest)
