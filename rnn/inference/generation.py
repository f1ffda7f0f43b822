"""Text generation with a trained network."""

import numpy as np
import torch
from torch import Tensor

from rnn.cells.loading import load_cell
from rnn.config import TrialConfig
from rnn.inference.saved_model import SavedModel
from rnn.models.factory import build_network


@torch.inference_mode()
def generate(
    model: SavedModel,
    prompt: bytes = b"",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> bytes:
    """Continue a text; the result repeats on the same machine for the same seed.

    Args:
        model: trained network; computes in float64 if it was trained so, else in float32. The
            source of a user's own cell is executed.
        prompt: text to read first, from the initial states; a line feed if empty.
        length: number of tokens to generate.
        temperature: divisor of the logits; below 1, likely tokens are preferred; 0 always takes the
            most likely token.
        top_k: number of most likely tokens to sample from; None for all.
        seed: seed of the sampling.
        device: device to compute on; the CPU by default.

    Returns:
        The generated text, without the prompt.

    Raises:
        ValueError: if a number is out of range.
        CellError: if the source of a user's own cell is not one, or does not match the weights.
    """
    if length < 1 or not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"length is {length}, temperature {temperature}, top_k {top_k}: expected length >= 1, "
            "temperature >= 0, top_k >= 1"
        )
    if model.cell_source is not None:
        load_cell(model.cell_source)
    tokenizer, config = model.tokenizer, TrialConfig(model.architecture)
    network = build_network(
        [config],
        seed,
        "fp64" if model.precision == "fp64" else "fp32",
        tokenizer.size,
        device,
        {config: model.weights},
    )
    states = network.init_state(1)

    def next_logits(token: int) -> Tensor:
        """Read a token and return the logits of the next one (V,)."""
        tokens = torch.tensor([token], device=network.device)
        logits, next_states = network.forward(tokens, states)  # (1, 1, V)
        for state, next_state in zip(states, next_states, strict=True):
            state.copy_(next_state)
        return logits[0, 0].cpu()

    for token in tokenizer.encode(np.frombuffer(prompt or b"\n", np.uint8)).tolist():
        logits = next_logits(token)  # (V,)
    generator = torch.Generator().manual_seed(seed)
    tokens = [sample_token(logits, temperature, top_k, generator)]
    while len(tokens) < length:
        tokens.append(sample_token(next_logits(tokens[-1]), temperature, top_k, generator))
    return tokenizer.decode(tokens)


def sample_token(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> int:
    """Sample a token by its logits (V,); see :func:`generate`."""
    if temperature == 0:
        return int(logits.argmax())
    candidates = logits.double().topk(min(top_k or len(logits), len(logits)))  # (k,), descending
    # Relative to the greatest logit, which keeps the weights finite at any temperature.
    weights = ((candidates.values - candidates.values[0]) / temperature).exp()
    return int(candidates.indices[weights.multinomial(1, generator=generator)])
