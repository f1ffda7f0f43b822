"""Trained networks outside of a study: model files, text generation, standalone folders.

A model file is a safetensors file, which holds numbers and names. Architecture, tokenizer and
metadata are stored as JSON in its header. The source text of a user's cell is among them: it is
data until :func:`rnn.own_cells.load_cell` executes it, which reading a file does not.
"""

import inspect
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Json, ValidationError
from safetensors.torch import save
from torch import Tensor

from rnn.config import CellConfig, NetworkConfig, Precision
from rnn.data import bpe
from rnn.data.tokenizer import BPETokenizer, Tokenizer, load_tokenizer
from rnn.errors import CellError, SavedModelError
from rnn.network import NamedTensors, Network, build_seeded, network_shapes
from rnn.own_cells import CellSource, describe_error, load_cell, loaded_source
from rnn.source_code import generate_module
from rnn.training.checkpoint import read_safetensors
from rnn.training.devices import configure_matmul

# ------------------------------------------------------------------ model files

_FORMAT_VERSION = "3"


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained network with all that is needed to use it.

    Attributes:
        architecture: architecture of the network.
        weights: state dict of :class:`rnn.network.Network`, on the CPU.
        tokenizer: tokenizer of its text.
        precision: precision that it was trained in.
        metadata: further information (study, trial, …) as text.
        cell_source: source of a user's cell, by default the one that is loaded; None for built-in
            cells.
    """

    architecture: NetworkConfig
    weights: NamedTensors
    tokenizer: Tokenizer
    precision: Precision
    metadata: Mapping[str, str]
    cell_source: CellSource | None = None

    def __post_init__(self) -> None:
        if isinstance(self.architecture, CellConfig) and self.cell_source is None:
            object.__setattr__(
                self, "cell_source", loaded_source(self.architecture.cell, self.architecture.sha256)
            )


class _Header(BaseModel):
    """Metadata of a model file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format_version: Literal["2", "3"]
    architecture: Json[NetworkConfig]
    tokenizer: Json[Any]
    precision: Precision
    metadata: Json[dict[str, str]]
    cell_source: Json[CellSource] | None = None


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
        weights, metadata = read_safetensors(content)
        header = _Header.model_validate(metadata)
        architecture, tokenizer = header.architecture, load_tokenizer(header.tokenizer)
        if header.format_version == "2" and not isinstance(architecture, CellConfig):
            weights = {  # its matrices are (inputs, outputs)
                name: each.T.contiguous() if each.dim() == 2 else each
                for name, each in weights.items()
            }
        source = header.cell_source
        if architecture.layers > len(weights):  # before as many modules are built
            raise ValueError(f"{architecture.layers} layers are more than its tensors")
        if not isinstance(architecture, CellConfig):
            _check_weights(weights, network_shapes(architecture, tokenizer.size).parameters)
        elif source is None:
            raise ValueError("the source of its cell is missing")
        elif (source.name, source.sha256) != (architecture.cell, architecture.sha256):
            raise ValueError("the source of its cell is of another cell")
        return SavedModel(
            architecture, weights, tokenizer, header.precision, header.metadata, source
        )
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise SavedModelError(
            f"model cannot be read ({' '.join(reason.split())[:200]}): expected a safetensors file "
            f"of format version {_FORMAT_VERSION}"
        ) from error


