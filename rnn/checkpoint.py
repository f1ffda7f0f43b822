"""A training run written down, to be gone on from as if nothing had been.

A checkpoint is the SHA-256 of what follows it, and a file in the form of safetensors: numbers and
names, never code. It holds the weights, Adam's moments, the hidden states, the smoothed losses, the
position and the curve. The position, with the study's seed, is also the state of all that is drawn
at random; see :class:`rnn.training.Run`.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rnn.errors import CheckpointError
from rnn.training import LogPoint, Run

_DIGEST = hashlib.sha256().digest_size
_FORM = "1"


def write_checkpoint(run: Run, identity: str) -> bytes:
    """Write down a run, between two of its steps.

    Args:
        run: as it stands.
        identity: of the run: all that its numbers follow from, in any words.
    """
    tensors = dict(_weights(run))
    for name, parameter in run.population.named_parameters():
        # A weight that no gradient has reached has no moments.
        for moment, value in run.optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{moment}"] = value
    tensors |= {f"states.{index}": state for index, state in enumerate(run.states)}
    tensors["smoothed"] = run.smoothed
    tensors["curve.steps"] = torch.tensor([point.step for point in run.curve])
    losses = [point.smoothed_losses for point in run.curve]
    tensors["curve.losses"] = torch.tensor(losses, dtype=torch.float64)  # (points, K)
    metadata = {
        "form": _FORM,
        "identity": identity,
        "step": str(run.step),
        "seconds": repr(run.seconds),
    }
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    return hashlib.sha256(content).digest() + content


def read_checkpoint(run: Run, identity: str, written: bytes) -> None:
    """Bring a run to where a checkpoint left it.

    Args:
        run: a new one, of the same population and settings.
        identity: that the checkpoint must have been written with.
        written: the checkpoint.

    Raises:
        CheckpointError: if it is damaged or of another run; this one stays as it was.
    """
    tensors, metadata = _parse(written)
    if (metadata.get("form"), metadata.get("identity")) != (_FORM, identity):
        raise CheckpointError("the checkpoint is of another run or of another version")
    for name, weight in _weights(run):
        if name not in tensors or tensors[name].shape != weight.shape:
            raise CheckpointError(f"the checkpoint has no {name} of the shape {weight.shape}")
    device = run.smoothed.device

    def taken(name: str) -> Tensor:
        # A copy of its own: what is read lies at any address, and sums may depend on it.
        return tensors[name].to(device, copy=True)

    with torch.no_grad():
        for name, weight in _weights(run):
            weight.copy_(tensors[name])
    for name, parameter in run.population.named_parameters():
        prefix = f"optimizer.{name}."
        moments = {
            key.removeprefix(prefix): taken(key) for key in tensors if key.startswith(prefix)
        }
        if moments:
            run.optimizer.state[parameter] = moments
    states = sum(name.startswith("states.") for name in tensors)  # none before the first step
    run.states = [taken(f"states.{index}") for index in range(states)]
    run.smoothed = taken("smoothed")
    run.step = int(metadata["step"])
    run.seconds = float(metadata["seconds"])
    points = zip(tensors["curve.steps"].tolist(), tensors["curve.losses"].tolist(), strict=True)
    run.curve = [LogPoint(step, tuple(losses)) for step, losses in points]


def _weights(run: Run) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in run.population.named_parameters():
        yield f"weights.{name}", parameter.detach()


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
