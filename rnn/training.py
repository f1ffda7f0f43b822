"""The training loop: one step is one time step of all lanes and one update of all weights."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rnn.corpus import Bytes, lanes
from rnn.network import Population

SMOOTHED_LOSS_START = 3.0
"""Where the smoothed loss begins, nats a symbol."""


@dataclass(frozen=True)
class Training:
    """The settings of a training run.

    Attributes:
        steps: time steps, each with an update.
        batch_size: B, the number of lanes.
        sequence_length: symbols in a lane before it starts anew elsewhere; n symbols give n − 1
            steps, the last one being only foretold.
        log_every: steps between two log points.
        learning_rate: Adam's.
        smoothing: the weight of the past in the smoothed loss.
        seed: of the text's order; see :func:`sequence`.
    """

    steps: int
    batch_size: int
    sequence_length: int
    log_every: int
    learning_rate: float
    smoothing: float
    seed: int


@dataclass(frozen=True)
class LogPoint:
    """Where a population stands after so many steps.

    Attributes:
        step: steps done, a multiple of ``log_every``.
        smoothed_losses: for each member, nats a symbol; not finite once a member has diverged.
    """

    step: int
    smoothed_losses: tuple[float, ...]


def sequence(text: Bytes, settings: Training, number: int) -> Bytes:
    """Draw the lanes of a run's n-th sequence, one random start a lane.

    They depend on the seed and the number alone: every architecture reads the same text in the
    same order (common random numbers), and a resumed run needs no generator's state.

    Returns:
        (sequence_length, B) symbols.
    """
    random = np.random.default_rng([settings.seed, number])
    last = len(text) - settings.sequence_length
    starts = random.integers(0, last, settings.batch_size, endpoint=True)  # (B,)
    return lanes(text, starts, settings.sequence_length)


def _nothing() -> None:
    return


class Run:
    """The training of a population: how far it has come, and how it goes on from there.

    All that it depends on is here, so that what is written down between two steps
    (:mod:`rnn.checkpoint`) can be gone on from as if nothing had been. There is no generator of
    random numbers among it: weights are drawn before the first step, and a sequence's text follows
    from the seed and the sequence's number.

    Args:
        population: trained in place, on the device where it is.
        text: (length,) the training split, at least one sequence long.
        settings: of the run.

    Attributes:
        step: steps done.
        seconds: spent on them, on the wall.
        optimizer: Adam.
        states: for each layer (K, B, n), as the last step left them; none before the first.
        smoothed: (K,) the smoothed losses, an exponential moving average of the mean
            cross-entropy over the lanes, nats a symbol.
        curve: the log points so far.
    """

    def __init__(self, population: Population, text: Bytes, settings: Training) -> None:
        weight = population.embedding.weight
        self.population = population
        self.text = text
        self.settings = settings
        self.step = 0
        self.seconds = 0.0
        self.optimizer = torch.optim.Adam(
            population.parameters(), lr=settings.learning_rate, fused=True
        )
        self.states: list[Tensor] = []
        self.smoothed = weight.new_full((len(population.members),), SMOOTHED_LOSS_START)
        self.curve: list[LogPoint] = []

    def train(self, between_steps: Callable[[], None] = _nothing) -> Iterator[LogPoint]:
        """Train every member to the last step, and say at each log point where it stands.

        A member whose loss is not finite stays so; its fellows are not touched by it.

        Args:
            between_steps: called after every step; what it raises ends the training.

        Yields:
            The log points still to come, one every ``log_every`` steps.
        """
        began = time.monotonic() - self.seconds
        for reads, foretells, begins in self._steps():
            if begins:
                self.states = self.population.initial_state(self.settings.batch_size)
            self._advance(reads, foretells)
            self.step += 1
            self.seconds = time.monotonic() - began
            if self.step % self.settings.log_every == 0:
                self.curve.append(LogPoint(self.step, tuple(self.smoothed.tolist())))
                yield self.curve[-1]
            between_steps()

    def _advance(self, reads: Tensor, foretells: Tensor) -> None:
        logits, self.states = self.population(reads, self.states)  # (K, B, V)
        losses = self.population.loss(logits, foretells).mean(dim=1)  # (K,)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.smoothed.lerp_(losses.detach(), 1 - self.settings.smoothing)

    def _steps(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield for each step to come what lanes read, foretell (B,), and if a sequence begins."""
        device = self.population.embedding.weight.device
        steps_a_sequence = self.settings.sequence_length - 1
        first = self.step
        while first < self.settings.steps:
            number, begin = divmod(first, steps_a_sequence)
            drawn = torch.from_numpy(sequence(self.text, self.settings, number))  # (L, B)
            drawn = drawn.to(device).long()
            end = min(steps_a_sequence, begin + self.settings.steps - first)
            for t in range(begin, end):
                yield drawn[t], drawn[t + 1], t == 0
            first += end - begin
