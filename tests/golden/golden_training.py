"""Loss curves of tiny training runs.

A curve belongs to a network, not to what trains it: ``test_golden.py`` compares every engine with
these results, in lockstep.

Each precision has a file and a tolerance. Largest differences measured between the engines, and
between CPUs with AVX-512 and bfloat16, with AVX-512 alone and with AVX2 (emulated by
``ATEN_CPU_CAPABILITY``, ``ONEDNN_MAX_CPU_ISA`` and ``MKL_ENABLE_INSTRUCTIONS``), one and two
threads: 4e-16 in fp64, 2e-7 in fp32, 2e-4 in bf16. Without AVX2 initial weights are rounded
otherwise, which changes fp64 by 1e-8.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from golden import Golden
from user_cells import CELLS, EXAMPLES, cell_config

from rnn.autograd import AutogradStack, lockstep_obstacle
from rnn.config import (
    BASELINE_CELLS,
    GatedOptions,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    TrialConfig,
)
from rnn.engines import build_network, stack_key
from rnn.native.engine import NativeStack
from rnn.native.library import load_library
from rnn.stacked.engine import NetworkStack, can_stack
from rnn.tasks.text import TextData, select_eval_windows
from rnn.training.evaluation import compute_eval_losses
from rnn.training.loop import TrainConfig, TrainLoop

ENGINES = {"native": NativeStack, "stacked": NetworkStack, "autograd": AutogradStack}

VOCAB_SIZE, SEED = 11, 1

TRAIN_CONFIG = TrainConfig(
    steps=16,
    batch_size=3,
    sequence_length=8,
    log_every=4,
    smoothing=0.5,
    seed=3,
    average_fraction=0.25,
)

TEXT = np.array([(i * i // 5 + i // 7) % VOCAB_SIZE for i in range(240)], np.uint8)


class Case(NamedTuple):
    """A network and how it is trained, with a name in a user's words."""

    name: str
    config: TrialConfig


def make_case(network, cell, options, bptt_steps, optimizer, replicate=0) -> Case:
    """Return the training of two layers of a cell, built in or a user's own."""
    if cell in CELLS or cell in EXAMPLES:
        # So small that no tensor has 16 random normal numbers, which depend on the kind of CPU.
        architecture = cell_config(cell, 2, 3, **options)
    elif cell in BASELINE_CELLS:
        architecture = NetworkConfig(cell, 2, 5)
    else:
        architecture = GatedOptions(**options).network(layers=2, state_size=5)
    schedule = "" if optimizer.schedule == "constant" else f", {optimizer.schedule}"
    name = f"{network}, bptt_steps {bptt_steps}, {optimizer.name}{schedule}"
    config = TrialConfig(architecture, replicate, bptt_steps, optimizer)
    return Case(f"{name} #{replicate}" if replicate else name, config)


def can_train(engine: str, cases: Sequence[Case], precision: Precision) -> bool:
    """Return whether an engine can train these networks together on this machine."""
    configs = [case.config for case in cases]
    if engine == "autograd":
        return len({(config.architecture, config.bptt_steps) for config in configs}) == 1
    has_library = engine == "stacked" or load_library(precision) is not None
    return has_library and all(map(can_stack, configs))


def lockstep_groups(cases: Sequence[Case]) -> list[tuple[Case, ...]]:
    """Return the cases that can train together."""
    groups: dict[Hashable, tuple[Case, ...]] = {}
    for case in cases:
        if lockstep_obstacle(case.config.architecture) is None:
            key = stack_key(case.config)
            groups[key] = (*groups.get(key, ()), case)
    return [group for group in groups.values() if len(group) > 1]


