"""Text generation: most likely tokens, sampling frequencies, seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import make_model
from user_cells import cell_config

from rnn.config import BaselineConfig, GatedConfig, TrialConfig
from rnn.data.tokenizer import load_tokenizer, train_tokenizer
from rnn.errors import CellError
from rnn.inference.generation import generate
from rnn.inference.saved_model import SavedModel, deserialize_model, serialize_model
from rnn.models.factory import build_network

GATED = GatedConfig(False, True, False, True, True, "both", 2, 8)
OWN = cell_config("Everything", 2, 8)
LSTM = BaselineConfig("lstm", 2, 8)
BYTES = load_tokenizer(None)
BPE = train_tokenizer("bpe:270", np.frombuffer(b"the cat, the hat, that cat" * 9, np.uint8))
MODEL = make_model(GATED, BYTES, scale=8.0)


def predict(model: SavedModel, tokens: list[int]) -> torch.Tensor:
    """Return the logits after all tokens, read from the start."""
    config = TrialConfig(model.architecture)
    network = build_network(
        [config], 0, "fp32", model.tokenizer.size, weights={config: model.weights}
    )
    states = network.init_state(1)
    for token in tokens:
        logits, next_states = network.forward(torch.tensor([token]), states)
        states = [state.clone() for state in next_states]
    return logits[0, 0]


def encode(tokenizer, text: bytes) -> list[int]:
    return tokenizer.encode(np.frombuffer(text, np.uint8)).tolist()


@pytest.mark.parametrize(
    "model",
    [MODEL, *(make_model(each, BPE, scale=8.0) for each in (GATED, LSTM, OWN))],
    ids=["bytes", "bpe", "lstm", "own cell"],
)
@pytest.mark.parametrize("prompt", [b"the cat", b""])
def test_greedy_generation_takes_the_most_likely_tokens(model, prompt):
    tokens = encode(model.tokenizer, prompt or b"\n")
    prompt_length = len(tokens)
    for _ in range(8):
        tokens.append(int(predict(model, tokens).argmax()))
    expected = model.tokenizer.decode(tokens[prompt_length:])
    assert generate(model, prompt, length=8, temperature=0) == expected
    assert generate(model, prompt, length=8, temperature=1e-320) == expected
    assert generate(model, prompt, length=8, top_k=1) == expected


def test_tokens_are_sampled_with_their_probabilities():
    model = MODEL
    logits = predict(model, encode(BYTES, b"a"))
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        kept = logits if top_k is None else logits.topk(top_k).values
        p = torch.softmax(logits[logits >= kept.min()] / temperature, 0).max().item()
        samples = [generate(model, b"a", 1, temperature, top_k, seed)[0] for seed in range(200)]
        share = samples.count(int(logits.argmax())) / 200
        assert abs(share - p) < 4 * (p * (1 - p) / 200) ** 0.5
        if top_k:
            assert set(samples) == set(logits.topk(top_k).indices.tolist())


def test_generation_repeats_for_a_seed():
    model = make_model(GATED, BPE)
    texts = [generate(model, b"the", length=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(generate(model, b"the", length=10, seed=1))


@pytest.mark.parametrize(
    "argument", [{"length": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}]
)
def test_arguments_out_of_range_are_refused(argument):
    with pytest.raises(ValueError, match="expected length"):
        generate(MODEL, **argument)


def test_cell_of_a_saved_model_is_loaded_to_generate(monkeypatch):
    model = make_model(OWN, BYTES)
    expected = generate(model, length=20)
    monkeypatch.setattr("rnn.cells.loading._loaded", {})
    restored = deserialize_model(serialize_model(model))
    assert generate(restored, length=20) == expected
    weights = restored.weights | {"layers.0.start": torch.zeros(3)}
    with pytest.raises(CellError, match=r"layers\.0\.start is \(3,\), expected \(8,\)"):
        generate(replace(restored, weights=weights))
