"""The time steps that a gradient of truncated backpropagation through time passes through.

K is the number of networks, B the number of streams, W the number of steps, T ≤ W how many of them
the sequence has had.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """What the gradient of one step is computed from.

    Attributes:
        tokens: tokens of the last steps, the current one included (K, T, B).
        states: states before the first of them, (K, B, …) each.
        begins_sequence: whether that is the first step of the sequence, if steps are counted.
        carried: what training carries to the next step besides the states.
    """

    tokens: Tensor
    states: list[Tensor]
    begins_sequence: bool
    carried: list[Tensor]


class BPTTWindow:
    """The last W steps of a sequence, as tensors that training carries from step to step.

    These are the states (K, B, …); if W > 1 the states before each of the last W − 1 steps
    (K, W − 1, B, …), and the tokens read in these steps (K, W − 1, B); if W > 1 or steps are
    counted, how many of the last W steps the sequence has had (K,).

    Args:
        steps: W.
        counts_steps: whether steps are counted if W = 1.
    """

    def __init__(self, steps: int, counts_steps: bool = False) -> None:
        self._steps = steps
        self._counts_steps = counts_steps or steps > 1

    def begin(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return what training carries at a sequence's start, whose states are given."""
        carried, earlier = list(states), self._steps - 1
        count, streams = states[0].shape[:2]
        device = states[0].device
        if earlier:
            carried += [
                state[:, None].repeat(1, earlier, *[1] * (state.dim() - 1)) for state in states
            ]
            shape = count, earlier, streams
            carried.append(torch.zeros(shape, dtype=torch.long, device=device))
        if self._counts_steps:
            carried.append(torch.zeros(count, dtype=torch.long, device=device))
        return carried

    def advance(
        self, tokens: Tensor, carried: Sequence[Tensor], position: int | None = None
    ) -> Window:
        """Add a step.

        Args:
            tokens: tokens that the step reads (K, B).
            carried: of :meth:`begin` or the last step.
            position: number of steps that the sequence has had, if the caller knows it: to read it
                from a GPU takes longer than a step.
        """
        window = tokens[:, None]  # (K, 1, B)
        if not self._counts_steps:
            return Window(window, list(carried), False, [])
        *states, count = carried
        following = []
        if self._steps > 1:
            half = len(states) // 2
            *past_states, past_tokens = states[half:]
            following = [
                torch.cat((past[:, 1:], now[:, None]), 1)  # (K, W − 1, B, …)
                for past, now in zip(past_states, states[:half], strict=True)
            ]
            window = torch.cat((past_tokens, window), 1)  # (K, W, B)
            following.append(window[:, 1:])
            # In a sequence's first steps these are the states that it starts from.
            states = [past[:, 0] for past in past_states]
        steps = int(count[0]) if position is None else min(position, self._steps)
        following.append((count + 1).clamp(max=self._steps))
        return Window(window[:, -1 - steps :], states, steps < self._steps, following)
