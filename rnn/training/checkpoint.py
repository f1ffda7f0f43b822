"""A member's training written down, to be gone on from as if nothing had been.

A checkpoint is the SHA-256 of what follows it, and a file in the form of safetensors: numbers and
names, never code. It holds the weights, their mean, Adam's moments, the hidden states, the smoothed
loss, the position and the curve. The position, with the study's seed, is also the state of all that
is drawn at random; see :class:`TrainState`. It does not say whom the member was
trained
with. It names the code that trained the member, but is read by any code.
"""
# TODO-MERGE Which code trained a network, told from its sources.

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rnn.config import BYTE_VOCAB_SIZE, BaselineConfig, GatedConfig
from rnn.errors import CheckpointError
from rnn.stacked.flat_parameters import NamedTensors

_DIGEST = hashlib.sha256().digest_size
_FORM = "3"
_AVERAGE = "average"

UNKNOWN_CODE = "unknown"
"""Stands for the fingerprint of the code in checkpoints from before it was written."""


@dataclass(frozen=True)
class TrainState:
    """How far one member has come, and all that its training goes on from.

    There is no generator of random numbers among it: weights are drawn before the first step, and a
    sequence's text follows from the seed and the sequence's number.

    Attributes:
        step: steps done.
        seconds: the member's share of the wall time that they took.
        weights: as they are.
        moments: Adam's, first and second.
        states: as the last step left them: for each layer (B, n), and what a longer gradient window
            needs; see ``init_training_state`` of the networks.
        smoothed: () the smoothed loss.
        curve: the smoothed loss at each log point so far, by step.
        average: the mean of the weights so far; None before it is begun.
        code: fingerprints of the code that trained it, the latest last.
    """

    step: int
    seconds: float
    weights: NamedTensors
    moments: tuple[NamedTensors, NamedTensors]
    states: list[Tensor]
    smoothed: Tensor
    curve: dict[int, float]
    average: NamedTensors | None = None
    code: tuple[str, ...] = ()


def serialize_checkpoint(progress: TrainState, identity: str) -> bytes:
    """Write down how far a member has come.

    Args:
        progress: of the member.
        identity: of its training: all that its numbers follow from, in any words.
    """
    tensors: dict[str, Tensor] = {}
    kinds = _kinds(progress.weights, *progress.moments)
    if progress.average is not None:
        kinds[_AVERAGE] = progress.average
    for kind, weights in kinds.items():
        for name, (weight, bias) in weights.items():
            tensors[f"{kind}.{name}.weight"], tensors[f"{kind}.{name}.bias"] = weight, bias
    tensors |= {f"states.{index}": state for index, state in enumerate(progress.states)}
    tensors["smoothed"] = progress.smoothed
    tensors["curve.steps"] = torch.tensor(list(progress.curve), dtype=torch.int64)
    tensors["curve.losses"] = torch.tensor(list(progress.curve.values()), dtype=torch.float64)
    metadata = {
        "form": _FORM,
        "identity": identity,
        "step": str(progress.step),
        "seconds": repr(progress.seconds),
        "code": " ".join(progress.code),
    }
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    return hashlib.sha256(content).digest() + content


def deserialize_checkpoint(
    architecture: GatedConfig | BaselineConfig,
    identity: str,
    written: bytes,
    vocab_size: int = BYTE_VOCAB_SIZE,
) -> TrainState:
    """Return how far a member had come when a checkpoint was written.

    Args:
        architecture: of the member.
        identity: that the checkpoint must have been written with.
        written: the checkpoint.
        vocab_size: V.

    Raises:
        CheckpointError: if it is damaged or of another training.
    """
    tensors, metadata = _parse(written)
    if (metadata.get("form"), metadata.get("identity")) != (_FORM, identity):
        raise CheckpointError("the checkpoint is of another run or of another version")
    shapes = architecture.param_shapes(vocab_size)
    kinds: dict[str, NamedTensors] = {}
    has_average = any(name.startswith(f"{_AVERAGE}.") for name in tensors)
    for kind in (*_kinds({}, {}, {}), *[_AVERAGE] * has_average):
        kinds[kind] = {}
        for name, (inputs, outputs) in shapes.items():
            weight = _tensor(tensors, f"{kind}.{name}.weight", (inputs, outputs))
            bias = _tensor(tensors, f"{kind}.{name}.bias", (outputs,))
            kinds[kind][name] = weight, bias
    average = kinds.pop(_AVERAGE, None)
    weights, first, second = kinds.values()
    states = sum(name.startswith("states.") for name in tensors)
    steps, losses = tensors["curve.steps"].tolist(), tensors["curve.losses"].tolist()
    return TrainState(
        int(metadata["step"]),
        float(metadata["seconds"]),
        weights,
        (first, second),
        [tensors[f"states.{index}"] for index in range(states)],
        tensors["smoothed"],
        dict(zip(steps, losses, strict=True)),
        average,
        tuple(metadata.get("code", UNKNOWN_CODE).split()),
    )


def _kinds(
    weights: NamedTensors, first: NamedTensors, second: NamedTensors
) -> dict[str, NamedTensors]:
    return {"weights": weights, "first moments": first, "second moments": second}


def _tensor(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors or tensors[name].shape != shape:
        raise CheckpointError(f"the checkpoint has no {name} of the shape {shape}")
    return tensors[name]


def _parse(written: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    digest, content = written[:_DIGEST], written[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError("the checkpoint is damaged: its SHA-256 is not that of its content")
    try:
        # The form's header: its length in eight bytes, and a JSON object.
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        return load(content), metadata
    except (ValueError, SafetensorError) as error:  # of another program, with a digest before it
        raise CheckpointError(f"the checkpoint cannot be read ({error})") from error


@cache
def source_hash() -> str:
    """Return twelve hexadecimal digits that change whenever a source file of ``rnn`` does.

    The SHA-256 of all modules, subpackages included, by path, as they are at the first call.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]
