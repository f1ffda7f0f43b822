"""Generate the LaTeX equations of one layer."""

from collections.abc import Sequence

from rnn.codegen.forward_code import read_out_parts, require_built_in, state_names
from rnn.config import BaselineCell, BaselineConfig, NetworkConfig

_BASELINE_EQUATIONS: dict[BaselineCell, list[str]] = {
    "elman": [r"y = \tanh(x W_u + b_u + h V_u + d_u)"],
    "gru": [
        r"r = \sigma(x W_r + b_r + h V_r + d_r)",
        r"z = \sigma(x W_z + b_z + h V_z + d_z)",
        r"u = \tanh(x W_u + b_u + r \odot (h V_u + d_u))",
        r"y = (1 - z) \odot u + z \odot h",
    ],
    "lstm": [
        r"i = \sigma(x W_i + b_i + h V_i + d_i)",
        r"f = \sigma(x W_f + b_f + h V_f + d_f)",
        r"u = \tanh(x W_u + b_u + h V_u + d_u)",
        r"o = \sigma(x W_o + b_o + h V_o + d_o)",
        r"m \leftarrow f \odot m + i \odot u",
        r"y = o \odot \tanh(m)",
    ],
}


def generate_latex(config: NetworkConfig, bptt_steps: int = 1) -> list[str]:
    r"""Generate the equations of one layer in LaTeX.

    The letters are those of :class:`rnn.models.gated.GatedLayer` and :mod:`rnn.models.baselines`.
    Where gates follow, ``\tilde u`` is the candidate and ``\hat u`` the output of the state gate.

    Args:
        config: network of the layer.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The equations in the order of computation, without delimiters: from the input x and the
        previous state h to the output y and, in the last equation, the next h.
    """
    config = require_built_in(config)
    if isinstance(config, BaselineConfig):
        return [*_BASELINE_EQUATIONS[config.cell], r"h \leftarrow y"]
    lines = [rf"c = {_latex_concat(['x', 'h'])}"]
    c, previous = "c", "h"
    if config.input_gate:
        c = "c'"
        lines += [r"c' = \sigma(c W_i + b_i) \odot c"]
        if config.reads_previous_state:
            previous = "h'"
            lines += [r"[x' \,;\, h'] = c'"]

    def gate(letter: str, u: str) -> str:
        g = _latex_concat([c, u]) if config.gate_inputs == "candidate" else c
        return rf"{letter} = \sigma({g} W_{letter} + b_{letter})"

    states = state_names(config, r"\tilde u", r"\hat u", "u")
    lines += [rf"{states[0]} = \tanh({c} W_u + b_u)"]
    if config.state_gate:
        mix = rf"{states[1]} = z \odot {states[0]} + (1 - z) \odot h"
        lines += [gate("z", states[0]), mix]
    if config.forget_gate:
        lines += [gate("f", states[-2]), rf"{states[-1]} = f \odot {states[-2]}"]

    parts = read_out_parts(config, "u", previous, "x")
    r = parts[0]
    if len(parts) > 1:
        r = "r"
        lines += [f"r = {_latex_concat(parts)}"]
    lines += [f"o = {r} W_o + b_o"]
    if config.output_gate:
        lines += [rf"y = \sigma({_latex_concat(['o', r])} W_y + b_y) \odot o"]
    else:
        lines += [r"y = o \odot \sigma(o)"]
    next_state = r"\operatorname{detach}(u)" if bptt_steps == 1 else "u"
    return [*lines, rf"h \leftarrow {next_state}"]


def _latex_concat(names: Sequence[str]) -> str:
    return "[" + r" \,;\, ".join(names) + "]"
