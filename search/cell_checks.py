"""What a user's own cell must do, each as a check of a tiny network of it.

V is the number of byte tokens, B the number of streams.
"""

import hashlib
import itertools
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rnn.config import BYTE_VOCAB_SIZE, CellConfig, OptimizerConfig, Precision, TrialConfig
from rnn.errors import CellError
from rnn.models.cell_module import CellModule, build_seeded, named_tensors
from rnn.models.cell_network import CellNetwork
from rnn.training.checkpoint import TrainState, deserialize_checkpoint, serialize_checkpoint
from rnn.training.loop import TrainConfig, TrainLoop

STREAMS = 3

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

_GRADIENT_STEPS, _GRADIENT_WINDOW, _GRADIENT_RATE = 8, 4, 0.1

_TRAINING = TrainConfig(
    steps=8,
    batch_size=STREAMS,
    sequence_length=7,
    log_every=2,
    smoothing=0.5,
    seed=0,
    average_fraction=0.5,
)

_RESUMED_AT = 4


def draw_tokens(steps: int, streams: int = STREAMS) -> Tensor:
    """Return the same random tokens (steps, streams) at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(BYTE_VOCAB_SIZE, (steps, streams), generator=generator)


def build(config: CellConfig, seed: int = 0) -> CellModule:
    """Build a network of byte tokens."""
    return build_seeded(config, BYTE_VOCAB_SIZE, seed)


@torch.no_grad()
def read_tokens(
    module: CellModule, tokens: Tensor, states: Sequence[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Read tokens (steps, B) one after another; return the last logits (B, V) and states."""
    logits = torch.empty(0)
    after = list(module.initial_states(tokens.shape[1]) if states is None else states)
    for each in tokens:
        logits, after = module(each[None], after)
    return logits, after


@torch.no_grad()
def digest_network(config: CellConfig) -> tuple[str, str]:
    """Return hashes of a new network's parameters and buffers, and of what it computes."""
    module = build(config)
    parameters, outputs = hashlib.sha256(), hashlib.sha256()
    for name, tensor in named_tensors(module).items():
        parameters.update(f"{name} {tuple(tensor.shape)}\n".encode() + _to_bytes(tensor))
    logits, states = read_tokens(module, draw_tokens(3))
    for tensor in (logits, *states):
        outputs.update(_to_bytes(tensor))
    return parameters.hexdigest(), outputs.hexdigest()


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _read_memory(module: CellModule) -> dict[str, object]:
    """Return what forward can keep besides parameters and buffers, by name, for a comparison.

    That is attributes of layers and their modules, and variables of their classes and files.
    """
    places: dict[str, Mapping[str, object]] = {}
    for name, each in module.layers.named_modules(prefix="layers"):
        places[f"{name}."] = {
            attribute: value for attribute, value in vars(each).items() if attribute not in _OWN
        }
        if _is_of_cell(each):
            places[f"{type(each).__name__}."] = vars(type(each))
            places["the global variable "] = vars(sys.modules[type(each).__module__])
    return {
        f"{place}{name}": _freeze(value)
        for place, values in places.items()
        for name, value in values.items()
        if not name.startswith("__")
    }


_OWN = vars(nn.Module()).keys()
"""Attributes that every module has."""


