"""The code of a network, without the options that are off.

The template of a built-in cell is its class in ``rnn/cells.py``: read as text, with all that
depends on options alone evaluated. A user's cell is its own source file. Nothing is imported or
executed: reports need neither PyTorch nor a user's code.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from textwrap import dedent, indent
from types import SimpleNamespace
from typing import Any, NamedTuple

from rnn.config import (
    BYTES,
    NORM_EPS,
    WHOLE_SEQUENCE,
    NetworkConfig,
    ParamValue,
    TaskSpec,
)

# ------------------------------------------------------------------ the whole network

_MODULE = '''\
"""A recurrent network: {label}.

T is the number of steps, B that of {stream}s read in parallel, n = {n} the state size,{sizes}.
It was trained {gradient}.
"""

{head}


class Network(nn.Module):
    """{purpose}"""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear({spec.inputs}, {n})
        self.layers = nn.ModuleList({call} for _ in range({layers})){norms}
        self.head = nn.Linear({n}, {spec.outputs})

    def init_state(self, batch_size: int) -> list:
        """Return each layer's state (B, …) at a {stream}'s start."""
{init_state}

    def forward(self, {read}: Tensor, states: list | None = None) -> tuple[Tensor, list]:
        """Map {read} {shape} to {out} (T, B, {o}) and each layer's state (B, …) at the end.

        The first step reads the given states, or the initial ones.
        """
        if {is_wrong}:
            raise ValueError(f"{read} have the shape {{tuple({read}.shape)}}: expected {shape}")
        states = self.init_state({read}.shape[1]) if states is None else list(states)
{embed}
        ys = []
        for x in xs:
            for i, layer in enumerate(self.layers):
{advance}
            ys.append(x)
        {out} = self.head(torch.stack(ys))  # (T, B, {o})
        return {out}, states
'''

_EMBED_TOKENS = """\
        # A linear map of a one-hot token is a row of its weights.
        table = self.embedding.weight.T  # (V, n)
        xs = table[tokens] + self.embedding.bias  # (T, B, n)"""

_EMBED_NUMBERS = """\
        xs = self.embedding(inputs)  # (T, B, n)"""

_ADVANCE = """\
                x, states[i] = layer(x, states[i])  # (B, n), (B, …)"""

_NORMS = """
        self.norms = nn.ModuleList(nn.RMSNorm({n}, {eps}) for _ in range({layers}))"""

_ADVANCE_BLOCK = """\
                y, states[i] = layer(self.norms[i](x), states[i])  # (B, n), (B, …)
                x = x + y  # (B, n)"""

_ZEROS = """\
        return [self.head.weight.new_zeros(batch_size, {n}) for _ in self.layers]"""

_STATES_OF_CELL = """\
        zeros = self.head.weight.new_zeros(batch_size, {n})
        return [
            layer.initial_state(batch_size) if hasattr(layer, "initial_state") else zeros
            for layer in self.layers
        ]"""


def generate_module(config: NetworkConfig, spec: TaskSpec = BYTES, bptt_steps: int = 1) -> str:
    """Generate a Python file that defines the whole network.

    Args:
        config: network to generate.
        spec: what it reads and predicts.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The source of a class ``Network`` with the state dict of :class:`rnn.network.Network`, and
        of the class of its layers; it imports PyTorch alone. A user's cell is imported from a
        module ``cell``, its source file.
    """
    n = config.state_size
    options = ""
    if not config.is_built_in:
        # Without options: a text could end the docstring.
        label = replace(config, options=()).label
        name = f"cell.{config.cell}"
        init_state = _STATES_OF_CELL
        options = "".join(f", {name}={value!r}" for name, value in config.options)
        head = "import cell\nimport torch\nfrom torch import Tensor, nn"
    else:
        label = config.label
        cell = _specialize(config)
        name = cell.name
        init_state = _STATES_OF_CELL if "initial_state" in cell.methods else _ZEROS
        code = "\n\n".join([cell.description, *cell.methods.values()])
        layer = f"class {name}(nn.Module):\n{indent(code, '    ')}"
        head = f"import torch\nfrom torch import Tensor, nn\n\n\n{layer}"
    gradient = "without gradients across time steps"
    if bptt_steps > 1:
        reach = "whole sequences" if bptt_steps == WHOLE_SEQUENCE else f"{bptt_steps} time steps"
        gradient = f"with gradients through {reach}"
    norms = _NORMS.format(n=n, eps=NORM_EPS, layers=config.layers)
    return _MODULE.format(
        norms=norms if config.is_residual else "",
        advance=_ADVANCE_BLOCK if config.is_residual else _ADVANCE,
        label=label,
        n=n,
        spec=spec,
        **_describe(spec),
        gradient=gradient,
        head=head,
        call=f"{name}(input_size={n}, state_size={n}{options})",
        layers=config.layers,
        init_state=init_state.format(n=n),
    )


def _describe(spec: TaskSpec) -> dict[str, str]:
    """Return the words of a module for what its network reads and predicts."""
    if spec.reads_tokens:
        size = f"V = {spec.inputs} the vocabulary size"
        words = {"read": "tokens", "shape": "(T, B)", "embed": _EMBED_TOKENS}
        words["is_wrong"] = "tokens.ndim != 2"
    else:
        size = f"d = {spec.inputs} the size of an input"
        words = {"read": "inputs", "shape": f"(T, B, {spec.inputs})", "embed": _EMBED_NUMBERS}
        words["is_wrong"] = f"inputs.ndim != 3 or inputs.shape[2] != {spec.inputs}"
    if spec.is_token_stream:
        purpose = "A language model: reads tokens and predicts the next after each."
        words |= {"stream": "text", "sizes": f" {size}", "out": "logits", "o": "V"}
    else:
        purpose = "Reads a sequence step by step and predicts at each step."
        size += f", k = {spec.outputs} the size of an output"
        words |= {"stream": "sequence", "sizes": f"\n{size}", "out": "outputs", "o": "k"}
    return words | {"purpose": purpose}