@cache
def train(
    cases: tuple[Case, ...], precision: Precision, engine: str | None = None
) -> dict[str, dict[str, float]]:
    """Train networks together, by an engine or the project's own choice of it.

    Returns:
        By the name of each network the smoothed loss at each log point, and the held-out loss of
        the last weights and of their average.
    """
    build = build_network if engine is None else ENGINES[engine]
    data = TextData(TEXT[:200], VOCAB_SIZE)
    stack = build([case.config for case in cases], SEED, precision, data.spec)
    loop = TrainLoop(stack, data, TRAIN_CONFIG)
    list(loop.train())
    results = [{f"step {step}": loss for step, loss in curve.items()} for curve in loop.curves]
    for name in ("held out", "held out, averaged"):
        losses = compute_eval_losses(loop.stack, select_eval_windows(TEXT[200:], 3, 9))
        for result, loss in zip(results, losses.mean(1).tolist(), strict=True):
            result[name] = loss
        loop.swap_in_averaged_weights()
    return {case.name: results[loop.configs.index(case.config)] for case in cases}


# ------------------------------------------------------------------ the networks

_SWITCHES = ("input_gate", "forget_gate", "output_gate", "state_gate", "residual")


def _gated(*on: str, state_source: str, gate_inputs: str = "state") -> tuple[str, dict[str, Any]]:
    switches = {name: name in on for name in _SWITCHES}
    return "gated", switches | {"state_source": state_source, "gate_inputs": gate_inputs}


_EVERY_OPTIMIZER: dict[str, tuple[str, dict[str, Any]]] = {
    "gated, all options": _gated(*_SWITCHES, state_source="both"),
    "gru": ("gru", {}),
    "own cell": ("Everything", {"scale": 0.8}),
}
"""A network of each kind of cell, trained by every optimizer."""

_NETWORKS = _EVERY_OPTIMIZER | {
    "gated, no options": _gated(state_source="old"),
    "gated, forget+residual": _gated("forget_gate", "residual", state_source="new"),
    "gated, input+state": _gated("input_gate", "state_gate", state_source="old"),
    "gated, all options, candidate": _gated(
        *_SWITCHES, state_source="both", gate_inputs="candidate"
    ),
    "gated, state+output, candidate": _gated(
        "state_gate", "output_gate", state_source="new", gate_inputs="candidate"
    ),
    "elman": ("elman", {}),
    "lstm": ("lstm", {}),
    "own MinGRU": ("MinGRU", {"candidate_tanh": True}),
}

_OPTIMIZERS = [
    OptimizerConfig("adam", 0.02, gradient_clipping=0.3),
    OptimizerConfig("adamw", 0.02, beta1=0.8, beta2=0.95, weight_decay=0.5),
    OptimizerConfig("rmsprop", 0.01, beta2=0.9, weight_decay=0.1),
    OptimizerConfig("sgd", 0.2, momentum=0.7, weight_decay=0.01, gradient_clipping=1.0),
]


def _case(network: str, bptt_steps: int, optimizer: OptimizerConfig, replicate: int = 0) -> Case:
    return make_case(network, *_NETWORKS[network], bptt_steps, optimizer, replicate)


_OTHERS = [network for network in _NETWORKS if network not in _EVERY_OPTIMIZER]
_ADAM = OptimizerConfig("adam", 0.02)

CASES = [
    *itertools.starmap(_case, itertools.product(_EVERY_OPTIMIZER, (1, 4), _OPTIMIZERS)),
    *itertools.starmap(_case, itertools.product(_OTHERS, (1, 4), [_ADAM])),
    *(_case(network, 1, _ADAM, replicate=2) for network in _EVERY_OPTIMIZER),
    _case("gated, all options", 1, replace(_ADAM, schedule="cosine", warmup_steps=4)),
]

TOLERANCES: dict[Precision, float] = {"fp64": 1e-9, "fp32": 5e-6, "bf16": 3e-3}


def compute(precision: Precision) -> dict[str, dict[str, float]]:
    """Train each network alone."""
    results = {}
    for case in CASES:
        results |= train((case,), precision)
    return results


GOLDEN = [
    Golden(f"training_{precision}", partial(compute, precision), tolerance)
    for precision, tolerance in TOLERANCES.items()
]
