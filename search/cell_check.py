"""Checks of users' cells against their contract, before networks are trained.

A cell is checked on tiny networks of it. V is the number of byte tokens, B the number of streams, T
the number of time steps.
"""

import itertools
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rnn.config import (
    BYTE_VOCAB_SIZE,
    BYTES,
    NetworkConfig,
    OptimizerConfig,
    ParamValue,
    Precision,
    TrialConfig,
    format_value,
)
from rnn.engines import build_network
from rnn.errors import CellError
from rnn.export import SavedModel, export_files
from rnn.network import (
    Network,
    Window,
    build_seeded,
    is_trained,
    named_tensors,
    network_shapes,
    split_tensors,
)
from rnn.own_code import CellSource, CodeSource, describe_error
from rnn.tasks.task import SavedTask
from rnn.tasks.text import TextData
from rnn.training.checkpoint import TrainState, deserialize_checkpoint, serialize_checkpoint
from rnn.training.loop import TrainConfig, TrainLoop
from search.cell_facts import MAX_STATE_SIZE, measure_cell
from search.form_check import compare_forms, find_worst, require_agreement, tabulate
from studies.config import StudyConfig
from studies.records import CellRecord
from studies.space import CELL, Params

_STATE_SIZE = 16
"""State size of the networks that are checked, where a study does not say."""

_MAX_STATE_SIZE = 64
"""State size that is large enough for a check."""

_LAYERS = 2
_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_STREAMS = 3

_BPTT_STEPS = 4
_UPDATES = 200
"""Updates in which a gradient may reach a parameter."""


def _build(config: NetworkConfig) -> Network:
    return build_seeded(config, BYTES, 0)


