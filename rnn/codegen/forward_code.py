"""Generate the Python source of one layer's forward method.

:class:`rnn.models.gated.GatedLayer` branches on its options. The generated code is what one config
amounts to, for readers and for use without this project. Baseline cells use PyTorch's own modules.
"""

from collections.abc import Sequence
from textwrap import indent

from rnn.config import BaselineConfig, CellConfig, GatedConfig, NetworkConfig
from rnn.errors import CellError


def generate_forward(config: NetworkConfig, bptt_steps: int = 1) -> str:
    """Generate the forward method of one layer in Python.

    Args:
        config: network of the layer.
        bptt_steps: steps that a gradient passed through in training; the new state of a gated layer
            is detached if it is 1.

    Returns:
        The source of a method ``forward(self, x, state)``, not indented, without a final newline.
        Each line that makes a tensor ends with its shape.
    """
    config = require_built_in(config)
    if isinstance(config, BaselineConfig):
        lines = _baseline_forward_lines(config)
    else:
        lines = _gated_forward_lines(config, is_detached=bptt_steps == 1)
    return "def forward(self, x, state):\n" + indent("\n".join(lines), "    ")


def require_built_in(config: NetworkConfig) -> GatedConfig | BaselineConfig:
    """Return a config, if its equations are known."""
    if isinstance(config, CellConfig):
        raise CellError(
            f"cell {config.cell} has no generated code: its source file defines it, expected a "
            "built-in cell"
        )
    return config


def state_names(config: GatedConfig, candidate: str, mixed: str, new: str) -> list[str]:
    """Return the names of the new state before and after each gate; the last is ``new``."""
    return [*(candidate, mixed)[: config.state_gate + config.forget_gate], new]


def read_out_parts(config: GatedConfig, new: str, previous: str, x: str) -> list[str]:
    """Return which of these names the read-out concatenates, in order."""
    choices = (
        (new, config.reads_new_state),
        (previous, config.reads_previous_state),
        (x, config.residual),
    )
    return [name for name, is_read in choices if is_read]


def _gated_forward_lines(config: GatedConfig, is_detached: bool) -> list[str]:
    lines = ["c = torch.cat((x, state), dim=1)  # (B, 2n)"]
    previous = "state"
    if config.input_gate:
        lines += [
            "input_gate = torch.sigmoid(self.input_gate(c))  # (B, 2n)",
            "c = input_gate * c  # (B, 2n)",
        ]
        if config.reads_previous_state:
            previous = "gated_state"
            lines += ["_, gated_state = c.chunk(2, dim=1)  # (B, n)"]

    def gate(name: str, u: str) -> list[str]:
        inputs, joined = "c", []
        if config.gate_inputs == "candidate":
            inputs, joined = "gate_inputs", [f"gate_inputs = {_concat(['c', u])}  # (B, 3n)"]
        return [*joined, f"{name} = torch.sigmoid(self.{name}({inputs}))  # (B, n)"]

    states = state_names(config, "candidate", "mixed_state", "new_state")
    lines += [f"{states[0]} = torch.tanh(self.candidate(c))  # (B, n)"]
    if config.state_gate:
        mix = f"state_gate * {states[0]} + (1 - state_gate) * state"
        lines += [*gate("state_gate", states[0]), f"{states[1]} = {mix}  # (B, n)"]
    if config.forget_gate:
        scaled = f"{states[-1]} = forget_gate * {states[-2]}  # (B, n)"
        lines += [*gate("forget_gate", states[-2]), scaled]

    parts = read_out_parts(config, "new_state", previous, "x")
    r = parts[0]
    if len(parts) > 1:
        r = "read_out_inputs"
        lines += [f"read_out_inputs = {_concat(parts)}  # (B, {len(parts)}n)"]
    lines += [f"output = self.read_out({r})  # (B, n)"]
    if config.output_gate:
        lines += [
            f"gate_inputs = {_concat(['output', r])}  # (B, {1 + len(parts)}n)",
            "output_gate = torch.sigmoid(self.output_gate(gate_inputs))  # (B, n)",
            "output = output_gate * output  # (B, n)",
        ]
    else:
        lines += ["output = output * torch.sigmoid(output)  # (B, n)"]
    return [*lines, "return output, new_state" + ".detach()" * is_detached]


def _baseline_forward_lines(config: BaselineConfig) -> list[str]:
    if config.cell != "lstm":
        return ["state = self.cell(x, state)  # (B, n)", "return state, state"]
    return [
        "output, memory = state.chunk(2, dim=1)  # (B, n)",
        "output, memory = self.cell(x, (output, memory))  # (B, n)",
        "state = torch.cat((output, memory), dim=1)  # (B, 2n)",
        "return output, state",
    ]


def _concat(names: Sequence[str]) -> str:
    return f"torch.cat(({', '.join(names)}), dim=1)"
