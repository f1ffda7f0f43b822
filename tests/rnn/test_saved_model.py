"""Model files: read as written, and refused if damaged, before anything of a wrong size is made."""

import contextlib
import dataclasses
import hashlib
import json
import resource
from random import Random

import numpy as np
import pytest
import torch
from networks import make_model
from safetensors import safe_open
from user_cells import cell_config, source_of

from rnn.config import BaselineConfig, GatedConfig
from rnn.data.tokenizer import load_tokenizer, train_tokenizer
from rnn.errors import CheckpointError, SavedModelError, TokenizerError
from rnn.inference.saved_model import deserialize_model, serialize_model
from rnn.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS
from rnn.training.checkpoint import deserialize_checkpoint

GATED = GatedConfig(True, False, True, False, True, "both", 2, 4, "candidate")
BPE = train_tokenizer("bpe:260", np.frombuffer(b"the cat, the hat, that" * 9, np.uint8))
METADATA = {"study": "quick", "trial": "3", "note": "\u201ewörtlich\u201c\n"}


def assert_refused(content: bytes, message: str) -> None:
    with pytest.raises((SavedModelError, TokenizerError), match=message) as refused:
        deserialize_model(content)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


CONTENT = serialize_model(make_model(GATED, BPE, **METADATA))


@pytest.mark.parametrize("architecture", [GATED, BaselineConfig("lstm", 2, 4)])
@pytest.mark.parametrize("tokenizer", [load_tokenizer(None), BPE])
def test_model_is_read_as_it_was_written(architecture, tokenizer):
    model = make_model(architecture, tokenizer, **METADATA)
    restored = deserialize_model(serialize_model(model))
    assert restored.architecture == architecture
    assert (restored.precision, restored.metadata) == ("bf16", METADATA)
    assert restored.tokenizer.size == tokenizer.size
    assert restored.tokenizer.serialized == tokenizer.serialized
    assert restored.weights.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        assert torch.equal(restored.weights[name], weight)


def test_safetensors_reads_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["architecture"])["state_source"] == "both"
        assert file.get_tensor("layers.1.candidate.weight").shape == (8, 4)


