"""What a gradient reaches in users' cells: measured, stored, said, and left out of effects."""

import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import results_of
from helpers import TINY_OVERRIDES
from invocation import refused

import rnn_search
from rnn.config import CellFacts, NetworkConfig
from rnn.errors import CellError
from rnn_search.commands.models import check
from search.cell_facts import measure_cell
from search.cells_tasks import load_record
from search.run import run_workers
from search.run_options import RunOptions

CELL = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(
        self, input_size: int, state_size: int, *, gate: bool = False, scale: float = 1.0,
        a: bool = False, b: bool = False, c: bool = False, depth: int = 1,
    ):
        super().__init__()
        self.scale = scale
        self.candidate = nn.Linear(input_size + state_size, state_size)
        self.gate = nn.Linear(input_size + state_size, state_size) if gate else None
{constructor}

    def forward(self, x, state):
        both = torch.cat((x, state), 1)
        new = self.scale * self.candidate(both).tanh()
        if self.gate is not None:
            gate = self.gate(both).sigmoid()
{gated}
        y = new
{last}
        return y, new
"""

FROZEN = {
    "frozen": {"constructor": "if gate: self.gate.requires_grad_(False)", "gated": "new *= gate"},
    "detached": {"gated": "new = new * gate.detach()"},
}
"""Cells whose gate is never trained."""


def write_cell(folder: Path, constructor="", gated="new = new * gate", last="") -> None:
    parts = {"constructor": (constructor, 8), "gated": (gated, 12), "last": (last, 8)}
    code = {name: textwrap.indent(text, indent * " ") for name, (text, indent) in parts.items()}
    (folder / "mine.py").write_text(CELL.format(**code))


def measure(folder: Path, **options) -> CellFacts:
    record = load_record("mine.py:Mine", folder)
    return measure_cell(NetworkConfig("Mine", 1, 4, tuple(options.items()), record.sha256))


def facts(lags: dict[str, int | None], input_lag: int | None = 0, sees_input: bool = True):
    return CellFacts(lags, input_lag, sees_input)


ALL = {"candidate": 0, "gate": 0}

MEASURED = {
    "trained": ({}, facts(ALL)),
    "frozen": (FROZEN["frozen"], facts(ALL | {"gate": None})),
    "detached": (FROZEN["detached"], facts(ALL | {"gate": None})),
    "unused": (
        {"constructor": "self.extra = nn.Parameter(torch.ones(2))"},
        facts(ALL | {"extra": None}),
    ),
    "blind": ({"last": "y = state"}, facts(dict.fromkeys(ALL, 1), 1, sees_input=False)),
    "state without a gradient": (
        {"last": "y = y + state; new = new.detach()"},
        facts(ALL),
    ),
    "input without a gradient": (
        {"constructor": "self.gain = nn.Parameter(torch.zeros(1))",
         "last": "y = self.gain * (state + x.detach()); new = new.detach()"},
        facts({"candidate": None, "gate": None, "gain": 0}, None),
    ),
    # A weight that starts at zero hides the others from the gradient at first.
    "zero": (
        {"constructor": "self.gain = nn.Parameter(torch.zeros(1))", "last": "y = self.gain * y"},
        facts(ALL | {"gain": 0}),
    ),
    "frozen zero": (
        {"constructor": "self.gain = nn.Parameter(torch.zeros(1), requires_grad=False)\n"
                        "self.bias = nn.Parameter(torch.zeros(1))",
         "last": "y = self.gain * y + self.bias"},
        facts({"candidate": None, "gate": None, "gain": None, "bias": 0}, None, sees_input=False),
    ),
    "nested": (
        {"constructor": "self.norm = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))\n"
                        "self.norm[0].requires_grad_(False)",
         "last": "y = self.norm(y)"},
        facts(ALL | {"norm": 0}),
    ),
    "initial state": (
        {"constructor": "self.start = nn.Parameter(torch.zeros(4))\n"
                        "self.initial_state = lambda count: self.start.expand(count, -1)"},
        facts(ALL | {"start": 0}),
    ),
    "float32 alone": ({"last": "y = y + x @ torch.ones(4, 4)"}, facts(ALL)),
    "four steps": (
        {"constructor": "self.initial_state = lambda count: (torch.zeros(count, 4),) * 3",
         "last": "return a, (b, c, new)"},
        facts(dict.fromkeys(ALL, 3), 3, sees_input=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("code", "expected"), MEASURED.values(), ids=MEASURED)
def test_facts_are_those_of_the_cell(tmp_path, code, expected):
    write_cell(tmp_path, **code)
    if "a, (b" in code.get("last", ""):
        text = (tmp_path / "mine.py").read_text()
        path = tmp_path / "mine.py"
        path.write_text(
            text.replace("both =", "a, b, c = state\n        both =", 1).replace(
                "(x, state)", "(x, a)"
            )
        )
    assert measure(tmp_path, gate=True) == expected


def test_cell_without_any_gradient_is_refused(tmp_path):
    write_cell(tmp_path, last="y = y.detach(); new = new.detach()")
    with refused(CellError, "cell Mine is not differentiable: no gradient reaches any of its"):
        measure(tmp_path)


@pytest.mark.parametrize(("code", "line"), [
    (FROZEN["frozen"], "`gate.weight` gets no gradient: its requires_grad is False (with gate ="),
    (FROZEN["detached"], "`gate.weight` gets no gradient in 200 updates (with gate = true)"),
    ({"last": "y = state"}, "`candidate` gets no gradient with bptt_steps = 1\n"),
    ({"last": "y = state"}, "its output does not see the input of its own step\n"),
])  # fmt: skip
def test_check_says_what_gets_no_gradient(tmp_path, monkeypatch, code, line):
    monkeypatch.setattr("search.cell_check.check_export", lambda network: None)
    monkeypatch.setattr("search.cell_check.compare_forms", lambda *_, **__: [])
    write_cell(tmp_path, **code)
    done = CliRunner().invoke(check, [f"{tmp_path}/mine.py:Mine"], catch_exceptions=False)
    assert line in done.output
    assert "passed all checks" in done.output
    write_cell(tmp_path)
    done = CliRunner().invoke(check, [f"{tmp_path}/mine.py:Mine"], catch_exceptions=False)
    assert "gets no gradient" not in done.output
    assert "does not see" not in done.output


STUDY = """
[space]
cell = ["mine.py:Mine"]
gate = [false, true]
layers = [1, 2]
state_size = [4]
"""


@pytest.fixture
def options(tmp_path, text, monkeypatch):
    """Options of a study of a user's cell with a gate."""
    monkeypatch.setattr("search.cell_check.check_export", lambda network: None)
    (tmp_path / "mine.toml").write_text(STUDY)
    overrides = (*TINY_OVERRIDES, "precision='fp32'")
    place = {"study": f"{tmp_path}/mine.toml", "storage": f"sqlite:///{tmp_path}/studies.db"}
    return RunOptions(**place, corpus=str(text), overrides=overrides, device="cpu", threads=1)


