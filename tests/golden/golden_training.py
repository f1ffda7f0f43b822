"""Loss curves of tiny training runs.

A curve belongs to a network, not to what trains it: ``test_training.py`` compares every engine with
these results, alone and in lockstep.

Each precision has a file and a tolerance. Largest differences measured between the engines, and
between CPUs with AVX-512 and bfloat16, with AVX-512 alone and with AVX2 (emulated by
``ATEN_CPU_CAPABILITY``, ``ONEDNN_MAX_CPU_ISA`` and ``MKL_ENABLE_INSTRUCTIONS``), one and two
threads: 4e-16 in fp64, 2e-7 in fp32, 2e-4 in bf16. Without AVX2 initial weights are rounded
otherwise, which changes fp64 by 1e-8.
"""

import itertools
from dataclasses import replace
from functools import cache, partial
from typing import Any

from golden import Golden
from training_runs import Case, Run, make_case

from rnn.config import OptimizerConfig, Precision

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


@cache
def train(
    cases: tuple[Case, ...], precision: Precision, engine: str | None = None
) -> dict[str, dict[str, float]]:
    """Train networks together without an interruption; see :class:`training_runs.Run`."""
    return Run(cases, precision, engine).finish()


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