def with_header(content: bytes = CONTENT, **metadata: object) -> bytes:
    """Return a file with other metadata in its header; None removes a key."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    found = header["__metadata__"] | metadata
    header["__metadata__"] = {key: value for key, value in found.items() if value is not None}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


ARCHITECTURE = json.dumps(dataclasses.asdict(GATED))


def with_architecture(**fields: object) -> bytes:
    return with_header(architecture=json.dumps(json.loads(ARCHITECTURE) | fields))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        CONTENT[:-1],
        CONTENT[:100],
        (10**10).to_bytes(8, "little") + CONTENT[8:],  # length of the header
        with_header(format_version="1"),
        with_header(precision="fp8"),
        with_header(metadata="{"),
        with_header(metadata='{"trial": 3}'),
        with_header(tokenizer="null"),  # a smaller vocabulary than the tensors'
        with_header(architecture="[" * 100_000),
        with_header(architecture='{"cell": "tree", "layers": 1, "state_size": 4}'),
        with_header(architecture='{"cell": "gru", "layers": 1, "state_size": 4}'),  # no tensors
        with_header(architecture=ARCHITECTURE.replace('{"', '{"layers": 3, "', 1)),
        with_architecture(layers=-1),
        with_architecture(layers=1),  # more tensors than it needs
        with_architecture(state_size=10**4000),
        with_architecture(state_size=float("nan")),
        with_architecture(state_source=["both"]),
        with_architecture(cells=3),
    ],
    ids=lambda content: f"{len(content)} bytes",  # the order of metadata varies
)
def test_damaged_model_is_refused_in_one_line(content):
    assert_refused(content, "cannot be read")


def test_no_shapes_are_listed_for_more_layers_than_the_file_has_tensors(monkeypatch):
    """A list of a billion of them would take all memory."""
    content = with_architecture(layers=10**9)
    monkeypatch.setattr(GatedConfig, "param_shapes", lambda *_: pytest.fail("listed"))
    assert_refused(content, "its layers are more than its 20 tensors")


def test_random_damage_raises_no_other_error():
    random = Random(0)
    length = int.from_bytes(CONTENT[:8], "little")
    for _ in range(300):
        content = bytearray(CONTENT)
        content[random.randrange(length + 50)] = random.randrange(256)
        with contextlib.suppress(SavedModelError, TokenizerError):
            deserialize_model(bytes(content))


@pytest.mark.parametrize("spoil", [lambda weight: weight * torch.nan, torch.Tensor.half])
def test_weights_that_are_not_finite_or_of_another_dtype_are_refused(spoil):
    model = deserialize_model(CONTENT)
    weights = model.weights | {"head.weight": spoil(model.weights["head.weight"])}
    content = serialize_model(dataclasses.replace(model, weights=weights))
    assert_refused(content, r"head\.weight is not finite")


OWN = cell_config("Everything", 2, 4, scale=0.25)


def test_model_of_a_users_own_cell_is_read_without_executing_its_source(monkeypatch):
    model = make_model(OWN, BPE)
    content = serialize_model(model)
    for name in ("load_cell", "_execute"):
        monkeypatch.setattr(f"rnn.cells.loading.{name}", lambda *_: pytest.fail("executed"))
    monkeypatch.setattr("rnn.cells.loading._loaded", {})
    restored = deserialize_model(content)
    assert restored.architecture == model.architecture
    assert restored.cell_source == source_of("Everything")
    assert restored.weights.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        assert torch.equal(restored.weights[name], weight)


def cell_content(**changes: object) -> bytes:
    content = serialize_model(make_model(OWN, BPE))
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    changed = {
        key: json.dumps(json.loads(metadata[key]) | value if value else value)
        for key, value in changes.items()
    }
    return with_header(content, **changed)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cell_source": {"text": "import os"}}, "the source of its cell is of another cell"),
        ({"cell_source": {"text": 3}}, "the source of its cell is not text"),
        ({"cell_source": None}, "is not a JSON object"),
        ({"architecture": {"sha256": "0"}}, "the source of its cell is of another cell"),
        ({"architecture": {"cell": "a b"}}, "the name of its cell is not that of a class"),
        ({"architecture": {"options": [["a", []]]}}, "the options of its cell are not names"),
        ({"architecture": {"state_size": 5}}, r"the shape of embedding.weight is \(4, 260\)"),
    ],
)
def test_damaged_model_of_a_users_own_cell_is_refused(changes, expected):
    assert deserialize_model(cell_content()).architecture == make_model(OWN, BPE).architecture
    assert_refused(cell_content(**changes), expected)


# ------------------------------------------------------------------ headers with absurd sizes


def with_tensors(tensors, length=None, data=bytes(64)):
    """Return a file whose header lists tensors, as (type, shape, offsets) by name."""
    listed = {
        name: {"dtype": kind, "shape": shape, "data_offsets": offsets}
        for name, (kind, shape, offsets) in tensors.items()
    }
    header = json.dumps(listed).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


FLOATS = ("F32", [16], [0, 64])
FILES = {
    "header of 2^63 bytes": with_tensors({}, 2**63),
    "header longer than any": (2 * MAX_HEADER_BYTES).to_bytes(8, "little")
    + b" " * (2 * MAX_HEADER_BYTES),
    "offsets outside": with_tensors({"a": ("F32", [2**40], [0, 2**42])}),
    "offsets in reverse": with_tensors({"a": ("F32", [4], [16, 0])}),
    "overlapping tensors": with_tensors({"a": FLOATS, "b": ("F32", [8], [32, 64])}),
    "product that overflows": with_tensors({"a": ("F32", [2**32, 2**32], [0, 64])}),
    "file of another program": b"\x80\x04K\x01.",
    "a hundred thousand tensors": with_tensors(
        {f"t{number}": ("F32", [0], [0, 0]) for number in range(10**5)}, data=b""
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_absurd_header_is_refused_without_a_large_allocation(name):
    content = FILES[name]
    checkpoint = hashlib.sha256(content).digest() + content
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(content, "cannot be read")
    with pytest.raises(CheckpointError, match="cannot be read") as refused:
        deserialize_checkpoint(GATED, "", checkpoint)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert 1024 * grown < 5 * len(content) + 2**24


def test_as_many_tensors_as_a_large_network_has_are_read():
    tensors = {f"t{number}": ("F32", [0], [0, 0]) for number in range(MAX_TENSORS)}
    assert_refused(with_tensors(tensors, data=b""), "its header lacks")
