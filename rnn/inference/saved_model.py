"""Self-contained file of a trained network: weights, architecture and tokenizer.

It is a safetensors file, which holds numbers and names but no code. Architecture, tokenizer and
metadata are stored as JSON in its header.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rnn.config import BaselineConfig, GatedConfig, NetworkConfig, Precision
from rnn.data.tokenizer import Tokenizer, load_tokenizer
from rnn.errors import SavedModelError
from rnn.stacked.flat_parameters import NamedTensors

_FORMAT_VERSION = "2"


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained network with all that is needed to use it.

    Attributes:
        architecture: architecture of the network.
        weights: weights of each linear layer, on the CPU.
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
    tensors: dict[str, Tensor] = {}
    for name, (weight, bias) in model.weights.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    header = {
        "format_version": _FORMAT_VERSION,
        "architecture": json.dumps(asdict(model.architecture)),
        "tokenizer": json.dumps(model.tokenizer.serialized),
        "precision": model.precision,
        "metadata": json.dumps(dict(model.metadata)),
    }
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, header)


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
        header = json.loads(content[8 : 8 + length])["__metadata__"]
        if header["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format version is {header['format_version']!r}")
        if header["precision"] not in get_args(Precision):
            raise ValueError(f"precision is {header['precision']!r}")
        tokenizer = load_tokenizer(json.loads(header["tokenizer"]))
        architecture = _read_architecture(json.loads(header["architecture"]))
        return SavedModel(
            architecture,
            _read_weights(tensors, architecture.param_shapes(tokenizer.size)),
            tokenizer,
            header["precision"],
            dict(json.loads(header["metadata"])),
        )
    except (SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise SavedModelError(
            f"model cannot be read ({error}): expected a safetensors file of format version "
            f"{_FORMAT_VERSION}"
        ) from error


def _read_architecture(fields: dict[str, Any]) -> NetworkConfig:
    return (BaselineConfig if "cell" in fields else GatedConfig)(**fields)


def _read_weights(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, int]]) -> NamedTensors:
    weights = {}
    for name, shape in shapes.items():
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if weight.shape != shape or bias.shape != shape[1:]:
            raise ValueError(f"{name} has the shape {tuple(weight.shape)}, not {shape}")
        for tensor in (weight, bias):
            if tensor.dtype not in (torch.float32, torch.float64) or not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite float32 or float64")
        weights[name] = weight, bias
    return weights
