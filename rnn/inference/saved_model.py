"""A trained network in a file, which is enough by itself: its weights, and what they mean.

The file is in the form of safetensors: numbers and names, never code. Its metadata say which
network it is and what it reads, as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rnn.config import BaselineConfig, GatedConfig
from rnn.data.tokenizer import Tokenizer, load_tokenizer
from rnn.errors import SavedModelError
from rnn.stacked.flat_parameters import NamedTensors
from rnn.training.precision import Precision

_FORM = "1"


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A network that has been trained, and all that is needed to use it.

    Attributes:
        architecture: of the network.
        weights: of each of its products, in the processor's memory.
        tokenizer: what it reads, and writes.
        precision: of the arithmetic that it was trained in.
        details: what else is to be known of it (study, trial, …), in any words.
    """

    architecture: GatedConfig | BaselineConfig
    weights: NamedTensors
    tokenizer: Tokenizer
    precision: Precision
    details: Mapping[str, str]


def serialize_model(network: SavedModel) -> bytes:
    """Return the content of a network's file."""
    tensors: dict[str, Tensor] = {}
    for name, (weight, bias) in network.weights.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    metadata = {
        "form": _FORM,
        "architecture": json.dumps(asdict(network.architecture)),
        "tokenizer": json.dumps(network.tokenizer.serialized),
        "precision": network.precision,
        "details": json.dumps(dict(network.details)),
    }
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def deserialize_model(content: bytes) -> SavedModel:
    """Return the network of a file's content.

    Raises:
        SavedModelError: if it is damaged, or no such file.
        TokenizerError: if the vocabulary in it is damaged.
    """
    try:
        tensors = load(content)
        # The form's header: its length in eight bytes, and a JSON object.
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        if metadata["form"] != _FORM:
            raise ValueError(f"it has the form {metadata['form']!r}")
        if metadata["precision"] not in get_args(Precision):
            raise ValueError(f"it has the precision {metadata['precision']!r}")
        tokenizer = load_tokenizer(json.loads(metadata["tokenizer"]))
        architecture = _architecture(json.loads(metadata["architecture"]))
        return SavedModel(
            architecture,
            _weights(tensors, architecture.param_shapes(tokenizer.size)),
            tokenizer,
            metadata["precision"],
            dict(json.loads(metadata["details"])),
        )
    except (SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise SavedModelError(
            f"a trained network cannot be read ({error}); allowed: a file of safetensors of the "
            f"form {_FORM}, as a search keeps them; take a sound copy"
        ) from error


def _architecture(described: dict[str, Any]) -> GatedConfig | BaselineConfig:
    return (BaselineConfig if "cell" in described else GatedConfig)(**described)


def _weights(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, int]]) -> NamedTensors:
    weights = {}
    for name, shape in shapes.items():
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if weight.shape != shape or bias.shape != shape[1:]:
            raise ValueError(f"its {name} has the shape {tuple(weight.shape)}, not {shape}")
        for tensor in (weight, bias):
            if tensor.dtype not in (torch.float32, torch.float64) or not tensor.isfinite().all():
                raise ValueError(f"its {name} is not all numbers of float32 or float64")
        weights[name] = weight, bias
    return weights