# ------------------------------------------------------------------ one layer


class _Cell(NamedTuple):
    name: str
    description: str
    methods: dict[str, str]


@cache
def _specialize(config: NetworkConfig) -> _Cell:
    """Return the class of a built-in cell, with the options of a config."""
    source = Path(__file__).with_name("cells.py").read_text("utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    (found,) = (node for node in classes if node.name.lower() == f"{config.cell}cell")
    functions = [
        node
        for node in found.body
        if isinstance(node, ast.FunctionDef) and node.name != "forward_sequence"
    ]
    options = [argument.arg for argument in functions[0].args.kwonlyargs]
    description = dedent(f"    {ast.get_source_segment(source, found.body[0])}")
    if options:  # the rest describes all of them
        description = description.splitlines()[0] + '"""'
    specializer = _Specializer(dict(config.options))
    methods = {
        function.name: _specialize_method(function, specializer, source) for function in functions
    }
    return _Cell(found.name, description, methods)


def _specialize_method(function: ast.FunctionDef, specializer: "_Specializer", source: str) -> str:
    """Return the source of a method with the options that a specializer knows."""
    begin = function.lineno - 1
    end = function.body[0].lineno - 1
    lines = source.splitlines()
    signature = dedent("\n".join(lines[begin:end]))
    if function.args.kwonlyargs:
        function.args.kwonlyargs = []
        function.args.kw_defaults = []
        signature = ast.unparse(function).partition("\n")[0]
    specializer.generic_visit(function)
    statements = function.body
    if function.name != "__init__":  # whose copies name sizes
        _inline_copies(statements)
    statements = _remove_unused(statements)
    body = [f"    {_to_text(statement, lines)}" for statement in statements]
    return "\n".join([signature, *body])


def _to_text(statement: ast.stmt, lines: Sequence[str]) -> str:
    """Return a statement with its comment, as it was written if it did not change."""
    written = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
    comment = re.search(r"  # .+$", written)
    code = written[statement.col_offset : comment.start() if comment else None]
    if ast.dump(ast.parse(code).body[0]) != ast.dump(statement):
        code = ast.unparse(statement)
    return code + (comment[0] if comment else "")


class _Specializer(ast.NodeTransformer):
    """Evaluates conditions and sizes, which depend on options alone.

    Attributes that are set to such a value are removed.

    Args:
        options: values of the constructor's options.
    """

    def __init__(self, options: dict[str, ParamValue]) -> None:
        self._attributes = SimpleNamespace()
        self._names = {"self": self._attributes, **options}

    def visit_If(self, node: ast.If) -> list[ast.stmt]:
        chosen = ast.Module(self._choose(node), [])
        self.generic_visit(chosen)
        return chosen.body

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return self.visit(self._choose(node))

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        value = self._evaluate(node)
        if value is not node:
            return ast.Constant(value)
        self.generic_visit(node)
        if isinstance(node.op, ast.Mult) and ast.unparse(node.left) == "1":
            return node.right
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        self.generic_visit(node)
        target = node.targets[0]
        if isinstance(target, ast.Attribute):
            value = self._evaluate(node.value)
            setattr(self._attributes, target.attr, value)
            if value is not node.value:
                return None
        return node

    def _choose(self, node: ast.If | ast.IfExp) -> Any:
        value = self._evaluate(node.test)
        assert value is not node.test, f"depends on more than options: {ast.unparse(node.test)}"
        return node.body if value else node.orelse

    def _evaluate(self, node: ast.expr) -> Any:
        """Return the value of an expression; itself if it depends on more than options."""
        try:
            return eval(ast.unparse(node), dict(self._names))
        except NameError:
            return node


def _names(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    """Return the local names that are read or assigned."""
    names = (child for child in ast.walk(node) if isinstance(child, ast.Name))
    return [name for name in names if isinstance(name.ctx, context)]


def _assigned(statement: ast.stmt) -> list[str]:
    return [name.id for name in _names(statement, ast.Store)]


def _inline_copies(statements: list[ast.stmt]) -> None:
    """Read a name instead of its copies, as long as neither is assigned again."""
    copies: dict[str, str] = {}
    for statement in statements:
        for read in _names(statement, ast.Load):
            read.id = copies.get(read.id, read.id)
        new = _assigned(statement)
        copies = {a: b for a, b in copies.items() if a not in new and b not in new}
        match statement:
            case ast.Assign(targets=[ast.Name(id=copy)], value=ast.Name(id=name)):
                copies[copy] = name


def _remove_unused(statements: list[ast.stmt]) -> list[ast.stmt]:
    """Remove assignments to names that are not read before they are assigned again."""
    kept: list[ast.stmt] = []
    read: set[str] = set()
    for statement in reversed(statements):
        new = _assigned(statement)
        if not new or not read.isdisjoint(new):
            read = (read - {*new}) | {name.id for name in _names(statement, ast.Load)}
            kept.append(statement)
    return kept[::-1]
