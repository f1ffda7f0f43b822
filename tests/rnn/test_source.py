"""What is written out is what runs: each architecture's code and equations against the network."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import torch
from network_configs import each_of
from torch import Tensor, nn

from rnn.codegen import generate_forward, generate_latex, generate_module, state_dict_mapping
from rnn.config import (
    BASELINE_CELLS,
    GATE_INPUTS,
    STATE_SOURCES,
    BaselineConfig,
    GatedConfig,
    TrialConfig,
)
from rnn.models.bptt_network import Unrolled
from rnn.stacked.linear import GatheredInput
from rnn.stacked.network import NetworkStack, draw_initial_weights

SEED, STREAMS, SIZE, TOKENIZER, STEPS = 7, 3, 4, 11, 3
GATES = ("input_gate", "forget_gate", "output_gate", "state_gate")
LETTERS = {
    "input_gate": "i",
    "candidate": "u",
    "state_gate": "z",
    "forget_gate": "f",
    "read_out": "o",
    "output_gate": "y",
}
ALL = [
    GatedConfig(*switches, source, 2, SIZE, gate_inputs)
    for gate_inputs in GATE_INPUTS
    for switches in itertools.product((False, True), repeat=5)
    for source in STATE_SOURCES
]
each_architecture = each_of(ALL)
KNOWN = [BaselineConfig(cell, 2, SIZE) for cell in BASELINE_CELLS]
each_known = pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.label)
EXAMPLE = GatedConfig(False, True, False, True, True, "new", 2, 256)


def run(code: str) -> dict[str, Any]:
    """What a file of this code defines."""
    names: dict[str, Any] = {"__name__": "written"}
    exec(compile(code, "written.py", "exec"), names)
    return names


def population_of(architecture: GatedConfig) -> NetworkStack:
    return NetworkStack([TrialConfig(architecture)], SEED, "fp64", TOKENIZER)


def build_network(architecture: GatedConfig | BaselineConfig) -> nn.Module:
    """The network that is written out, with the weights of ours under its own names."""
    network: nn.Module = run(generate_module(architecture, TOKENIZER))["Network"]().double()
    weights = draw_initial_weights(TrialConfig(architecture), SEED, TOKENIZER)
    network.load_state_dict(
        {
            name: weights[product][0].T if part == "weight" else weights[product][1]
            for name, (product, part) in state_dict_mapping(architecture).items()
        }
    )
    return network


@each_architecture
def test_the_module_is_the_network(architecture: GatedConfig):
    stack, network = population_of(architecture), build_network(architecture)
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randint(TOKENIZER, (STEPS + 1, STREAMS), generator=generator)

    expected_states, states = (
        stack.init_state(STREAMS),
        network.initial_state(STREAMS),
    )
    for t in range(STEPS):
        before = [state.clone() for state in expected_states]
        expected, after = stack.forward(stack.prepare_inputs(text[t]), expected_states)
        expected_states = [state.clone() for state in after]
        logits, states = network(text[t], states)
        torch.testing.assert_close(logits.detach(), expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(states, [s[0] for s in expected_states], rtol=1e-12, atol=1e-12)
    assert not any(state.requires_grad for state in states)

    # What reached past the last time step would show in these gradients.
    stack.loss_and_grad(stack.prepare_inputs(text[STEPS - 1]), text[STEPS], before)
    nn.functional.cross_entropy(logits, text[STEPS]).backward()
    gradients = stack.parameters.extract(0, stack.parameters.grads)
    for weight, product in (
        (network.embedding.weight, "embedding"),
        (network.layers[0].candidate.weight, "layers.0.candidate"),
        (network.layers[1].read_out.weight, "layers.1.read_out"),
    ):
        # Some architectures' outputs do not depend on some weights.
        own = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(own.T, gradients[product][0], rtol=1e-9, atol=1e-12)


@each_known
def test_the_module_is_the_network_of_a_known_cell(known: BaselineConfig):
    ours, network = Unrolled([TrialConfig(known)], SEED, "fp64", TOKENIZER), build_network(known)
    text = torch.randint(TOKENIZER, (STEPS, STREAMS), generator=torch.Generator().manual_seed(SEED))
    expected_states, states = ours.init_state(STREAMS), network.initial_state(STREAMS)
    for tokens in text:
        expected, expected_states = ours.forward(ours.prepare_inputs(tokens), expected_states)
        logits, states = network(tokens, states)
        torch.testing.assert_close(logits.detach(), expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            [state.detach() for state in states],
            [state[0] for state in expected_states],
            rtol=1e-12,
            atol=1e-12,
        )
    assert all(state.requires_grad for state in states)
    module = {"elman": "RNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}[known.cell]
    assert f"self.cell = nn.{module}({SIZE}, {SIZE})\n" in generate_module(known)
    assert indent(generate_forward(known), "    ") in generate_module(known)


def test_what_was_trained_through_several_steps_is_not_detached():
    assert "detach" not in generate_forward(EXAMPLE, 4) + "".join(generate_latex(EXAMPLE, 4))
    module = generate_module(EXAMPLE, bptt_steps=4)
    assert "detach" not in module
    assert "trained with gradients through 4 time steps" in module
    assert "trained with gradients through 4" in generate_module(
        BaselineConfig("gru", 1, 4), 256, 4
    )


@each_architecture
def test_the_code_is_of_this_architecture_alone(architecture: GatedConfig):
    code, module = generate_forward(architecture), generate_module(architecture)
    assert indent(code, "    ") in module
    for name in GATES:
        on = getattr(architecture, name)
        assert (name in code) == on
        assert (f"self.{name} = nn.Linear(" in module) == on
    assert not re.search(r"\b(if|else|None)\b", code)

    # Each line that makes a tensor says what shape it has.
    first, *assignments, last = code.splitlines()
    assert first == "def forward(self, x, state):"
    assert all(re.fullmatch(r"    .+ = .+  # \(B, [234]?n\)", line) for line in assignments)
    assert last == "    return output, new_state.detach()"


@each_of(ALL, KNOWN)
def test_the_shapes_in_the_code_are_those_of_its_tensors(
    architecture: GatedConfig | BaselineConfig,
):
    checked = re.sub(
        r"( +)(?:\w+, )?(\w+) = .+  # \(B, ([234]?)n\)",
        lambda m: f"{m[0]}\n{m[1]}assert {m[2]}.shape == ({STREAMS}, {m[3] or 1} * {SIZE})",
        generate_forward(architecture),
    )
    assert checked.count("assert") == len(generate_forward(architecture).splitlines()) - 2
    forward = run("import torch\n" + checked)["forward"]
    network = build_network(architecture)
    x = torch.rand(STREAMS, SIZE, dtype=torch.float64)
    forward(network.layers[0], x, network.initial_state(STREAMS)[0])


@pytest.mark.parametrize("vocab_size", [256, TOKENIZER])
def test_the_module_has_as_many_parameters_as_the_architecture(vocab_size: int):
    for a in (*ALL, *KNOWN):
        network = run(generate_module(a, vocab_size))["Network"]()
        count = sum(p.numel() for p in network.parameters())
        assert count == a.parameter_count(vocab_size), a.label


def test_the_modules_are_clean(tmp_path: Path):
    for k, architecture in enumerate((*ALL, *KNOWN, EXAMPLE)):
        code = generate_module(architecture)
        imports = re.findall(r"^\s*((?:import|from) .+)", code, re.M)
        assert {*imports} <= {"import torch", "from torch import nn"}
        (tmp_path / f"module_{k}.py").write_text(code, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    isolated = ["--isolated", "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check", "--line-length=100"]):
        done = subprocess.run([*ruff, *command, *isolated], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def compute(lines: list[str], weights: dict[str, tuple[Tensor, Tensor]], **names: Any) -> Any:
    """What a reader who takes the equations at their word computes: all letters' values."""

    def affine(letter: str, x: Tensor) -> Tensor:
        weight, bias = weights[letter]
        return x @ weight + bias

    functions = {
        "affine": affine,
        "join": lambda *parts: torch.cat(parts, dim=1),
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
        formula = re.sub(r"\[(.+?)\]", r"join(\1)", formula).replace(r" \,;\,", ",")
        for weight, bias, of in (("W", "b", ""), ("V", "d", "V_")):
            term = rf"(\w+|join\(.+?\)) {weight}_(\w) \+ {bias}_\2"
            formula = re.sub(term, rf"affine('{of}\2', \1)", formula)
        formula = formula.replace(r"\odot", "*").replace(r"\operatorname{detach}", "detach")
        names[target] = eval(re.sub(r"\\(sigma|tanh)", r"\1", formula), functions | names)
    return names


@each_architecture
def test_the_equations_are_the_network(architecture: GatedConfig):
    weights = draw_initial_weights(TrialConfig(architecture), SEED, TOKENIZER)
    letters = {
        letter: weights[f"layers.0.{name}"]
        for name, letter in LETTERS.items()
        if f"layers.0.{name}" in weights
    }
    x, h = torch.rand(2, STREAMS, SIZE, dtype=torch.float64, requires_grad=True)
    stack = NetworkStack([TrialConfig(architecture)], SEED, "fp64", TOKENIZER, static_graph=True)
    output, state = stack._layers[0].forward(GatheredInput(x.detach()[None]), h.detach()[None])
    values = compute(generate_latex(architecture), letters, x=x, h=h)
    for letter, found in (("y", output), ("h", state)):
        torch.testing.assert_close(values[letter].detach(), found[0], rtol=1e-12, atol=1e-12)
    assert values["u"].requires_grad
    assert not values["h"].requires_grad


@each_known
def test_the_equations_are_the_known_cell(known: BaselineConfig):
    weights = draw_initial_weights(TrialConfig(known), SEED, TOKENIZER)
    order, letters = {"elman": "u", "gru": "rzu", "lstm": "ifuo"}[known.cell], {}
    for name, prefix in (("input", ""), ("state", "V_")):
        weight, bias = (part.split(SIZE, -1) for part in weights[f"layers.0.{name}"])
        letters |= {prefix + order[k]: own for k, own in enumerate(zip(weight, bias, strict=True))}
    x, h, m = torch.rand(3, STREAMS, SIZE, dtype=torch.float64)
    values = compute(generate_latex(known), letters, x=x, h=h, m=m)
    before = torch.cat((h, m), 1) if known.cell == "lstm" else h
    output, state = build_network(known).layers[0](x, before)
    after = [values["h"], values["m"]] if known.cell == "lstm" else [values["h"]]
    torch.testing.assert_close(values["y"], output.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(after, 1), state.detach(), rtol=1e-12, atol=1e-12)


@each_architecture
def test_the_equations_have_the_letters_of_the_gates_that_are_on(architecture: GatedConfig):
    text = "\n".join(generate_latex(architecture))
    assert {LETTERS[name] for name in ("candidate", "read_out")} <= set(re.findall(r"W_(\w)", text))
    for name in GATES:
        assert (f"W_{LETTERS[name]}" in text) == getattr(architecture, name)
    assert ("'" in text) == architecture.input_gate
    assert ("z" in text) == architecture.state_gate
    assert bool(re.search(r"\bf\b", text)) == architecture.forget_gate
    # Each letter is given a value once, and h its next one in the last line.
    targets = [re.split(r" = | \\leftarrow ", line)[0] for line in text.splitlines()]
    assert len(set(targets)) == len(targets)
    assert targets[-1] == "h"


def test_the_equations_can_be_rendered():
    converter = pytest.importorskip("latex2mathml.converter")
    for line in {line for a in (*ALL, *KNOWN) for line in generate_latex(a)}:
        shown = converter.convert(line)
        assert shown.startswith("<math")
        assert "\\" not in shown, f"{line} has a command that is not understood"


def test_the_example_as_a_reader_would_write_it():
    assert EXAMPLE.label == "2×256 forget+state gates, new state, residual"
    assert generate_forward(EXAMPLE) + "\n" == dedent(
        """\
        def forward(self, x, state):
            c = torch.cat((x, state), dim=1)  # (B, 2n)
            candidate = torch.tanh(self.candidate(c))  # (B, n)
            state_gate = torch.sigmoid(self.state_gate(c))  # (B, n)
            mixed_state = state_gate * candidate + (1 - state_gate) * state  # (B, n)
            forget_gate = torch.sigmoid(self.forget_gate(c))  # (B, n)
            new_state = forget_gate * mixed_state  # (B, n)
            read = torch.cat((new_state, x), dim=1)  # (B, 2n)
            output = self.read_out(read)  # (B, n)
            output = output * torch.sigmoid(output)  # (B, n)
            return output, new_state.detach()
        """
    )
    assert generate_latex(EXAMPLE) == [
        r"c = [x \,;\, h]",
        r"\tilde u = \tanh(c W_u + b_u)",
        r"z = \sigma(c W_z + b_z)",
        r"\hat u = z \odot \tilde u + (1 - z) \odot h",
        r"f = \sigma(c W_f + b_f)",
        r"u = f \odot \hat u",
        r"r = [u \,;\, x]",
        r"o = r W_o + b_o",
        r"y = o \odot \sigma(o)",
        r"h \leftarrow \operatorname{detach}(u)",
    ]
