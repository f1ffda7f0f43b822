"""What a network writes: drawn from what it foretells, and the same for a seed."""

import numpy as np
import pytest
import torch

from rnn.config import BaselineConfig, GatedConfig, TrialConfig
from rnn.data.tokenizer import load_tokenizer, train_tokenizer
from rnn.inference.generation import generate
from rnn.inference.saved_model import SavedModel
from rnn.models.factory import build_network
from rnn.stacked.network import initial_weights

ARCHITECTURE = GatedConfig(False, True, False, True, True, "both", 2, 8)
KNOWN = BaselineConfig("lstm", 2, 8)
BYTE_VOCAB_SIZE = load_tokenizer(None)
TOKENS = train_tokenizer("bpe:270", np.frombuffer(b"the cat, the hat, that cat" * 9, np.uint8))


def made(tokenizer=BYTE_VOCAB_SIZE, scale=4.0, architecture=ARCHITECTURE) -> SavedModel:
    """Weights that are large enough for a network to prefer some symbols."""
    drawn = initial_weights(TrialConfig(architecture), 7, tokenizer.size)
    weights = {n: (scale * weight.float(), bias.float()) for n, (weight, bias) in drawn.items()}
    return SavedModel(architecture, weights, tokenizer, "bf16", {})


def foretold(network: SavedModel, tokens: list[int]) -> torch.Tensor:
    """The logits after symbols, which are all read again."""
    config, size = TrialConfig(network.architecture), network.tokenizer.size
    model = build_network([config], 0, "fp32", size, weights={config: network.weights})
    states = model.init_state(1)
    for token in tokens:
        logits, after = model.forward(model.prepare_inputs(torch.tensor([token])), states)
        states = [state.clone() for state in after]
    return logits[0, 0]


def symbols_of(tokenizer, text: bytes) -> list[int]:
    return tokenizer.encode(np.frombuffer(text, np.uint8)).tolist()


@pytest.mark.parametrize("network", [made(), made(TOKENS), made(architecture=KNOWN)])
@pytest.mark.parametrize("prompt", [b"the cat", b""])
def test_it_writes_the_likeliest_symbols_that_it_foretells(network, prompt):
    tokenizer = network.tokenizer
    tokens = symbols_of(tokenizer, prompt or b"\n")
    read = len(tokens)
    for _ in range(8):
        tokens.append(int(foretold(network, tokens).argmax()))
    expected = tokenizer.decode(tokens[read:])
    assert generate(network, prompt, length=8, temperature=0) == expected
    assert generate(network, prompt, length=8, temperature=1e-320) == expected
    assert generate(network, prompt, length=8, top_k=1) == expected


def test_symbols_are_drawn_as_often_as_they_are_foretold():
    network = made()
    logits = foretold(network, symbols_of(BYTE_VOCAB_SIZE, b"a"))
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        kept = logits if top_k is None else logits.topk(top_k).values
        p = torch.softmax(logits[logits >= kept.min()] / temperature, 0).max().item()
        drawn = [generate(network, b"a", 1, temperature, top_k, seed)[0] for seed in range(200)]
        share = drawn.count(int(logits.argmax())) / 200
        assert abs(share - p) < 4 * (p * (1 - p) / 200) ** 0.5
        if top_k:
            assert set(drawn) == set(logits.topk(top_k).indices.tolist())


def test_a_seed_says_what_is_drawn():
    network = made(TOKENS, scale=1.0)
    texts = [generate(network, b"the", length=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(generate(network, b"the", length=10, seed=1))


@pytest.mark.parametrize(
    "bad", [{"length": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}]
)
def test_numbers_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="expected length"):
        generate(made(), **bad)
