"""Trained networks outside of a study: model files, text generation, standalone folders.

A model file is a safetensors file, which holds numbers and names. Architecture, tokenizer or task,
and metadata are stored as JSON in its header. The source text of a user's cell is among them: it is
data until :func:`rnn.own_code.load_class` executes it, which reading a file does not.
"""

import ast
import inspect
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Json,
    ValidationError,
)
from safetensors.torch import save
from torch import Tensor

from rnn import exported_run, scan_reference
from rnn.codegen import generate_module
from rnn.config import NetworkConfig, Precision, TaskSpec
from rnn.errors import CellError, TaskError, UserError
from rnn.network import NamedTensors, Network, build_seeded
from rnn.own_code import CellSource, describe_error, load_class, loaded_source
from rnn.tasks import bpe
from rnn.tasks.task import SavedTask
from rnn.tasks.tokenizer import Tokenizer
from rnn.training.checkpoint import read_safetensors
from rnn.training.devices import configure_matmul

# ------------------------------------------------------------------ model files

_FORMAT_VERSION = "1"


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained network with all that is needed to use it.

    Attributes:
        architecture: architecture of the network.
        weights: state dict of :class:`rnn.network.Network`, on the CPU.
        task: what it was trained on.
        precision: precision that it was trained in.
        metadata: further information (study, trial, …) as text.
        cell_source: source of a user's cell, by default the one that is loaded; None for built-in
            cells.
    """

    architecture: NetworkConfig
    weights: NamedTensors
    task: SavedTask
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
        return self.task.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of its text.

        Raises:
            TaskError: if the network was trained on another task.
        """
        if self.task.merges is None:
            raise TaskError(
                f"networks of task {self.task.name[:80]!r} predict no text: use export, whose "
                "run.py predicts from a file"
            )
        return Tokenizer(self.task.merges)


class _Header(BaseModel):
    """Metadata of a model file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format_version: Literal["1"]
    architecture: Json[NetworkConfig]
    task: Json[SavedTask]
    precision: Precision
    metadata: Json[dict[str, str]]
    cell_source: Json[CellSource] | None = None


def serialize_model(model: SavedModel) -> bytes:
    """Serialize a model to the content of its file."""
    header = {
        "format_version": _FORMAT_VERSION,
        "architecture": json.dumps(asdict(model.architecture)),
        "task": json.dumps(asdict(model.task)),
        "precision": model.precision,
        "metadata": json.dumps(dict(model.metadata)),
    }
    if model.cell_source is not None:
        header["cell_source"] = json.dumps(asdict(model.cell_source))
    return save({name: tensor.contiguous() for name, tensor in model.weights.items()}, header)


def deserialize_model(content: bytes) -> SavedModel:
    """Read a model from the content of its file.

    Raises:
        UserError: if it is damaged, or not a model file of this format.
    """
    try:
        weights, metadata = read_safetensors(content)
        header = _Header.model_validate(metadata)
        return SavedModel(
            header.architecture,
            weights,
            header.task,
            header.precision,
            header.metadata,
            header.cell_source,
        )
    except ValueError as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(
            f"model cannot be read ({' '.join(reason.split())[:200]}): expected a safetensors file "
            f"of format version {_FORMAT_VERSION}"
        ) from error


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

    Returns:
        The generated text, without the prompt.

    Raises:
        TaskError: if the network was trained on another task than text.
        CellError: if the source of a user's cell is not one, or does not match the weights.
    """
    configure_matmul("fp64" if model.precision == "fp64" else "fp32", torch.device("cpu"))
    module = build_trained_module(model)
    states = None
    generator = torch.Generator().manual_seed(seed)
    tokenizer = model.tokenizer
    read = tokenizer.encode(np.frombuffer(prompt or b"\n", np.uint8)).tolist()
    tokens: list[int] = []
    while len(tokens) < length:
        logits, states = module(torch.tensor(read)[:, None], states, 1)  # (1, 1, V)
        tokens.append(_sample_token(logits[0, 0], temperature, top_k, generator))
        read = tokens[-1:]
    return tokenizer.decode(tokens)


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