def _check_weights(weights: NamedTensors, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check the weights of a built-in cell; those of a user's cell are checked when it is built."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if differing := found.items() ^ shapes.items():
        name, _ = min(differing)
        raise ValueError(f"{name} is {found.get(name)}, expected {shapes.get(name)}")
    for name, tensor in weights.items():
        if tensor.dtype not in (torch.float32, torch.float64) or not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite float32 or float64")


def build_trained_module(model: SavedModel) -> Network:
    """Return a trained network as a plain module on the CPU, in evaluation mode.

    Args:
        model: trained network; the source of a user's cell is executed.

    Raises:
        CellError: if the source of a user's cell is not one, or does not match the weights.
    """
    if model.cell_source is not None:
        load_cell(model.cell_source)
    module = build_seeded(model.architecture, model.tokenizer.size, 0)
    module.to(torch.float64 if model.precision == "fp64" else torch.float32)
    try:
        module.load_state_dict(model.weights)
    except RuntimeError as error:
        raise CellError(
            f"cell {module.cell} does not match the weights of the model: {describe_error(error)}"
        ) from error
    return module.eval()


# ------------------------------------------------------------------ text generation


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
            source of a user's cell is executed.
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
        CellError: if the source of a user's cell is not one, or does not match the weights.
    """
    if length < 1 or not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"length is {length}, temperature {temperature}, top_k {top_k}: expected length >= 1, "
            "temperature >= 0, top_k >= 1"
        )
    device = device or torch.device("cpu")
    configure_matmul("fp64" if model.precision == "fp64" else "fp32", device)
    module, states = build_trained_module(model).to(device), None
    generator = torch.Generator().manual_seed(seed)
    read = model.tokenizer.encode(np.frombuffer(prompt or b"\n", np.uint8)).tolist()
    tokens: list[int] = []
    while len(tokens) < length:
        logits, states = module(torch.tensor(read, device=device)[:, None], states)  # (1, V)
        tokens.append(_sample_token(logits[0].cpu(), temperature, top_k, generator))
        read = tokens[-1:]
    return model.tokenizer.decode(tokens)


def _sample_token(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    candidates = logits.double().topk(min(top_k or len(logits), len(logits)))  # (k,), descending
    # Relative to the greatest logit, which keeps the weights finite at any temperature.
    weights = ((candidates.values - candidates.values[0]) / temperature).exp()
    return int(candidates.indices[weights.multinomial(1, generator=generator)])


# ------------------------------------------------------------------ standalone folder

_BYTE_TOKENIZER = '''\
"""The network's tokens are bytes."""


def encode(text):
    """Return the tokens of a text, given as bytes."""
    return list(text)


def decode(tokens):
    """Return the text of tokens, as bytes."""
    return bytes(tokens)
'''

_BPE_TOKENIZER = '''\
"""The network's {size} tokens, made of bytes by byte-pair encoding."""

import json
from pathlib import Path

from bpe import BPE

_BPE = BPE(json.loads(Path(__file__).with_name("merges.json").read_text()))


def encode(text):
    """Return the tokens of a text, given as bytes."""
    return list(_BPE.encode(text))


def decode(tokens):
    """Return the text of tokens, as bytes."""
    return _BPE.decode(tokens)
'''

_RUN = '''\
"""Continue a text, as in ``python run.py "Once upon a time"``."""

import os
import sys
from pathlib import Path

import torch

from network import Network
from tokenizer import decode, encode

network = Network()
network.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
tokens = encode(os.fsencode("".join(sys.argv[1:2])) or b"\\n")
length, states = len(tokens) + 500, network.init_state(1)
with torch.inference_mode():
    for n in range(length - 1):
        logits, states = network(torch.tensor([tokens[n]]), states)
        if n + 1 == len(tokens):
            tokens.append(torch.softmax(logits[0] / 0.8, dim=0).multinomial(1).item())
print(decode(tokens).decode(errors="replace"))
'''

_README = """\
# A recurrent network: {label}

{metadata}

`python run.py "Once upon a time"` continues a text. It needs {needs}.

- `network.py`: the network, one time step at a time{cell_file}
- `weights.pt`: its weights, for `load_state_dict`
- `tokenizer.py`: converts between bytes and the {size:,} tokens{tokenizer_files}
- `run.py`: reads a text and continues it
"""


def export_files(model: SavedModel, bptt_steps: int = 1) -> dict[str, bytes]:
    """Return the files of an export: code, weights, tokenizer, script and README.

    Args:
        model: model to export; its metadata is listed in the ``README.md``.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The content of each file by name: ``network.py``, of
        :func:`rnn.source_code.generate_module`; ``weights.pt``, its state dict for
        ``torch.load(weights_only=True)``; ``tokenizer.py``, with the functions ``encode`` and
        ``decode``, and the files it needs; ``run.py``, which generates text; ``README.md``. For a
        user's cell also ``cell.py``, its source file as it was written, which is not executed here.
    """
    tokenizer, config = model.tokenizer, model.architecture
    texts = {
        "network.py": generate_module(config, tokenizer.size, bptt_steps),
        "run.py": _RUN,
    }
    needs, cell_file = "Python and PyTorch only", ""
    if model.cell_source is not None:
        needs = "Python, PyTorch and what `cell.py` imports"
        cell_file = "\n- `cell.py`: the cell of its layers, the source file as it was written"
        texts["cell.py"] = model.cell_source.text
    tokenizer_files = ""
    if isinstance(tokenizer, BPETokenizer):
        tokenizer_files = ", with `bpe.py` and `merges.json`"
        texts["tokenizer.py"] = _BPE_TOKENIZER.format(size=tokenizer.size)
        texts["bpe.py"] = inspect.getsource(bpe)
        texts["merges.json"] = json.dumps(tokenizer.bpe.merges)
    else:
        texts["tokenizer.py"] = _BYTE_TOKENIZER
    texts["README.md"] = _README.format(
        label=config.label,
        metadata="\n".join(f"- {name}: {value}" for name, value in model.metadata.items()),
        size=tokenizer.size,
        tokenizer_files=tokenizer_files,
        needs=needs,
        cell_file=cell_file,
    )
    files = {name: text.encode() for name, text in texts.items()}
    weights = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in model.weights.items()}, weights)
    return files | {"weights.pt": weights.getvalue()}
