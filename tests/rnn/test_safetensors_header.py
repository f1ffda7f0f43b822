"""Headers of safetensors files with absurd sizes: refused before anything of that size is made."""

import hashlib
import json
import resource

import pytest
from test_checkpoint import CONFIG, IDENTITY

from rnn.errors import CheckpointError, SavedModelError
from rnn.inference.saved_model import deserialize_model
from rnn.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS
from rnn.training.checkpoint import deserialize_checkpoint


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
    "header longer than the file": with_tensors({}, 10**6),
    "header longer than any": (2 * MAX_HEADER_BYTES).to_bytes(8, "little")
    + b" " * (2 * MAX_HEADER_BYTES),
    "offsets outside": with_tensors({"a": ("F32", [2**40], [0, 2**42])}),
    "offsets in reverse": with_tensors({"a": ("F32", [4], [16, 0])}),
    "overlapping tensors": with_tensors({"a": FLOATS, "b": ("F32", [8], [32, 64])}),
    "product that overflows": with_tensors({"a": ("F32", [2**32, 2**32], [0, 64])}),
    "other type": with_tensors({"a": ("F64", [16], [0, 64])}),
    "no list of tensors": (2).to_bytes(8, "little") + b"[]",
    "a hundred thousand tensors": with_tensors(
        {f"t{number}": ("F32", [0], [0, 0]) for number in range(10**5)}, data=b""
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_absurd_header_is_refused_without_a_large_allocation(name):
    content = FILES[name]
    checkpoint = hashlib.sha256(content).digest() + content
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="cannot be read") as checkpoint_refused:
        deserialize_checkpoint(CONFIG.architecture, IDENTITY, checkpoint)
    with pytest.raises(SavedModelError, match="cannot be read") as model_refused:
        deserialize_model(content)
    for refused in (checkpoint_refused, model_refused):
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 400
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert 1024 * grown < 5 * len(content) + 2**24


def test_as_many_tensors_as_a_large_network_has_are_read():
    tensors = {f"t{number}": ("F32", [0], [0, 0]) for number in range(MAX_TENSORS)}
    with pytest.raises(SavedModelError, match="its header lacks"):
        deserialize_model(with_tensors(tensors, data=b""))
