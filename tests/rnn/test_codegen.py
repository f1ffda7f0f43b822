"""Generated code and equations compute the reference network, for every config."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import torch
from networks import (
    PlainNetwork,
    baseline_configs,
    execute,
    extract,
    gated_configs,
    representatives,
)
from torch import Tensor

from rnn.codegen.equations import generate_latex
from rnn.codegen.forward_code import generate_forward
from rnn.codegen.module_code import generate_module
from rnn.config import BaselineConfig, GatedConfig, NetworkConfig, TrialConfig
from rnn.models.bptt_network import BPTTNetwork

SEED, STREAMS, SIZE, VOCAB_SIZE = 7, 3, 4, 11
GATES = ("input_gate", "forget_gate", "output_gate", "state_gate")
LETTERS = {
    "input_gate": "i",
    "candidate": "u",
    "state_gate": "z",
    "forget_gate": "f",
    "read_out": "o",
    "output_gate": "y",
}
GATED, BASELINES = gated_configs(2, SIZE), baseline_configs(2, SIZE)
SOME = representatives(GATED)
each_gated = pytest.mark.parametrize("config", SOME, ids=lambda config: config.init_key)
EXAMPLE = GatedConfig(False, True, False, True, True, "new", 2, 256)


def reference(config: NetworkConfig) -> BPTTNetwork:
    return BPTTNetwork([TrialConfig(config)], SEED, "fp64", VOCAB_SIZE)


def test_networks_trained_through_several_steps_are_not_detached():
    assert "detach" not in generate_forward(EXAMPLE, 4) + "".join(generate_latex(EXAMPLE, 4))
    module = generate_module(EXAMPLE, bptt_steps=4)
    assert "detach" not in module
    for text in (module, generate_module(BaselineConfig("gru", 1, 4), bptt_steps=4)):
        assert "trained with gradients through 4 time steps" in text


@each_gated
def test_code_has_no_trace_of_options_that_are_off(config: GatedConfig):
    code, module = generate_forward(config), generate_module(config)
    for name in GATES:
        is_on = getattr(config, name)
        assert (name in code) == is_on
        assert (f"self.{name} = nn.Linear(" in module) == is_on
    assert not re.search(r"\b(if|else|None)\b", code)


@pytest.mark.parametrize("config", [*SOME, *BASELINES], ids=lambda config: config.init_key)
def test_each_line_ends_with_the_shape_of_its_tensor(config: NetworkConfig):
    code = generate_forward(config)
    assert indent(code, "    ") in generate_module(config)
    first, *assignments, last = code.splitlines()
    assert first == "def forward(self, x, state):"
    assert last.startswith("    return ")
    pattern = r"( +)(?:\w+, )?(\w+) = .+  # \(B, ([234]?)n\)"
    assert all(re.fullmatch(pattern, line) for line in assignments)

    checked = re.sub(
        pattern,
        lambda m: f"{m[0]}\n{m[1]}assert {m[2]}.shape == ({STREAMS}, {m[3] or 1} * {SIZE})",
        code,
    )
    forward = execute("import torch\n" + checked)["forward"]
    module = PlainNetwork(TrialConfig(config), VOCAB_SIZE).module
    x = torch.rand(STREAMS, SIZE, dtype=torch.float64)
    forward(module.layers[0], x, module.init_state(STREAMS)[0])


def test_modules_pass_the_linter_and_import_only_torch(tmp_path: Path):
    for k, config in enumerate((*SOME, *BASELINES, EXAMPLE)):
        code = generate_module(config)
        imports = re.findall(r"^\s*((?:import|from) .+)", code, re.M)
        assert {*imports} <= {"import torch", "from torch import nn"}
        (tmp_path / f"module_{k}.py").write_text(code, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    isolated = ["--isolated", "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check", "--line-length=100"]):
        done = subprocess.run([*ruff, *command, *isolated], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def evaluate(lines: list[str], weights: dict[str, tuple[Tensor, Tensor]], **names: Any) -> Any:
    """Evaluate equations as they read; return the values of all letters."""

    def linear(letter: str, x: Tensor) -> Tensor:
        weight, bias = weights[letter]
        return x @ weight + bias

    functions = {
        "linear": linear,
        "concat": lambda *parts: torch.cat(parts, dim=1),
        "sigma": torch.sigmoid,
        "tanh": torch.tanh,
        "detach": torch.detach,
    }
    for line in lines:
        line = line.replace("'", "_gated")
        line = re.sub(r"\\(tilde|hat) u", r"u_\1", line)
        target, formula = re.split(r" = | \\leftarrow ", line)
        if target.startswith("["):
            left, right = target.strip("[]").split(r" \,;\, ")
            names[left], names[right] = names[formula].chunk(2, dim=1)
            continue
        formula = re.sub(r"\[(.+?)\]", r"concat(\1)", formula).replace(r" \,;\,", ",")
        for weight, bias, prefix in (("W", "b", ""), ("V", "d", "V_")):
            term = rf"(\w+|concat\(.+?\)) {weight}_(\w) \+ {bias}_\2"
            formula = re.sub(term, rf"linear('{prefix}\2', \1)", formula)
        formula = formula.replace(r"\odot", "*").replace(r"\operatorname{detach}", "detach")
        names[target] = eval(re.sub(r"\\(sigma|tanh)", r"\1", formula), functions | names)
    return names


@each_gated
def test_equations_compute_the_reference_layer(config: GatedConfig):
    network = reference(config)
    weights = extract(network)
    letters = {
        letter: (weights[f"layers.0.{name}.weight"], weights[f"layers.0.{name}.bias"])
        for name, letter in LETTERS.items()
        if f"layers.0.{name}.weight" in weights
    }
    x, h = torch.rand(2, STREAMS, SIZE, dtype=torch.float64, requires_grad=True)
    (output,), state = network.module.layers[0](x[None], h)
    values = evaluate(generate_latex(config), letters, x=x, h=h)
    found, expected = [values[name] for name in "yuh"], [output, state, state.detach()]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert values["u"].requires_grad
    assert not values["h"].requires_grad


@pytest.mark.parametrize("config", BASELINES, ids=lambda config: config.label)
def test_equations_compute_the_baseline_layer(config: BaselineConfig):
    network = reference(config)
    weights = extract(network)
    gates, letters = {"elman": "u", "gru": "rzu", "lstm": "ifuo"}[config.cell], {}
    for name, prefix in (("input", ""), ("state", "V_")):
        weight, bias = (
            weights[f"layers.0.{name}.{kind}"].split(SIZE, -1) for kind in ("weight", "bias")
        )
        letters |= {prefix + gate: pair for gate, *pair in zip(gates, weight, bias, strict=True)}
    x, h, m = torch.rand(3, STREAMS, SIZE, dtype=torch.float64)
    values = evaluate(generate_latex(config), letters, x=x, h=h, m=m)
    previous = torch.cat((h, m), 1) if config.cell == "lstm" else h
    (output,), state = network.module.layers[0](x[None], previous)
    expected = [values["h"], values["m"]] if config.cell == "lstm" else [values["h"]]
    torch.testing.assert_close(output, values["y"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, torch.cat(expected, 1), rtol=1e-12, atol=1e-12)


def test_equations_can_be_rendered():
    converter = pytest.importorskip("latex2mathml.converter")
    for line in {line for config in (*GATED, *BASELINES) for line in generate_latex(config)}:
        mathml = converter.convert(line)
        assert mathml.startswith("<math")
        assert "\\" not in mathml, f"{line} has an unknown command"
