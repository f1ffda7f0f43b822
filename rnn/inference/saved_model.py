"""Self-contained file of a trained network: weights, architecture and tokenizer.

It is a safetensors file, which holds numbers and names but no code. Architecture, tokenizer and
metadata are stored as JSON in its header.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rnn.config import BaselineConfig, GatedConfig, NetworkConfig, Precision
from rnn.data.tokenizer import Tokenizer, load_tokenizer
from rnn.errors import SavedModelError
from rnn.models.shapes import parameter_shapes
from rnn.stacked.flat_parameters import NamedTensors

_FORMAT_VERSION = "2"
_HEADER_KEYS = ("format_version", "architecture", "tokenizer", "precision", "metadata")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained network with all that is needed to use it.

    Attributes:
        architecture: architecture of the network.
        weights: weights and biases by name, on the CPU.
        tokenizer: tokenizer of its text.
        precision: precision that it was trained in.
        metadata: further information (study, trial, …) as text.
    """

    architecture: NetworkConfig
    weights: NamedTensors
    tokenizer: Tokenizer
    precision: Precision
    metadata: Mapping[str, str]


def serialize_model(model: SavedModel) -> bytes:
    """Serialize a model to the content of its file."""
    header = {
        "format_version": _FORMAT_VERSION,
        "architecture": json.dumps(asdict(model.architecture)),
        "tokenizer": json.dumps(model.tokenizer.serialized),
        "precision": model.precision,
        "metadata": json.dumps(dict(model.metadata)),
    }
    return save({name: tensor.contiguous() for name, tensor in model.weights.items()}, header)


def deserialize_model(content: bytes) -> SavedModel:
    """Read a model from the content of its file.

    Raises:
        SavedModelError: if it is damaged, or not a model file of this format.
        TokenizerError: if its tokenizer is damaged.
    """
    try:
        tensors = load(content)
        # Header of a safetensors file: its length in eight bytes, then a JSON object.
        length = int.from_bytes(content[:8], "little")
        header = _parse_object(content[8 : 8 + length]).get("__metadata__", {})
        if missing := [key for key in _HEADER_KEYS if key not in header]:
            raise ValueError(f"its header lacks {', '.join(missing)}")
        if header["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format version is {header['format_version'][:20]!r}")
        if header["precision"] not in get_args(Precision):
            raise ValueError(f"precision is {header['precision'][:20]!r}")
        metadata = _parse_object(header["metadata"])
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not texts")
        tokenizer = load_tokenizer(json.loads(header["tokenizer"]))
        architecture = _read_architecture(_parse_object(header["architecture"]), tensors)
        return SavedModel(
            architecture,
            _read_weights(tensors, parameter_shapes(architecture, tokenizer.size)),
            tokenizer,
            header["precision"],
            metadata,
        )
    except (SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise SavedModelError(
            f"model cannot be read ({error}): expected a safetensors file of format version "
            f"{_FORMAT_VERSION}"
        ) from error


def _parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object whose keys are distinct."""

    def to_dict(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len(fields := dict(items)) < len(items):
            raise ValueError("a key of its header occurs twice")
        return fields

    parsed = json.loads(text, object_pairs_hook=to_dict)
    if not isinstance(parsed, dict):
        raise TypeError("a part of its header is not a JSON object")
    return parsed


def _read_architecture(fields: dict[str, Any], tensors: Mapping[str, Tensor]) -> NetworkConfig:
    architecture = (BaselineConfig if "cell" in fields else GatedConfig)(**fields)
    # Checked first: the list of shapes, and all that follows, is as long as this number.
    if architecture.layers > len(tensors):
        raise ValueError(f"its layers are more than its {len(tensors)} tensors")
    return architecture


def _read_weights(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> NamedTensors:
    if differing := sorted(shapes.keys() ^ tensors.keys()):
        raise ValueError(f"its tensors do not match its architecture, first {differing[0][:80]!r}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ValueError(f"the shape of {name} is {tuple(tensor.shape)}")
        if tensor.dtype not in (torch.float32, torch.float64) or not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite float32 or float64")
    return {name: tensors[name] for name in shapes}
