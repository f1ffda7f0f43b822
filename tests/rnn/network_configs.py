"""Configs that tests run on, and generated networks to compare with."""

import itertools
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnn.codegen.module_code import generate_module, state_dict_mapping
from rnn.config import (
    BASELINE_CELLS,
    GATE_INPUTS,
    STATE_SOURCES,
    BaselineConfig,
    GatedConfig,
    GateInputs,
    NetworkConfig,
)
from rnn.stacked.flat_parameters import NamedTensors


def gated_configs(
    layers: int, state_size: int, gate_inputs: Sequence[GateInputs] = GATE_INPUTS
) -> list[GatedConfig]:
    """Return the configs of all combinations of options."""
    return [
        GatedConfig(*switches, source, layers, state_size, inputs)
        for inputs in gate_inputs
        for switches in itertools.product((False, True), repeat=5)
        for source in STATE_SOURCES
    ]


def baseline_configs(layers: int, state_size: int) -> list[BaselineConfig]:
    return [BaselineConfig(cell, layers, state_size) for cell in BASELINE_CELLS]


def representatives(configs: Sequence[GatedConfig], together: int = 4) -> list[GatedConfig]:
    """Choose few configs in which every ``together`` fields take all values in combination.

    Only combinations of values that occur among the given configs are covered.
    """
    numbers: dict[object, int] = {}
    masks = []
    for config in configs:
        combinations = itertools.combinations(enumerate(astuple(config)), together)
        masks.append(sum(1 << numbers.setdefault(values, len(numbers)) for values in combinations))
    chosen, missing = [], (1 << len(numbers)) - 1
    while missing:
        best = max(range(len(masks)), key=lambda i: (masks[i] & missing).bit_count())
        chosen.append(configs[best])
        missing &= ~masks[best]
    return chosen


def label(config: NetworkConfig) -> str:
    return f"{config.label} {getattr(config, 'gate_inputs', '')}"


def each_of(
    configs: Sequence[GatedConfig],
    others: Sequence[BaselineConfig] = (),
    together: int = 4,
) -> pytest.MarkDecorator:
    """Run a test on each config; without ``extended`` on representatives and the others."""
    few = set(representatives(configs, together))
    parameters = [
        pytest.param(each, marks=() if each in few else pytest.mark.extended) for each in configs
    ]
    return pytest.mark.parametrize("config", [*parameters, *others], ids=label)


def execute(code: str) -> dict[str, Any]:
    """Return the names that a source file defines."""
    names: dict[str, Any] = {"__name__": "generated"}
    exec(compile(code, "generated.py", "exec"), names)
    return names


class GeneratedNetwork:
    """The generated module of a config in float64, with gradients by autograd alone."""

    def __init__(self, config: NetworkConfig, vocab_size: int, bptt_steps: int = 1) -> None:
        code = generate_module(config, vocab_size, bptt_steps)
        self.module: nn.Module = execute(code)["Network"]().double()
        self.mapping = state_dict_mapping(config)

    def load(self, weights: NamedTensors) -> None:
        self.module.load_state_dict(
            {
                name: weights[f"{param}.weight"].T if kind == "weight" else weights[f"{param}.bias"]
                for name, (param, kind) in self.mapping.items()
            }
        )

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, NamedTensors, list[Tensor]]:
        """Return the loss after reading tokens (T, B), its gradients and the last states."""
        self.module.zero_grad()
        for each in tokens:
            logits, states = self.module(each, states)
        loss = nn.functional.cross_entropy(logits, targets)
        loss.backward()
        grads: NamedTensors = {}
        for name, value in self.module.named_parameters():
            param, kind = self.mapping[name]
            grad = torch.zeros_like(value) if value.grad is None else value.grad
            grads[f"{param}.{kind}"] = grad.T if kind == "weight" else grad
        return loss.detach(), grads, [state.detach() for state in states]


def assert_close(actual: NamedTensors, expected: NamedTensors, **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name],
            expected[name],
            **tolerance,
            msg=lambda message, name=name: f"{name}: {message}",
        )
