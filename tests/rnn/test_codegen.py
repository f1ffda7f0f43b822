"""Generated code computes the network, for every config."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import SPEC, baseline_configs, gated_configs, representatives
from torch import nn

from rnn.cells import CELLS
from rnn.codegen import generate_module
from rnn.config import GATE_INPUTS, GATED_OPTIONS, WHOLE_SEQUENCE, GatedOptions, TaskSpec
from rnn.network import Network

STREAMS, SIZE = 3, 4
NUMBERS = TaskSpec(3, 2, reads_tokens=False, predicts_classes=False)
LABELS = TaskSpec(11, 2)
GATED, BASELINES = gated_configs(2, SIZE), baseline_configs(2, SIZE)
BASELINES.append(replace(BASELINES[0], block="residual"))
SOME = [*representatives(GATED), *BASELINES]
EXAMPLE = GatedOptions(False, True, False, True, True, "new").network(2, 256)
MAPS = {name for config in GATED for name, _ in Network(config, SPEC).layers[0].named_children()}
GATES = GATED_OPTIONS.keys() & MAPS


@pytest.fixture(autouse=True)
def repeatable_numbers():
    torch.manual_seed(0)


def test_docstring_says_how_far_gradients_went():
    assert "trained without gradients across time steps" in generate_module(EXAMPLE)
    assert "trained with gradients through 4 time steps" in generate_module(EXAMPLE, bptt_steps=4)
    whole = generate_module(EXAMPLE, bptt_steps=WHOLE_SEQUENCE)
    assert "trained with gradients through whole sequences" in whole


@pytest.mark.parametrize("gate_inputs", GATE_INPUTS)
def test_code_has_no_trace_of_options_that_are_off(gate_inputs):
    for config in gated_configs(2, SIZE, [gate_inputs]):
        code = generate_module(config)
        layer = code[code.index("class GatedCell") : code.index("class Network")]
        for name in GATES:
            is_made = f"self.{name} = nn.Linear(" in layer
            assert is_made == (name in layer) == dict(config.options)[name], layer
        layer = layer.replace("-> None", "")
        options = r"\b(if|else|None|state_source|gate_inputs|residual)\b|\b1 \*"
        assert not re.search(options, layer), layer
        assert not re.search(r"^ +\w+ = \w+ +#", layer, re.M), layer  # a copy


@pytest.mark.parametrize(
    ("configs", "spec"),
    [
        *((gated_configs(2, SIZE, [each]), SPEC) for each in GATE_INPUTS),
        (BASELINES, SPEC),
        (BASELINES, NUMBERS),
        (BASELINES, LABELS),
    ],
    ids=[*GATE_INPUTS, "baselines", "numbers", "labels"],
)
def test_code_computes_the_network_and_each_line_ends_with_its_shape(configs, spec):
    pattern = r"( +)(.+?) = .+  # \(B, ([234]?)n\)(?: each|, (?!\(B).+)?"
    assertion = "{}for each in ({},): assert each.shape == ({}, {} * {})"
    inputs, x = torch.randint(spec.inputs, (5, STREAMS)), torch.rand(STREAMS, SIZE)
    if not spec.reads_tokens:
        inputs = torch.rand(5, STREAMS, spec.inputs)
    for config in configs:
        code = generate_module(config, spec)
        layer = code[code.index("class ") : code.index("class Network")]
        methods = re.split(r"^    def ", layer, flags=re.M)[1:]
        forward = "".join(m for m in methods if not m.startswith(("__init__", "initial_state")))
        made = [line for line in forward.splitlines() if " = " in line and ".shape[" not in line]
        assert len(made) > 0
        assert all(re.fullmatch(pattern, line) for line in made), forward
        checked = re.sub(
            f"^{pattern}$",
            lambda m: f"{m[0]}\n" + assertion.format(m[1], m[2], STREAMS, m[3] or 1, SIZE),
            code,
            flags=re.M,
        )
        names: dict[str, Any] = {}
        exec(checked, names)
        network, exported = Network(config, spec), names["Network"]()
        exported.load_state_dict(network.state_dict())
        states = exported.init_state(STREAMS)
        for layer, expected, state in zip(exported.layers, network.layers, states, strict=True):
            torch.testing.assert_close(layer(x, state), expected(x, state), rtol=0, atol=0)
        expected, _ = network(inputs)
        torch.testing.assert_close(exported(inputs)[0], expected, rtol=1e-4, atol=1e-5)
        _, states = exported(inputs[:2])
        outputs, _ = exported(inputs[2:], states)
        torch.testing.assert_close(outputs, expected[2:], rtol=1e-4, atol=1e-5)
        for either in (exported, network):
            with pytest.raises(ValueError, match=r"have the shape \(3,\): expected .*\(T, B"):
                either(inputs[0, :, 0] if inputs.ndim == 3 else inputs[0])


def test_modules_pass_the_linter_and_import_only_torch(tmp_path: Path):
    modules = [
        *((config, SPEC) for config in (*SOME, EXAMPLE)),
        (EXAMPLE, NUMBERS),
        (EXAMPLE, LABELS),
    ]
    for k, (config, spec) in enumerate(modules):
        code = generate_module(config, spec)
        imports = re.findall(r"^\s*((?:import|from) .+)", code, re.M)
        assert imports == ["import torch", "from torch import Tensor, nn"]
        (tmp_path / f"module_{k}.py").write_text(code, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    isolated = ["--isolated", "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check", "--line-length=100"]):
        done = subprocess.run([*ruff, *command, *isolated], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("elman", nn.RNNCell), ("gru", nn.GRUCell), ("lstm", nn.LSTMCell)],
)
def test_baseline_cells_compute_those_of_pytorch(name, theirs):
    cell, reference = CELLS[name](SIZE, SIZE), theirs(SIZE, SIZE)
    names = {"input.weight": "weight_ih", "input.bias": "bias_ih"}
    names |= {"state.weight": "weight_hh", "state.bias": "bias_hh"}
    reference.load_state_dict({names[key]: each for key, each in cell.state_dict().items()})
    x, h, m = torch.rand(3, STREAMS, SIZE)
    state = (h, m) if name == "lstm" else h
    output, new_state = cell(x, state)
    expected = reference(x, state)
    torch.testing.assert_close(new_state, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output, expected[0] if name == "lstm" else expected)
