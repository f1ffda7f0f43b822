"""A trained network's file: enough by itself, and refused if it is not whole."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from rnn.config import BaselineConfig, GatedConfig, TrialConfig
from rnn.data.tokenizer import load_tokenizer, train_tokenizer
from rnn.errors import SavedModelError, TokenizerError
from rnn.inference.saved_model import SavedModel, deserialize_model, serialize_model
from rnn.stacked.network import initial_weights

GATED = GatedConfig(True, False, True, False, True, "both", 2, 4, "candidate")
TOKENS = train_tokenizer("bpe:260", np.frombuffer(b"the cat, the hat, that" * 9, np.uint8))
DETAILS = {"study": "quick", "trial": "3", "said": "\u201ewörtlich\u201c\n"}


def trained(architecture=GATED, tokenizer=TOKENS) -> SavedModel:
    drawn = initial_weights(TrialConfig(architecture), 7, tokenizer.size)
    weights = {name: (weight.float(), bias.float()) for name, (weight, bias) in drawn.items()}
    return SavedModel(architecture, weights, tokenizer, "bf16", DETAILS)


CONTENT = serialize_model(trained())


@pytest.mark.parametrize("architecture", [GATED, BaselineConfig("lstm", 2, 4)])
@pytest.mark.parametrize("tokenizer", [load_tokenizer(None), TOKENS])
def test_a_network_is_read_as_it_was_written(architecture, tokenizer):
    network = trained(architecture, tokenizer)
    found = deserialize_model(serialize_model(network))
    assert found.architecture == architecture
    assert (found.precision, found.metadata) == ("bf16", DETAILS)
    assert (found.tokenizer.size, found.tokenizer.serialized) == (
        tokenizer.size,
        tokenizer.serialized,
    )
    assert found.weights.keys() == network.weights.keys()
    for name, own in network.weights.items():
        assert all(map(torch.equal, found.weights[name], own))


def test_the_file_is_one_that_others_read(tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(CONTENT)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["architecture"])["state_source"] == "both"
        assert file.get_tensor("layers.1.candidate.weight").shape == (8, 4)


def changed(**metadata: object) -> bytes:
    """The same file with other metadata."""
    length = int.from_bytes(CONTENT[:8], "little")
    header = json.loads(CONTENT[8 : 8 + length])
    for key, value in metadata.items():
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + CONTENT[8 + length :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a checkpoint" * 20,
        CONTENT[:-1],
        CONTENT[:100],
        changed(format_version="1"),
        changed(format_version=None),
        changed(precision="fp8"),
        changed(metadata="{"),
        changed(metadata='"words"'),
        changed(architecture="[" * 100_000),
        changed(architecture="[]"),
        changed(architecture='{"cell": "lstm"}'),
        changed(architecture='{"cell": "tree", "layers": 1, "state_size": 4}'),
        changed(architecture='{"cell": "gru", "layers": 1, "state_size": 4}'),  # no such tensors
        changed(tokenizer="null"),  # of fewer symbols than the tensors are for
    ],
    ids=lambda content: f"{len(content)} bytes",  # the order of metadata is nobody's
)
def test_what_is_no_trained_network_is_one_line(content):
    with pytest.raises(SavedModelError, match="cannot be read") as refused:
        deserialize_model(content)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spoilt", [lambda weight: weight * torch.nan, torch.Tensor.half])
def test_weights_that_are_no_numbers_of_ours_are_refused(spoilt):
    network = deserialize_model(CONTENT)
    weight, bias = network.weights["head"]
    weights = {**network.weights, "head": (spoilt(weight), bias)}
    with pytest.raises(SavedModelError, match="head is not finite"):
        deserialize_model(serialize_model(dataclasses.replace(network, weights=weights)))


def test_a_damaged_vocabulary_is_told_apart():
    with pytest.raises(TokenizerError):
        deserialize_model(changed(tokenizer='"{}"'))
