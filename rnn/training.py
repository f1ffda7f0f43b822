"""The training loop: one step is one time step of all lanes and one update of all weights."""

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


def train(
    population: Population,
    text: Bytes,
    settings: Training,
    between_steps: Callable[[], None] = _nothing,
) -> Iterator[LogPoint]:
    """Train every member of a population, and say at each log point where it stands.

    A member whose loss is not finite stays so; its fellows are not touched by it.

    Args:
        population: trained in place, on the device where it is.
        text: (length,) the training split, at least one sequence long.
        settings: of the run.
        between_steps: called after every step; what it raises ends the training.

    Yields:
        A log point every ``log_every`` steps; the smoothed loss is an exponential moving average
        of the mean cross-entropy over the lanes.
    """
    device = population.embedding.weight.device
    optimizer = torch.optim.Adam(population.parameters(), lr=settings.learning_rate, fused=True)
    smoothed = population.embedding.weight.new_full(
        (len(population.members),), SMOOTHED_LOSS_START
    )  # (K,)
    states: list[Tensor] = []
    for step, (reads, foretells, begins) in enumerate(_steps(text, settings, device), 1):
        if begins:
            states = population.initial_state(settings.batch_size)  # each (K, B, n)
        logits, states = population(reads, states)  # (K, B, V)
        losses = population.loss(logits, foretells).mean(dim=1)  # (K,)
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        smoothed.lerp_(losses.detach(), 1 - settings.smoothing)
        if step % settings.log_every == 0:
            yield LogPoint(step, tuple(smoothed.tolist()))
        between_steps()


def _steps(
    text: Bytes, settings: Training, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Yield for every step what lanes read and foretell (B,), and whether a sequence begins."""
    steps_a_sequence = settings.sequence_length - 1
    for done in range(0, settings.steps, steps_a_sequence):
        number = done // steps_a_sequence
        drawn = torch.from_numpy(sequence(text, settings, number)).to(device).long()  # (L, B)
        for t in range(min(steps_a_sequence, settings.steps - done)):
            yield drawn[t], drawn[t + 1], t == 0