def _freeze(value: object, depth: int = 5) -> object:
    """Return the content of a tensor, a container or an object of a cell; of others, what it is."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, _to_bytes(value.to_dense())
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, str | bytes | int | float | complex):
        return repr(value)  # NaN equals itself
    if depth > 0 and isinstance(value, dict):
        return [(repr(key), _freeze(each, depth - 1)) for key, each in value.items()]
    if depth > 0 and isinstance(value, list | tuple | set | deque):
        return [_freeze(each, depth - 1) for each in value]
    if isinstance(value, nn.Module) or _is_of_cell(value):
        return id(value), _freeze(getattr(value, "__dict__", None), depth - 1)
    return id(value)


def _is_of_cell(value: object) -> bool:
    """Return whether the class of an object is defined in the file of a cell."""
    return type(value).__module__.startswith("cell_")


def _are_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def check_shapes(config: CellConfig) -> None:
    """Build the network, and read tokens in one stream and in several."""
    for streams in (1, STREAMS):
        read_tokens(build(config), draw_tokens(3, streams))


def check_finite(config: CellConfig) -> None:
    """Require losses, states and gradients to be finite in each precision."""
    tokens = draw_tokens(5)
    for precision in _PRECISIONS:
        network = CellNetwork([TrialConfig(config, bptt_steps=2)], 0, precision)
        states = network.init_training_state(STREAMS)
        for step, (read, target) in enumerate(itertools.pairwise(tokens), start=1):
            losses, states = network.loss_and_grad(read, target, states)
            for what, tensors in (
                ("loss", [losses]),
                ("state", states),
                ("gradient", [network.parameters.grads]),
            ):
                if not all(tensor.isfinite().all() for tensor in tensors):
                    raise CellError(
                        f"cell {config.cell}: the {what} of step {step} is NaN or infinite in "
                        f"{precision}: expected finite numbers"
                    )


def check_deterministic(config: CellConfig) -> None:
    """Require outputs to depend on input, state and parameters alone, and to change nothing."""
    if digest_network(config)[0] != digest_network(config)[0]:
        raise CellError(
            f"cell {config.cell}: its constructor draws random numbers that are not PyTorch's: "
            "expected initial weights that follow from torch.manual_seed"
        )
    module, tokens = build(config), draw_tokens(6)
    if not _are_equal(module.initial_states(STREAMS), module.initial_states(STREAMS)):
        raise CellError(
            f"cell {config.cell}: initial_state returns other numbers at each call: expected a "
            "state that follows from the parameters and buffers"
        )
    tensors = _copy(named_tensors(module))
    _, states = read_tokens(module, tokens[:2])
    before, generator = [state.clone() for state in states], torch.get_rng_state()
    logits, after = read_tokens(module, tokens[2:3], states)
    if not torch.equal(generator, torch.get_rng_state()):
        raise CellError(
            f"cell {config.cell}: forward draws random numbers, as dropout does: expected a cell "
            "without them"
        )
    if not _are_equal(before, states):
        raise CellError(
            f"cell {config.cell}: forward changes the state that it reads in place: expected a new "
            "state, as in h = h + x instead of h += x"
        )
    first = [tensor.clone() for tensor in (logits, *after)]
    memory = _read_memory(module)  # what the first call has built, as a constant mask, may stay
    read_tokens(module, tokens[3:], states)
    now = named_tensors(module)
    for name in now:
        if name not in tensors:
            raise CellError(
                f"cell {config.cell}: forward creates {name}: expected the constructor to create "
                "all parameters and buffers"
            )
    changed = [name for name, tensor in now.items() if not torch.equal(tensor, tensors[name])]
    changed += [name for name, value in _read_memory(module).items() if memory.get(name) != value]
    if changed:
        raise CellError(
            f"cell {config.cell}: forward changes {changed[0]}: expected all that changes from "
            "step to step to be in the state"
        )
    for mode, reason in (
        (True, "for the same input and state: expected nothing that is kept between two calls"),
        (False, "after eval(): expected the same as in training"),
    ):
        module.train(mode)
        if not _are_equal(first, _as_list(read_tokens(module, tokens[2:3], states))):
            raise CellError(f"cell {config.cell}: forward returns other numbers {reason}")


def check_streams(config: CellConfig) -> None:
    """Require each stream to be independent of the others."""
    module, tokens = build(config), draw_tokens(3)
    _, states = read_tokens(module, tokens[:2])
    logits, after = read_tokens(module, tokens[2:], states)
    others = [state.clone() for state in states]
    for state in others:
        if state.is_floating_point():
            state[1:] += 1
    changed = tokens[2:].clone()
    changed[:, 1:] = (changed[:, 1:] + 1) % BYTE_VOCAB_SIZE
    for one, other in zip(
        (logits, *after), _as_list(read_tokens(module, changed, others)), strict=True
    ):
        if not torch.allclose(one[0], other[0], rtol=1e-4, atol=1e-5):
            raise CellError(
                f"cell {config.cell}: one stream of a batch changes the output of another, as in "
                "batch normalisation: expected each row to depend on the same row of its input"
            )


def _as_list(result: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    return [result[0], *result[1]]


def check_gradients(config: CellConfig) -> None:
    """Require the gradient to reach every parameter within a few updates."""
    network = CellNetwork([TrialConfig(config, bptt_steps=_GRADIENT_WINDOW)], 0)
    parameters, states = network.parameters, network.init_training_state(STREAMS)
    missing = {name for name in parameters.names if name.startswith("layers.")}
    for read, target in itertools.pairwise(draw_tokens(_GRADIENT_STEPS + 1)):
        _, states = network.loss_and_grad(read, target, states)
        for name, grad in parameters.extract(0, parameters.grads).items():
            if grad.any():
                missing.discard(name)
        # Weights that are zero at first block the gradient of others at the first step only.
        parameters.values.sub_(parameters.grads, alpha=_GRADIENT_RATE)
    if missing:
        names = [name for name in parameters.names if name in missing]
        local = list(dict.fromkeys(name.split(".", 2)[2] for name in names))
        raise CellError(
            f"cell {config.cell}: the gradient does not reach its parameter {local[0]}: expected "
            "forward to use it, or a buffer"
        )


def check_steps(config: CellConfig) -> None:
    """Require that no gradient crosses a step where ``bptt_steps`` is 1."""
    trial, tokens = TrialConfig(config), draw_tokens(5)
    network = CellNetwork([trial], 0)
    states = network.init_training_state(STREAMS)
    for read, target in itertools.pairwise(tokens[:4]):
        _, states = network.loss_and_grad(read, target, states)
    without_past = CellNetwork([trial], 0)
    grads = []
    for each in (network, without_past):
        each.loss_and_grad(tokens[3], tokens[4], states)
        grads.append(each.parameters.grads.clone())
    if not torch.equal(*grads):
        raise CellError(
            f"cell {config.cell}: the gradient of a step depends on the steps before it, with "
            "bptt_steps = 1: expected nothing that is kept between two calls"
        )


def check_state_dict(config: CellConfig) -> None:
    """Require a network to be its state dict."""
    module, other = build(config), build(config, seed=1)
    other.load_state_dict(module.state_dict())
    tokens = draw_tokens(3)
    outputs = [_as_list(read_tokens(each, tokens)) for each in (module, other)]
    if not _are_equal(*outputs):
        raise CellError(
            f"cell {config.cell}: it computes with random numbers that its state dict lacks: "
            "expected them in nn.Parameter or register_buffer"
        )


def check_resumption(config: CellConfig) -> None:
    """Require a training that is resumed from a checkpoint to be that without one."""
    trial = TrialConfig(config, bptt_steps=2, optimizer=OptimizerConfig(learning_rate=0.01))
    text = np.random.default_rng(0).integers(0, BYTE_VOCAB_SIZE, 50).astype(np.uint8)

    def train(stop: int, saved: TrainState | None = None) -> TrainState:
        weights = {trial: saved.weights} if saved else None
        network = CellNetwork([trial], 0, weights=weights)
        loop = TrainLoop(network, text, _TRAINING, {trial: saved} if saved else None)
        for point in loop.train():
            if point.step == stop:
                break
        return loop.train_state(trial)

    whole = train(_TRAINING.steps)
    checkpoint = serialize_checkpoint(train(_RESUMED_AT), "check")
    resumed = train(_TRAINING.steps, deserialize_checkpoint(config, "check", checkpoint))
    if not (
        whole.curve == resumed.curve
        and _are_equal(list(whole.weights.values()), list(resumed.weights.values()))
        and _are_equal(whole.states, resumed.states)
    ):
        raise CellError(
            f"cell {config.cell}: a training that is resumed from a checkpoint differs from one "
            "that is not: expected all that changes from step to step to be in the state"
        )


@dataclass(frozen=True)
class Check:
    """A check of one network.

    Attributes:
        passed: what holds if it passes.
        run: raises a :class:`CellError` if it does not hold.
    """

    passed: str
    run: Callable[[CellConfig], None]


CHECKS = (
    Check("output and state have their shapes, in one stream and in several", check_shapes),
    Check("loss, state and gradient are finite in fp32 and bf16", check_finite),
    Check("forward is deterministic and keeps nothing between two calls", check_deterministic),
    Check("the streams of a batch are independent", check_streams),
    Check("the gradient reaches every parameter", check_gradients),
    Check("no gradient crosses a step if bptt_steps is 1", check_steps),
    Check("a network is its state dict", check_state_dict),
    Check("a training that is resumed from a checkpoint repeats bit for bit", check_resumption),
)
"""The checks in this process, in their order."""
