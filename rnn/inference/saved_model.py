"""Self-contained file of a trained network: weights, architecture and tokenizer.

It is a safetensors file, which holds numbers and names. Architecture, tokenizer and metadata are
stored as JSON in its header. The source text of a user's own cell is among them: it is data until
:func:`rnn.cells.loading.load_cell` executes it, which reading a file does not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rnn.cells.loading import load_cell, loaded_source
from rnn.cells.source import CellSource
from rnn.config import (
    BaselineConfig,
    CellConfig,
    GatedConfig,
    NetworkConfig,
    Precision,
    TrialConfig,
)
from rnn.data.tokenizer import Tokenizer, load_tokenizer
from rnn.errors import SavedModelError
from rnn.models.bptt_network import BPTTNetwork, build_module
from rnn.models.cell_module import CellModule, build_seeded
from rnn.models.gated import RecurrentNetwork
from rnn.models.shapes import parameter_shapes
from rnn.safetensors_header import read_header
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
        cell_source: source of a user's own cell, by default the one that is loaded; None for
            built-in cells.
    """

    architecture: NetworkConfig
    weights: NamedTensors
    tokenizer: Tokenizer
    precision: Precision
    metadata: Mapping[str, str]
    cell_source: CellSource | None = None

    def __post_init__(self) -> None:
        if isinstance(self.architecture, CellConfig) and self.cell_source is None:
            object.__setattr__(self, "cell_source", loaded_source(self.architecture))


def serialize_model(model: SavedModel) -> bytes:
    """Serialize a model to the content of its file."""
    header = {
        "format_version": _FORMAT_VERSION,
        "architecture": json.dumps(asdict(model.architecture)),
        "tokenizer": json.dumps(model.tokenizer.serialized),
        "precision": model.precision,
        "metadata": json.dumps(dict(model.metadata)),
    }
    if model.cell_source is not None:
        header["cell_source"] = json.dumps(asdict(model.cell_source))
    return save({name: tensor.contiguous() for name, tensor in model.weights.items()}, header)


def deserialize_model(content: bytes) -> SavedModel:
    """Read a model from the content of its file.

    Raises:
        SavedModelError: if it is damaged, or not a model file of this format.
        TokenizerError: if its tokenizer is damaged.
    """
    try:
        stored = read_header(content)  # before the tensors are read
        tensors = load(content)
        header = _parse_object(stored).get("__metadata__", {})
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
        source = None
        if isinstance(architecture, CellConfig):
            source = _read_cell_source(_parse_object(header["cell_source"]), architecture)
            weights = _read_cell_weights(tensors, architecture, tokenizer.size)
        else:
            weights = _read_weights(tensors, parameter_shapes(architecture, tokenizer.size))
        return SavedModel(architecture, weights, tokenizer, header["precision"], metadata, source)
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
    if "sha256" in fields:
        return _read_cell_config(fields)
    architecture = (BaselineConfig if "cell" in fields else GatedConfig)(**fields)
    # Checked first: the list of shapes, and all that follows, is as long as this number.
    if architecture.layers > len(tensors):
        raise ValueError(f"its layers are more than its {len(tensors)} tensors")
    return architecture


def _read_cell_config(fields: dict[str, Any]) -> CellConfig:
    options = fields.pop("options", None)
    if not isinstance(options, list) or not all(map(_is_option, options)):
        raise ValueError("the options of its cell are not names and values")
    config = CellConfig(options=tuple((name, value) for name, value in options), **fields)
    if not isinstance(config.cell, str) or not config.cell.isidentifier():
        raise ValueError("the name of its cell is not that of a class")
    return config


def _is_option(option: Any) -> bool:
    if not isinstance(option, list) or len(option) != 2:
        return False
    name, value = option
    return (
        isinstance(name, str)
        and name.isidentifier()
        and isinstance(value, bool | int | float | str)
    )


def _read_cell_source(fields: dict[str, Any], architecture: CellConfig) -> CellSource:
    if not all(isinstance(value, str) for value in fields.values()):
        raise ValueError("the source of its cell is not text")
    source = CellSource(**fields)
    if (source.name, source.sha256) != (architecture.cell, architecture.sha256):
        raise ValueError("the source of its cell is of another cell")
    return source


def _read_cell_weights(
    tensors: dict[str, Tensor], architecture: CellConfig, vocab_size: int
) -> NamedTensors:
    """Check what is known without the cell; :class:`CellNetwork` checks the rest."""
    n = architecture.state_size
    known = {
        "embedding.weight": (n, vocab_size),
        "embedding.bias": (n,),
        "head.weight": (vocab_size, n),
        "head.bias": (vocab_size,),
    }
    if missing := [name for name in known if name not in tensors]:
        raise ValueError(f"its tensors do not match its architecture, first {missing[0]!r}")
    _read_weights({name: tensors[name] for name in known}, known)
    return tensors


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


def build_trained_module(model: SavedModel) -> RecurrentNetwork | CellModule:
    """Return a trained network as a plain module on the CPU, in evaluation mode.

    Args:
        model: trained network; the source of a user's own cell is executed.

    Raises:
        CellError: if the source of a user's own cell is not one, or does not match the weights.
    """
    architecture, size = model.architecture, model.tokenizer.size
    dtype = torch.float64 if model.precision == "fp64" else torch.float32
    module: RecurrentNetwork | CellModule
    if isinstance(architecture, CellConfig):
        if model.cell_source is not None:
            load_cell(model.cell_source)
        module = build_seeded(architecture, size, 0).to(dtype)
        module.load_state_dict(model.weights)
        return module.eval()
    config = TrialConfig(architecture)
    trained = BPTTNetwork(
        [config], 0, "fp64" if dtype == torch.float64 else "fp32", size,
        weights={config: model.weights},
    )  # fmt: skip
    module = build_module(architecture, size).to(dtype)
    module.load_state_dict(trained.module.state_dict())  # whose tensors are views of one
    return module.eval()
