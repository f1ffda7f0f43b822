"""Trained networks outside of a study: model files, text generation, standalone folders.

A model file is a safetensors file, which holds numbers and names. Architecture, tokenizer or task,
and metadata are stored as JSON in its header. The source text of a user's cell is among them: it is
data until :func:`rnn.own_code.load_class` executes it, which reading a file does not.
"""

import inspect
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Json,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from safetensors.torch import save
from torch import Tensor

from rnn import exported_run
from rnn.codegen import generate_module
from rnn.config import NetworkConfig, Precision, TaskSpec
from rnn.errors import CellError, TaskError, UserError
from rnn.network import NamedTensors, Network, build_seeded, network_shapes
from rnn.own_code import CellSource, describe_error, load_class, loaded_source
from rnn.tasks import bpe
from rnn.tasks.task import SequenceTask, Task
from rnn.tasks.text import Text
from rnn.tasks.tokenizer import BPETokenizer, Tokenizer, load_tokenizer
from rnn.training.checkpoint import read_safetensors
from rnn.training.devices import configure_matmul

# ------------------------------------------------------------------ model files

_FORMAT_VERSION = "1"


class SavedTask(BaseModel):
    """What is needed to use a network of a task other than text: data alone.

    Attributes:
        name: name of the task, without the folder of a file.
        inputs: number of tokens of the vocabulary, or of real numbers of a step.
        outputs: number of classes, or of real numbers to predict.
        reads_tokens: whether a step is a token.
        predicts_classes: whether a target is a class.
        has_own_loss: whether the loss is another than the cross-entropy or the squared error.
        output_names: a name for each output; none if the task has none.
        input_scaling: mean and standard deviation of each input; none if they are not standardized.
        target_scaling: the same of the targets.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str
    inputs: PositiveInt
    outputs: PositiveInt
    reads_tokens: bool
    predicts_classes: bool
    has_own_loss: bool
    output_names: list[str]
    input_scaling: list[tuple[float, PositiveFloat]]
    target_scaling: list[tuple[float, PositiveFloat]]

    @classmethod
    def from_task(cls, task: SequenceTask) -> "SavedTask":
        """Return what is needed to use the networks of a task."""
        spec = task.spec
        return cls(
            name=PurePath(task.name).name,
            inputs=spec.inputs,
            outputs=spec.outputs,
            reads_tokens=spec.reads_tokens,
            predicts_classes=spec.predicts_classes,
            has_own_loss=spec.loss is not None,
            output_names=task.output_names,
            input_scaling=list(zip(*(task.input_scaling or ()), strict=True)),
            target_scaling=list(zip(*(task.target_scaling or ()), strict=True)),
        )

    @model_validator(mode="after")
    def _check_sizes(self) -> "SavedTask":
        sizes = {"input_scaling": self.inputs, "target_scaling": self.outputs}
        for name, size in (sizes | {"output_names": self.outputs}).items():
            if len(getattr(self, name)) not in (0, size):
                raise ValueError(f"{name} has not the length {size}")
        return self

    @property
    def spec(self) -> TaskSpec:
        """What the networks read and predict; not whether every step has a target."""
        classes = self.predicts_classes
        return TaskSpec(self.inputs, self.outputs, self.reads_tokens, classes, is_dense=False)


def save_task(task: Task) -> Tokenizer | SavedTask:
    """Return what a model file keeps of a task: the tokenizer of a text, or another task."""
    if isinstance(task, Text):
        return task.tokenizer
    assert isinstance(task, SequenceTask)
    return SavedTask.from_task(task)


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained network with all that is needed to use it.

    Attributes:
        architecture: architecture of the network.
        weights: state dict of :class:`rnn.network.Network`, on the CPU.
        task: tokenizer of its text, or another task.
        precision: precision that it was trained in.
        metadata: further information (study, trial, …) as text.
        cell_source: source of a user's cell, by default the one that is loaded; None for built-in
            cells.
    """

    architecture: NetworkConfig
    weights: NamedTensors
    task: Tokenizer | SavedTask
    precision: Precision
    metadata: Mapping[str, str]
    cell_source: CellSource | None = None

    def __post_init__(self) -> None:
        architecture = self.architecture
        if architecture.sha256 is not None and self.cell_source is None:
            source = loaded_source(architecture.cell, architecture.sha256)
            object.__setattr__(self, "cell_source", source)

    @property
    def spec(self) -> TaskSpec:
        """What the network reads and predicts."""
        task = self.task
        return task.spec if isinstance(task, SavedTask) else TaskSpec.of_text(task.size)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of its text.

        Raises:
            TaskError: if the network was trained on another task.
        """
        if isinstance(self.task, SavedTask):
            raise TaskError(
                f"networks of task {self.task.name[:80]!r} predict no text: use export, whose "
                "run.py predicts from a file"
            )
        return self.task


class _Header(BaseModel):
    """Metadata of a model file, which has either a tokenizer or a task."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format_version: Literal["1"]
    architecture: Json[NetworkConfig]
    tokenizer: Json[Any] | None = None
    task: Json[SavedTask] | None = None
    precision: Precision
    metadata: Json[dict[str, str]]
    cell_source: Json[CellSource] | None = None


def serialize_model(model: SavedModel) -> bytes:
    """Serialize a model to the content of its file."""
    header = {
        "format_version": _FORMAT_VERSION,
        "architecture": json.dumps(asdict(model.architecture)),
        "precision": model.precision,
        "metadata": json.dumps(dict(model.metadata)),
    }
    if isinstance(model.task, SavedTask):
        header["task"] = model.task.model_dump_json()
    else:
        header["tokenizer"] = json.dumps(model.task.serialized)
    if model.cell_source is not None:
        header["cell_source"] = json.dumps(asdict(model.cell_source))
    return save({name: tensor.contiguous() for name, tensor in model.weights.items()}, header)


