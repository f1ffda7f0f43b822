"""How many networks a worker trains in lockstep, where nobody has said."""

from dataclasses import replace

import torch

from rnn.config import BYTE_VOCAB_SIZE, GatedConfig, Precision, TrialConfig
from rnn.models.factory import is_stackable
from rnn.stacked.network import estimate_memory
from rnn.training.devices import available_memory
from search.pruning.policy import ALWAYS_CONTINUE

_SMALL = 256 * 48
"""Numbers in a layer's state, of all lanes, up to which a step on a processor is short enough for
what surrounds its products to count."""

_ON_A_PROCESSOR = 32
"""Of small networks: more would gain little, and all would end at once."""

_BYTES_ON_A_PROCESSOR = 256 * 2**20
"""What they may take: no more than twice what one of the large ones does."""

_SHARE_OF_MEMORY = 0.8

_SPARE = 0.01
"""The chance from which a paused network is taken along where that costs next to nothing."""


def auto_lockstep(
    trial_config: TrialConfig,
    streams: int,
    precision: Precision,
    device: torch.device,
    vocab_size: int = BYTE_VOCAB_SIZE,
) -> int:
    """Return how many networks of one shape are best trained together.

    Args:
        trial_config: one of them; it is alone if it is no member of a population.
        streams: B.
        precision: of the arithmetic.
        device: on which to train; on a GPU it is as many as its memory has room for.
        vocab_size: V.
    """
    if not is_stackable(trial_config):
        return 1
    architecture = trial_config.architecture
    assert isinstance(architecture, GatedConfig)
    on_a_processor = device.type == "cpu"
    if on_a_processor and streams * architecture.state_size > _SMALL:
        return 1
    # Its fellows may have everything on.
    largest = replace(
        architecture,
        input_gate=True,
        forget_gate=True,
        output_gate=True,
        state_gate=True,
        residual=True,
        state_source="both",
    )
    room = available_memory(device) * _SHARE_OF_MEMORY
    if on_a_processor:
        room = min(room, _BYTES_ON_A_PROCESSOR)
    size = estimate_memory(
        trial_config._replace(architecture=largest), streams, precision, vocab_size
    )
    most = max(1, int(room / size))
    return min(most, _ON_A_PROCESSOR) if on_a_processor else most


def min_keep_probability(device: torch.device) -> float:
    """Return the chance to be wanted from which a paused network is worth taking along.

    On a processor each network costs its own time; on a GPU, whose steps are bound by launches,
    those that are trained beside others cost next to nothing.
    """
    return ALWAYS_CONTINUE if device.type == "cpu" else _SPARE
