"""Networks with different options as one program: an option that is off is a constant weight.

Networks with different options need operations of their own, and on a GPU a step of small networks
takes as long as the launches of its operations. With padding every network has each option that
any of them has. Where a network does not have it, constants take the place of its weights, and the
network computes what it would without the option::

    a gate                  W = 0, b = 100: σ(b) = 1 in every precision, and its slope is 0
    what is not read        rows of zeros in W_o and W_y; their gradients are set to zero

The output gate is not padded, because the output gates itself without it. Weight decay would change
the constants, so networks that have it are not padded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from rnn.config import GatedConfig, StateSource, TrialConfig
from rnn.stacked.linear import WeightSlice

OPEN_GATE_BIAS = 100.0
"""Bias of a gate that a network does not have: the largest values that reach it are far smaller."""

PADDED_GATES = ("input_gate", "state_gate", "forget_gate")


_MAX_STATE = 64
"""Larger networks keep a GPU busy for longer than it takes to launch their operations."""


def padding_pays(device: torch.device, state_size: int) -> bool:
    """Return whether networks of a state size train faster with padding on a device."""
    return device.type != "cpu" and state_size <= _MAX_STATE


def can_pad(configs: Sequence[TrialConfig]) -> bool:
    """Return whether padding would make networks equal that are not, and keep its constants."""
    has_decay = any(config.optimizer.weight_decay for config in configs)
    return len({config.architecture for config in configs}) > 1 and not has_decay


def pad(architectures: Sequence[GatedConfig]) -> list[GatedConfig]:
    """Return the configs with each option that any of them has, except for the output gate."""
    reads_new = any(each.reads_new_state for each in architectures)
    reads_both = reads_new and any(each.reads_previous_state for each in architectures)
    source: StateSource = "new" if reads_new else "old"
    return [
        replace(
            each,
            input_gate=any(other.input_gate for other in architectures),
            state_gate=any(other.state_gate for other in architectures),
            forget_gate=any(other.forget_gate for other in architectures),
            residual=any(other.residual for other in architectures),
            state_source="both" if reads_both else source,
        )
        for each in architectures
    ]


def own_slices(own: GatedConfig, padded: GatedConfig, each: WeightSlice) -> Iterator[WeightSlice]:
    """Yield the parts of a slice of a padded parameter that the network itself has.

    Args:
        own: config of the network.
        padded: its config with padding.
        each: rows of the padded parameter, and their place.

    Yields:
        Rows of the network's own parameter, and their place.
    """
    (first, count), (row, column) = each.rows, each.offset
    if each.param in PADDED_GATES and not getattr(own, each.param):
        return
    if each.param not in ("read_out", "output_gate"):
        yield each
        return
    n, own_parts = own.state_size, _parts(own, each.param)
    for index, part in enumerate(_parts(padded, each.param)):
        if first <= n * index < first + count and part in own_parts:
            rows = n * own_parts.index(part), n
            yield WeightSlice(each.param, rows, (row + n * index - first, column))


def _parts(config: GatedConfig, param: str) -> list[str]:
    """Return what the rows of the read-out or the output gate multiply, n rows each."""
    return [
        *["o"] * (param == "output_gate"),
        *["u"] * config.reads_new_state,
        *["h"] * config.reads_previous_state,
        *["x"] * config.residual,
    ]