def deserialize_model(content: bytes) -> SavedModel:
    """Read a model from the content of its file.

    Raises:
        UserError: if it is damaged, or not a model file of this format.
        UserError: if its tokenizer is damaged.
    """
    try:
        weights, metadata = read_safetensors(content)
        header = _Header.model_validate(metadata)
        if len(header.model_fields_set & {"tokenizer", "task"}) != 1:
            raise ValueError("expected one of tokenizer and task")
        architecture, task = header.architecture, header.task or load_tokenizer(header.tokenizer)
        source = header.cell_source
        if architecture.layers > len(weights):  # before as many modules are built
            raise ValueError(f"{architecture.layers} layers are more than its tensors")
        if not architecture.is_built_in:
            if source is None:
                raise ValueError("the source of its cell is missing")
            if (source.name, source.sha256) != (architecture.cell, architecture.sha256):
                raise ValueError("the source of its cell is of another cell")
        model = SavedModel(architecture, weights, task, header.precision, header.metadata, source)
        if architecture.is_built_in:
            _check_weights(weights, network_shapes(architecture, model.spec).parameters)
        return model
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(
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
        load_class(model.cell_source)
    module = build_seeded(model.architecture, model.spec, 0)
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
        TaskError: if the network was trained on another task than text.
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

{usage}
It needs {needs}.

- `network.py`: the network, one time step at a time{cell_file}
- `weights.pt`: its weights, for `load_state_dict`
{files}
"""

_TEXT_USAGE = """\
`python run.py "Once upon a time"` continues a text."""

_TEXT_FILES = """\
- `tokenizer.py`: converts between bytes and the {size:,} tokens{tokenizer_files}
- `run.py`: reads a text and continues it"""

_TASK_USAGE = """\
`python run.py inputs.npy outputs.npy` reads {read}
and writes {predicted}, those of each step.
Without the second file it prints those of the last step. N is the number of sequences, T that of
their steps; each is read from the initial states."""

_TASK_FILES = """\
- `task.json`: what it reads and predicts, and by which means and standard deviations the network's
  inputs and outputs are standardized
- `run.py`: converts them and predicts"""


def export_files(model: SavedModel, bptt_steps: int = 1) -> dict[str, bytes]:
    """Return the files of an export: code, weights, tokenizer or task, script and README.

    Args:
        model: model to export; its metadata is listed in the ``README.md``.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The content of each file by name: ``network.py``, of
        :func:`rnn.codegen.generate_module`; ``weights.pt``, its state dict for
        ``torch.load(weights_only=True)``; ``tokenizer.py``, with the functions ``encode`` and
        ``decode``, and the files it needs; ``run.py``, which generates text; ``README.md``. In
        place of a tokenizer, another task has ``task.json``, a :class:`SavedTask`; its ``run.py``
        predicts from a file. For a user's cell also ``cell.py``, its source file as it was written,
        which is not executed here.
    """
    config = model.architecture
    texts = {"network.py": generate_module(config, model.spec, bptt_steps)}
    needs, last, cell_file = "Python", "PyTorch only", ""
    if model.cell_source is not None:
        needs, last = "Python, PyTorch", "what `cell.py` imports"
        cell_file = "\n- `cell.py`: the cell of its layers, the source file as it was written"
        texts["cell.py"] = model.cell_source.text
    if isinstance(model.task, SavedTask):
        texts["run.py"] = inspect.getsource(exported_run)
        texts["task.json"] = model.task.model_dump_json(indent=2) + "\n"
        needs = needs + ", NumPy"
        read, predicted = _describe(model.task)
        usage, files = _TASK_USAGE.format(read=read, predicted=predicted), _TASK_FILES
    else:
        texts |= {"run.py": _RUN, **_tokenizer_files(model.task)}
        further = ", with `bpe.py` and `merges.json`" if "bpe.py" in texts else ""
        files = _TEXT_FILES.format(size=model.task.size, tokenizer_files=further)
        usage = _TEXT_USAGE
    texts["README.md"] = _README.format(
        label=config.label,
        metadata="\n".join(f"- {name}: {value}" for name, value in model.metadata.items()),
        usage=usage,
        needs=f"{needs} and {last}",
        cell_file=cell_file,
        files=files,
    )
    contents = {name: text.encode() for name, text in texts.items()}
    weights = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in model.weights.items()}, weights)
    return contents | {"weights.pt": weights.getvalue()}


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    if not isinstance(tokenizer, BPETokenizer):
        return {"tokenizer.py": _BYTE_TOKENIZER}
    return {
        "tokenizer.py": _BPE_TOKENIZER.format(size=tokenizer.size),
        "bpe.py": inspect.getsource(bpe),
        "merges.json": json.dumps(tokenizer.bpe.merges),
    }


def _describe(task: SavedTask) -> tuple[str, str]:
    """Return what a network reads and what it predicts, with the shapes of their arrays."""
    read = f"numbers (T, {task.inputs}) or (N, T, {task.inputs}) in the units of the data"
    if task.reads_tokens:
        read = f"tokens (T,) or (N, T) from 0 to {task.inputs - 1}"
    shapes = f"(T, {task.outputs}) or (N, T, {task.outputs})"
    if task.has_own_loss:
        return read, f"outputs {shapes}, as the task's own loss reads them,"
    if task.predicts_classes:
        return read, f"the probabilities of the classes {shapes}"
    return read, f"numbers {shapes} in the units of the data"