@torch.no_grad()
def _read(module: Network, tokens: Tensor, states: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Read tokens (T, B); return copies of the last logits (B, V) and the states after them."""
    logits, after = module(tokens, states)
    return [tensor.clone() for tensor in (logits[-1], *after)]


def _draw_tokens(steps: int, streams: int = _STREAMS) -> Tensor:
    """Return the same random tokens (steps, streams) at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(BYTE_VOCAB_SIZE, (steps, streams), generator=generator)


def _are_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def check_numbers(config: NetworkConfig) -> None:
    """Require the shapes and dtypes that networks need, and finite numbers."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision, streams in itertools.product(precisions, (1, _STREAMS)):
        network = build_network([TrialConfig(config, bptt_steps=2)], 0, precision)
        tokens = _draw_tokens(5, streams)
        states = network.init_training_state(streams)
        for step in range(1, len(tokens)):
            start = max(0, step - 2)
            window = Window(tokens[start:step], tokens[step : step + 1], begins=not start)
            losses, states = network.loss_and_grad(window, states)
            results = {"loss": [losses], "state": states, "gradient": [network.parameters.grads]}
            for what, tensors in results.items():
                if not all(tensor.isfinite().all() for tensor in tensors):
                    raise CellError(
                        f"cell {config.cell}: the {what} of step {step} is NaN or infinite in "
                        f"{precision}: expected finite numbers"
                    )


def check_function(config: NetworkConfig) -> None:
    """Require outputs to depend on tokens and state of their own stream and the weights alone."""
    cell = f"cell {config.cell}"
    module = _build(config)
    initial = named_tensors(_build(config))
    if not _are_equal(list(named_tensors(module).values()), list(initial.values())):
        raise CellError(
            f"{cell}: its constructor draws random numbers that are not PyTorch's: expected "
            "initial weights that follow from torch.manual_seed"
        )
    tokens = _draw_tokens(4)
    past = tokens[:3]
    token = tokens[3:]
    before = _read(module, past)
    states = [state.clone() for state in before[1:]]
    after = _read(module, token, states)
    if not _are_equal(before[1:], states):
        raise CellError(
            f"{cell}: forward changes the state that it reads in place: expected a new state, as "
            "in h = h + x instead of h += x"
        )
    again = _read(module, token, states)  # what the last call has kept is of another token
    if not _are_equal(after, again) or not _are_equal(before, _read(module, past)):
        raise CellError(
            f"{cell} returns other numbers for the same tokens: expected no random numbers, as in "
            "dropout or initial_state, and nothing that is kept between two calls"
        )
    for n in range(_STREAMS):
        alone = _read(module, token[:, n : n + 1], [state[n : n + 1] for state in states])
        for one, all_streams in zip(alone, after, strict=True):
            if not torch.allclose(one, all_streams[n : n + 1], rtol=1e-4, atol=1e-5):
                raise CellError(
                    f"{cell}: one stream of a batch changes the output of another, as in batch "
                    "normalisation: expected each row to depend on the same row of its input"
                )
    if not _are_equal(after, _read(module.eval(), token, states)):
        raise CellError(
            f"{cell} returns other numbers after eval(): expected the same as in training"
        )
    for name, tensor in named_tensors(module).items():
        if name not in initial or not torch.equal(tensor, initial[name]):
            raise CellError(
                f"{cell}: forward changes {name}: expected the constructor to create all "
                "parameters and buffers, and all that changes from step to step to be in the state"
            )


def _find_missing(config: NetworkConfig) -> set[str]:
    """Return the parameters of the cell that get no gradient in some updates of 4 steps each."""
    module = _build(config)
    tokens = _draw_tokens(_UPDATES + _BPTT_STEPS)
    trained = {name: tensor for name, tensor in module.named_parameters() if is_trained(tensor)}
    missing = {name for name in trained if name.startswith("layers.")}
    for start in range(_UPDATES):
        logits, _ = module(tokens[start : start + _BPTT_STEPS], outputs=1)
        loss = functional.cross_entropy(logits[-1], tokens[start + _BPTT_STEPS])
        grads = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        for (name, parameter), grad in zip(trained.items(), grads, strict=True):
            if grad.any():
                missing.discard(name)
            # Weights that are zero at first block the gradient of others at the first step only.
            parameter.data.sub_(grad, alpha=0.1)
        if not missing:
            break
    return missing


def describe_gradients(networks: Sequence[NetworkConfig]) -> list[str]:
    """Say which parameters and parts of a cell get no gradient, and where it is blind.

    The networks are of one cell, the first one with its default options. A line that does not hold
    for all of them names the options with which it does.
    """
    found: dict[str, list[NetworkConfig]] = {}
    for network in networks:
        for line in _list_gradient_lines(network):
            found.setdefault(line, []).append(network)
    lines = []
    for line, holding in found.items():
        named = "; or ".join(_name_options(network) for network in holding)
        lines.append(line if len(holding) == len(networks) else f"{line} (with {named})")
    return lines


def _list_gradient_lines(network: NetworkConfig) -> list[str]:
    lines = []
    missing = _find_missing(network)
    for name, parameter in _build(network).layers[0].named_parameters():
        if not parameter.requires_grad:
            lines.append(f"`{name}` gets no gradient: its requires_grad is False")
        elif all(f"layers.{layer}.{name}" in missing for layer in range(network.layers)):
            lines.append(f"`{name}` gets no gradient in {_UPDATES} updates")
    facts = measure_cell(network)
    for part, lag in facts.parts.items():
        if lag:
            lines.append(f"`{part}` gets no gradient with bptt_steps = {lag}")
    if not facts.sees_input:
        lines.append("its output does not see the input of its own step")
    return lines


def check_resumption(config: NetworkConfig) -> None:
    """Require a training that is resumed from a checkpoint to be that without one."""
    trial = TrialConfig(config, bptt_steps=2, optimizer=OptimizerConfig(learning_rate=0.01))
    text = np.random.default_rng(0).integers(0, BYTE_VOCAB_SIZE, 50).astype(np.uint8)
    settings = TrainConfig(
        steps=8, batch_size=_STREAMS, sequence_length=7, log_every=2, smoothing=0.5, seed=0
    )

    def train(stop: int, saved: TrainState | None = None) -> TrainState:
        network = build_network([trial], 0, weights={trial: saved.weights} if saved else None)
        loop = TrainLoop(network, TextData(text), settings, {trial: saved} if saved else None)
        for point in loop.train():
            if point.step == stop:
                break
        return loop.train_state(trial)

    whole = train(settings.steps)
    checkpoint = serialize_checkpoint(train(4), "check")
    resumed = train(settings.steps, deserialize_checkpoint("check", checkpoint))
    if not (
        whole.curve == resumed.curve
        and _are_equal(list(whole.weights.values()), list(resumed.weights.values()))
        and _are_equal(whole.states, resumed.states)
    ):
        raise CellError(
            f"cell {config.cell}: a training that is resumed from a checkpoint differs from one "
            "that is not: expected all that changes from step to step to be in the state"
        )


CHECKS: dict[str, Callable[[NetworkConfig], object]] = {
    "output, state and gradient have their shapes and are finite in fp32 and bf16": check_numbers,
    "forward is deterministic, and the streams of a batch are independent": check_function,
    "a gradient reaches parameters of the cell": measure_cell,
    "a training that is resumed from a checkpoint repeats bit for bit": check_resumption,
}
"""The checks in this process by what holds if they pass, in their order."""


_EXPORT = """
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, "")
for name in ("reports", "rnn", "rnn_search", "search", "studies"):
    if not Path(f"{name}.py").exists():
        sys.modules[name] = None  # its import raises an exception