_README = """\
# A recurrent network: {label}

{metadata}

{usage}
It needs {needs}.

- `network.py`: the network; `outputs, states = Network()(inputs)` reads B sequences of T steps,
  {shapes}
- `weights.pt`: its weights, for `load_state_dict`
- `task.json`: what it reads and predicts, and the means and standard deviations by which its inputs
  and outputs are standardized, or the merges of its tokenizer
- `run.py`: converts them and predicts{further_files}
"""

_TEXT_USAGE = """\
`python run.py "Once upon a time"` continues a text."""

_TASK_USAGE = """\
`python run.py inputs.npy outputs.npy` reads {read}
and writes {predicted}, those of each step.
Without the second file it prints those of the last step. N is the number of sequences, T that of
their steps; each is read from the initial states."""


def export_files(model: SavedModel, bptt_steps: int = 1) -> dict[str, bytes]:
    """Return the files of an export: code, weights, task, script and README.

    Args:
        model: model to export; its metadata is listed in the ``README.md``.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The content of each file by name: ``network.py``, of
        :func:`rnn.codegen.generate_module`; ``weights.pt``, its state dict for
        ``torch.load(weights_only=True)``; ``task.json``, a :class:`SavedTask`; ``run.py``, which
        predicts from a file or continues a text; ``README.md``. For a text also ``bpe.py``, the
        tokenizer, and for a user's cell ``cell.py``, its source file as it was written, which is
        not executed here. Where that imports ``rnn_search`` there is a module of this name, which
        has ``linear_scan`` alone.
    """
    config = model.architecture
    texts = {
        "network.py": generate_module(config, model.spec, bptt_steps),
        "run.py": inspect.getsource(exported_run),
        "task.json": json.dumps(asdict(model.task)) + "\n",
    }
    needs = "Python, NumPy and PyTorch only"
    usage = _describe(model.task)
    further = ""
    if model.task.merges is not None:
        usage = _TEXT_USAGE
        texts["bpe.py"] = inspect.getsource(bpe)
        further += f"\n- `bpe.py`: converts between bytes and the {model.task.inputs:,} tokens"
    if model.cell_source is not None:
        needs = "Python, NumPy, PyTorch and what `cell.py` imports"
        texts["cell.py"] = model.cell_source.text
        further += "\n- `cell.py`: the cell of its layers, the source file as it was written"
        if "rnn_search" in _imported_modules(model.cell_source):
            texts["rnn_search.py"] = inspect.getsource(scan_reference)
            further += "\n- `rnn_search.py`: `linear_scan`, which `cell.py` imports"
    texts["README.md"] = _README.format(
        label=config.label,
        metadata="\n".join(f"- {name}: {value}" for name, value in model.metadata.items()),
        usage=usage,
        needs=needs,
        shapes=_list_shapes(model.task),
        further_files=further,
    )
    contents = {name: text.encode() for name, text in texts.items()}
    weights = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in model.weights.items()}, weights)
    return contents | {"weights.pt": weights.getvalue()}


def _imported_modules(source: CellSource) -> set[str]:
    modules: set[str | None] = set()
    for node in ast.walk(ast.parse(source.text.encode())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    return {module.partition(".")[0] for module in modules if module}


def _list_shapes(task: SavedTask) -> str:
    """Return the shapes of what a network reads and returns."""
    read = "tokens (T, B)" if task.reads_tokens else f"standardized numbers (T, B, {task.inputs})"
    return f"{read}, and returns the outputs (T, B, {task.outputs})"


def _describe(task: SavedTask) -> str:
    """Return how to use the networks of another task than text, with the shapes of their arrays."""
    read = f"numbers (T, {task.inputs}) or (N, T, {task.inputs}) in the units of the data"
    if task.reads_tokens:
        read = f"tokens (T,) or (N, T) from 0 to {task.inputs - 1}"
    shapes = f"(T, {task.outputs}) or (N, T, {task.outputs})"
    predicted = f"numbers {shapes} in the units of the data"
    if task.has_own_loss:
        predicted = f"outputs {shapes}, as the task's own loss reads them,"
    elif task.predicts_classes:
        predicted = f"the probabilities of the classes {shapes}"
    return _TASK_USAGE.format(read=read, predicted=predicted)
