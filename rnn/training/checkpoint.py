"""Checkpoint format for exact resumption of a network's training.

A checkpoint is a SHA-256 digest followed by a safetensors file, which holds numbers and names but
no code: weights, their average, the optimizer's moments, hidden states, smoothed loss, step and
curve. The step and the study's seed determine all random draws that follow. A checkpoint does not
depend on the other networks of the stack. It names the source code and the versions of PyTorch that
trained the network, but any version with the same format reads it.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnn.errors import CheckpointError
from rnn.network import NamedTensors

_DIGEST_SIZE = hashlib.sha256().digest_size
_FORMAT_VERSION = "1"


@dataclass(frozen=True)
class TrainState:
    """All that one network's training resumes from.

    It has no generator state: weights are drawn before the first step, and the text of a sequence
    follows from the seed and the sequence's number.

    Attributes:
        step: number of steps done.
        seconds: the network's share of the training time.
        weights: current weights.
        moments: first and second moments of the optimizer; zeros where it has none.
        states: what the network carries from step to step; see ``init_training_state``.
        ema_loss: smoothed loss ().
        curve: smoothed loss at each log point so far, by step.
        average: average of the weights so far; None before averaging starts.
        source_hashes: hashes of the code that trained the network, the latest last.
        torch_versions: versions of PyTorch that trained it, the latest last.
        updates: number of updates done.
        averaged: number of updates whose weights the average has.
        metrics: held-out loss and metrics so far, each by step.
    """

    step: int
    seconds: float
    weights: NamedTensors
    moments: tuple[NamedTensors, NamedTensors]
    states: list[Tensor]
    ema_loss: Tensor
    curve: dict[int, float]
    average: NamedTensors | None
    source_hashes: tuple[str, ...]
    torch_versions: tuple[str, ...]
    updates: int
    averaged: int
    metrics: dict[str, dict[int, float]]


def serialize_checkpoint(train_state: TrainState, identity: str) -> bytes:
    """Serialize a network's training state.

    Args:
        train_state: state to serialize.
        identity: string that determines the training; see :func:`deserialize_checkpoint`.
    """
    from safetensors.torch import save  # here: training without checkpoints needs PyTorch alone

    first, second = train_state.moments
    groups = {"weights": train_state.weights, "moments.1": first, "moments.2": second}
    if train_state.average is not None:
        groups["average"] = train_state.average
    tensors: dict[str, Tensor] = {}
    for group, params in groups.items():
        tensors |= {f"{group}.{name}": tensor for name, tensor in params.items()}
    tensors |= {f"states.{index}": state for index, state in enumerate(train_state.states)}
    tensors["ema_loss"] = train_state.ema_loss
    tensors["curve.steps"] = torch.tensor(list(train_state.curve), dtype=torch.int64)
    tensors["curve.losses"] = torch.tensor(list(train_state.curve.values()), dtype=torch.float64)
    for name, points in train_state.metrics.items():
        tensors[f"metrics.{name}"] = torch.tensor(list(points.items()), dtype=torch.float64)
    metadata = {
        "format_version": _FORMAT_VERSION,
        "identity": identity,
        "step": str(train_state.step),
        "seconds": repr(train_state.seconds),
        "source_hashes": " ".join(train_state.source_hashes),
        "torch_versions": " ".join(train_state.torch_versions),
        "updates": str(train_state.updates),
        "averaged": str(train_state.averaged),
    }
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    return hashlib.sha256(content).digest() + content


def deserialize_checkpoint(identity: str, content: bytes) -> TrainState:
    """Restore the training state of a checkpoint.

    Args:
        identity: identity that the checkpoint must have been serialized with.
        content: the checkpoint.

    Raises:
        CheckpointError: if the checkpoint is damaged, of another format or of another training.
    """
    digest = content[:_DIGEST_SIZE]
    body = content[_DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError("checkpoint is damaged: its SHA-256 does not match its content")
    try:
        return _restore(identity, *read_safetensors(body))
    except (LookupError, TypeError, ValueError) as error:  # written by another program
        raise CheckpointError(f"checkpoint cannot be read ({error})") from error


def _restore(identity: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> TrainState:
    if metadata.get("format_version") != _FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint was written by another version: expected format {_FORMAT_VERSION}"
        )
    if metadata.get("identity") != identity:
        raise CheckpointError("checkpoint belongs to another training: expected the same settings")

    def read_group(group: str) -> NamedTensors:
        return {
            name.removeprefix(group): tensor
            for name, tensor in tensors.items()
            if name.startswith(group)
        }

    steps = tensors["curve.steps"].tolist()
    losses = tensors["curve.losses"].tolist()
    return TrainState(
        step=int(metadata["step"]),
        seconds=float(metadata["seconds"]),
        weights=read_group("weights."),
        moments=(read_group("moments.1."), read_group("moments.2.")),
        states=[tensors[f"states.{index}"] for index in range(len(read_group("states.")))],
        ema_loss=tensors["ema_loss"],
        curve=dict(zip(steps, losses, strict=True)),
        average=read_group("average.") or None,
        source_hashes=tuple(metadata["source_hashes"].split()),
        torch_versions=tuple(metadata["torch_versions"].split()),
        updates=int(metadata["updates"]),
        averaged=int(metadata["averaged"]),
        metrics={
            name: {int(step): value for step, value in points.tolist()}
            for name, points in read_group("metrics.").items()
        },
    )


def read_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, in the order of their names, and the metadata of a safetensors file.

    Raises:
        ValueError: if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = dict(sorted(load(content).items()))
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    # The library returns the metadata of files on disk alone.
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    return tensors, json.loads(header).get("__metadata__", {})


def torch_version() -> str:
    """Return the version of PyTorch."""
    return str(torch.__version__)


@cache
def source_hash(package: Path = Path(__file__).parents[1]) -> str:
    """Return twelve hexadecimal digits that change with any source file of the package ``rnn``.

    The files, those of subpackages included, are read at the first call.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".c", ".h")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]