from network import Network

torch.manual_seed(0)
networks = Network(), Network()  # the second draws other random numbers
networks[1].load_state_dict(torch.load("weights.pt", weights_only=True))
answers = []
tokens = json.load(sys.stdin)
for network in networks:
    logits, states = network(torch.tensor(tokens))
    answers.append(logits[-1].tolist())
print(json.dumps(answers))
"""
"""Program that reads tokens with an export, with its initial weights and with its stored ones."""


def check_export(config: NetworkConfig) -> None:
    """Require an export to run in a new process, without this program, and to compute the same."""
    module = _build(config)
    trained, constants = split_tensors(module)
    task = SavedTask("text", BYTE_VOCAB_SIZE, BYTE_VOCAB_SIZE, merges=[])
    model = SavedModel(config, trained | constants, task, "fp32", {})
    tokens = _draw_tokens(5, 1)
    with tempfile.TemporaryDirectory(prefix="rnn-search-check-") as folder:
        for file, content in export_files(model).items():
            Path(folder, file).write_bytes(content)
        given = json.dumps(tokens.tolist())
        printed = run_new_process(CellSource, config.cell, _EXPORT, given, folder)
    expected = _read(module, tokens)[0]
    for logits in json.loads(printed):
        if not torch.allclose(torch.tensor(logits), expected, 1e-3, 1e-4):
            raise CellError(
                f"cell {config.cell}: its export computes other numbers in a new process: expected "
                "nothing that depends on hash() or the order of a set, and random numbers in "
                "nn.Parameter or register_buffer only"
            )


_HINTS = {
    "dtype|scalar type": ": expected operands of one dtype, as in a @ b.to(a.dtype)",
    "through the graph a second time": ": expected nothing that is kept between two calls",
}
"""What to do about an exception of PyTorch, by a part of its message."""


def check_networks(
    networks: Sequence[NetworkConfig],
    on_passed: Callable[[str], None] = lambda _: None,
    on_compared: Callable[[Sequence[str]], None] = lambda _: None,
    is_thorough: bool = False,
) -> None:
    """Run every check on tiny networks of a user's cell.

    Args:
        networks: configs of the networks.
        on_passed: callback after each check, with what holds.
        on_compared: callback with the lines of a table that compares the cell's two forms.
        is_thorough: whether to compare them on a long sequence as well.

    Raises:
        CellError: if a check fails, naming the cell and what to do.
    """
    for passed, check in CHECKS.items():
        for network in networks:
            _run_check(passed, check, network)
        on_passed(passed)
    passed = "the sequence form computes what the step does"
    compare = partial(compare_forms, is_thorough=is_thorough)
    compared = {network: _run_check(passed, compare, network) for network in networks}
    worst = find_worst(itertools.chain(*compared.values()))
    if worst:
        on_compared(tabulate(worst))
        for network, comparisons in compared.items():
            _run_check(passed, partial(require_agreement, comparisons=comparisons), network)
        on_passed(passed)
    check_export(networks[0])
    on_passed("an export computes the same in a new process, without this program")


def _run_check(
    passed: str, check: Callable[[NetworkConfig], _Result], network: NetworkConfig
) -> _Result:
    """Return the result of a check; an error names the options with which it fails."""
    try:
        return check(network)
    except CellError as error:
        raise CellError(f"{error}{_describe_options(network, str(error))}") from error
    except (Exception, SystemExit) as error:
        hints = (hint for part, hint in _HINTS.items() if re.search(part, str(error)))
        raise CellError(
            f"cell {network.cell} raises {describe_error(error)}"
            f"{_describe_options(network)}, in the check that {passed}{next(hints, '')}"
        ) from error


def _describe_options(network: NetworkConfig, message: str = "") -> str:
    if not network.options or f", {network.options[0][0]}=" in message:
        return ""
    return f" (with {_name_options(network)})"


def _name_options(network: NetworkConfig) -> str:
    options = (f"{name} = {format_value(value)}" for name, value in network.options)
    return ", ".join(options) or "the default options"


def check_cells(config: StudyConfig, checked: Iterable[StudyConfig] = ()) -> None:
    """Check the cells of a study on tiny networks, with the values of options that it has.

    A network of one layer is built of each combination of options and sizes. Cells whose values and
    sizes are those of a study that was checked before are not checked again.

    Raises:
        CellError: if one cannot be built, or breaks the contract of a cell.
    """
    for name, record in config.cells.items():
        built = _list_combinations(config, name, record)
        same = [
            study
            for study in checked
            if name in study.cells and study.cells[name].sha256 == record.sha256
        ]
        if any(built == _list_combinations(study, name, record) for study in same):
            continue  # it may not even be loaded
        _logger.info(f"checking cell {name}")
        for network in built:
            network_shapes(network)
        size = min((network.state_size for network in built), default=_STATE_SIZE)
        values = dict.fromkeys(item for network in built for item in network.options)
        check_networks(list_networks(name, record, values, min(size, MAX_STATE_SIZE)))


def _list_combinations(config: StudyConfig, name: str, record: CellRecord) -> list[NetworkConfig]:
    """Return a network of one layer for each combination of options and sizes in a study."""
    trials: Iterable[Params] = ()
    if config.grid is not None:
        trials = (params for params in config.grid.combinations() if params[CELL] == name)
    elif config.refinement is not None:  # its other values were checked with its source
        trials = config.refinement.variants
    networks = (
        _to_network(name, record, params, int(params.get("state_size", _STATE_SIZE)), layers=1)
        for params in trials
    )
    return list(dict.fromkeys(networks))


def list_networks(
    name: str,
    record: CellRecord,
    values: Iterable[tuple[str, ParamValue]] = (),
    state_size: int = _STATE_SIZE,
    base: Mapping[str, ParamValue] | None = None,
) -> list[NetworkConfig]:
    """Return the networks by which a cell is checked: each value of each option, one at a time.

    Besides the given values, these are all of a ``bool`` or a ``Literal``. Options that are not
    varied have the values of ``base``, or else their defaults.
    """
    given: Params = dict(base or {})
    definitions = record.options.items()
    start = {option: definition.default for option, definition in definitions} | given
    listed = [
        (option, value)
        for option, definition in definitions
        for value in definition.choices or ([False, True] if definition.type == "bool" else [])
    ]
    changes = ({option: value} for option, value in (*listed, *values) if value != start[option])
    networks = (
        _to_network(name, record, given | change, state_size, _LAYERS) for change in ({}, *changes)
    )
    return list(dict.fromkeys(networks))


def _to_network(
    name: str, record: CellRecord, params: Mapping[str, ParamValue], size: int, layers: int
) -> NetworkConfig:
    options = tuple(
        (option, definition.convert(params[option]))
        for option, definition in record.options.items()
        if option in params
    )
    return NetworkConfig(name, layers, size, options, record.sha256)


def run_new_process(
    kind: type[CodeSource], name: str, program: str, given: str, folder: str | None = None
) -> str:
    """Run a program that uses a cell or a task in a new process, with another hash seed.

    Args:
        kind: whether it is a cell or a task.
        name: its name.
        program: the program, in Python.
        given: its standard input.
        folder: its working directory; None for that of this process.

    Returns:
        The last line that it prints.

    Raises:
        CellError, TaskError: if the process fails.
    """
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        input=given.encode(),
        capture_output=True,
    )
    printed = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or not printed:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        allowed = " and rnn_search.linear_scan" if kind is CellSource else ""
        raise kind.error(
            f"{kind.kind} {name} fails in a new process ({reason[:200]}): expected a file that "
            f"needs nothing but installed packages{allowed}"
        )
    return printed[-1]