@pytest.mark.parametrize("code", FROZEN.values(), ids=FROZEN)
def test_gate_that_is_never_trained_has_no_effect(tmp_path, options, capsys, code):
    write_cell(tmp_path, **code)
    run_workers(options)
    said = capsys.readouterr().out
    assert "2 of 4 networks never train their gate: no gradient reaches it (gate = true)" in said
    assert "leave them out by exclude = [{ gate = true }] in [space]" in said
    study = rnn_search.load("mine", storage=options.storage)
    effects = study.effects()
    assert set(effects.to_frame()["parameter"]) == {"layers"}
    assert "gate: not compared, no pair of networks can show it" in effects.answer
    assert set(study.effects(untrained="include").to_frame()["parameter"]) == {"layers", "gate"}


def test_trials_record_how_many_parameters_a_gradient_reaches(tmp_path, options):
    write_cell(tmp_path, **FROZEN["detached"])
    run_workers(options)
    table = results_of(options.storage, "mine").table
    left_out = table["parameter_count"] - table["trained_parameter_count"]
    gate = 2 * 4 * 4 + 4  # weights and biases of a layer's gate
    expected = table["layers"] * gate * table["gate"].astype(bool)
    assert left_out.tolist() == expected.tolist()


SWITCHES = {name: [False, True] for name in ("gate", "a", "b", "c")}


def test_of_many_combinations_a_sample_is_measured_and_a_notice_says_so(tmp_path, options):
    write_cell(tmp_path, **FROZEN["frozen"])
    space = SWITCHES | {"cell": [f"{tmp_path}/mine.py:Mine"], "layers": [1], "state_size": [4]}
    settings = {"space": space | {"depth": [1, 2, 3, 4, 5]}, "precision": "fp32"}
    settings |= {"evaluation": {"window_length": 8}, "training": {"sequence_length": 8}}
    plan = rnn_search.plan(settings, name="many", corpus=options.corpus, timed=False)
    (notice,) = (line for line in plan.notices if "combinations" in line)
    assert notice == (
        "cell Mine: what its networks can learn was measured for 32 of 80 combinations of its "
        "options"
    )


OLD = """
import torch
from torch import nn


class Old(nn.Module):
    def __init__(self, input_size: int, state_size: int):
        super().__init__()
        if state_size % 32:
            raise ValueError("expected a multiple of 32")
        self.update = nn.Linear(input_size + state_size, state_size)

    def forward(self, x, state):
        return state, self.update(torch.cat((x, state), 1)).tanh()
"""
"""A cell that is blind, and exists in few sizes."""


def test_notice_names_the_cell_that_is_blind_and_no_condition_for_all(tmp_path, options):
    (tmp_path / "old.py").write_text(OLD)
    settings = {"evaluation": {"window_length": 8}, "training": {"sequence_length": 8}}
    space = {"cell": ["gru", f"{tmp_path}/old.py:Old"], "layers": [1], "state_size": [32]}

    def read_notices(**more):
        given = settings | {"space": space | more}
        plan = rnn_search.plan(given, name="old", corpus=options.corpus, timed=False)
        return [line for line in plan.notices if "networks" in line or "exclude" in line]

    blind = "do not see their input: the output at a step does not depend on the input of that step"
    assert read_notices() == [
        '1 of 2 networks never train their update: no gradient reaches it (cell = "Old")',
        f'1 of 2 networks {blind} (cell = "Old")',
        'leave them out by exclude = [{ cell = "Old" }] in [space], or train them by '
        "training.bptt_steps = 4",
    ]
    assert read_notices(cell=space["cell"][1:])[1] == f"1 of 1 networks {blind}"
    longer = {"bptt_steps": [1, 8], "update_every": [1]}
    assert "bptt_steps = 4" not in "".join(read_notices(training=longer))
