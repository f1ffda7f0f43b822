"""Text that a trained network writes, symbol after symbol."""

import numpy as np
import torch
from torch import Tensor

from rnn.config import TrialConfig
from rnn.inference.saved_model import SavedModel
from rnn.models.factory import build_network


@torch.inference_mode()
def generate(
    network: SavedModel,
    prompt: bytes = b"",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> bytes:
    """Let a network go on with a text: the same on the same machine for the same seed.

    Args:
        network: that writes. It computes in float32, or in float64 if it was trained so.
        prompt: what it reads first, from zero states; a line's end if there is nothing.
        length: of what it writes, in symbols.
        temperature: by which logits are divided: below 1, likelier symbols are preferred; 0 for the
            likeliest alone.
        top_k: draw among so many symbols only, the likeliest; None for all.
        seed: of what is drawn.
        device: where to compute; the processor by default.

    Returns:
        What it writes, without the prompt.

    Raises:
        ValueError: if a number is out of its range.
    """
    if length < 1 or not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"length is {length}, temperature {temperature}, top_k {top_k}; allowed: 1 or more, 0 "
            "or more, 1 or more"
        )
    tokenizer, config = network.tokenizer, TrialConfig(network.architecture)
    model = build_network(
        [config],
        seed,
        "fp64" if network.precision == "fp64" else "fp32",
        tokenizer.size,
        device,
        {config: network.weights},
    )
    states = model.init_state(1)

    def read(token: int) -> Tensor:
        reads = model.prepare_inputs(torch.tensor([token], device=model.device))
        logits, after = model.forward(reads, states)  # (1, 1, V)
        for state, new in zip(states, after, strict=True):
            state.copy_(new)
        return logits[0, 0].cpu()

    for token in tokenizer.encode(np.frombuffer(prompt or b"\n", np.uint8)).tolist():
        logits = read(token)  # (V,)
    generator = torch.Generator().manual_seed(seed)
    written = [_choose(logits, temperature, top_k, generator)]
    while len(written) < length:
        written.append(_choose(read(written[-1]), temperature, top_k, generator))
    return tokenizer.decode(written)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> int:
    """Choose a symbol by its logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    candidates = logits.double().topk(min(top_k or len(logits), len(logits)))  # (k,), falling
    # Less the greatest: however low the temperature is, that one stays finite.
    weights = ((candidates.values - candidates.values[0]) / temperature).exp()
    return int(candidates.indices[weights.multinomial(1, generator=generator)])
