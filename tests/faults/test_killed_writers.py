"""Processes that are killed while they create or extend a study leave no half of it."""

import pytest
from helpers import TINY
from hooks import Hooks, StatementGate
from process_runner import query, wait_until_running
from small_searches import assert_all_complete, error_of, finish, kill

pytestmark = pytest.mark.extended

SOURCE = {
    "training_steps": 4,
    "training_log_every": 2,
    "space_layers": "[1]",
    "space_state_size": "[3, 4]",
    "space_residual": "[true]",
    **{f"space_{name}_gate": "[false]" for name in ("input", "forget", "output", "state")},
    "space_state_source": "['new']",
}

STATEMENTS = ("INSERT INTO trials", "COMMIT")
"""What a process is about to do when it is killed while it creates or extends a study."""

TABLES = ("studies", "study_user_attributes", "trials", "trial_params", "trial_system_attributes")


def read_all(url):
    """Return the rows of all tables that a new study fills."""
    return [sorted(map(repr, query(url, f"SELECT * FROM {table}"))) for table in TABLES]


def test_two_processes_killed_while_they_derive_a_study_leave_nothing(
    search, runner, url, tmp_path
):
    """Whatever the first is about to write; the second waits for it or is about to begin."""
    finish(search(url=url, **SOURCE))
    before = read_all(url)
    words = ("refine.py", "quick-refined", "--storage", url, "--threads", "1", *TINY)
    words += ("--set=refinement.top=1", "--set=refinement.variants=[{}]")

    def start(name, statement):
        gate = StatementGate(tmp_path / name, statement)
        command = runner.start(*words, hooks=Hooks(report=False, statements=gate))
        wait_until_running([command], lambda: gate.held)
        return command, gate

    begin = "BEGIN IMMEDIATE" if url.startswith("sqlite") else "INSERT INTO studies"
    for index, statement in enumerate(STATEMENTS):
        second, gate = start(f"second-{index}", begin)
        first, _ = start(f"first-{index}", statement)
        gate.open()
        kill(first, second)
        assert read_all(url) == before, statement
    output = finish(*(runner.start(*words, hooks=Hooks(report=False)) for _ in range(2)))
    assert output.count("created with 1 trial") == 1
    names = query(url, "SELECT study_name FROM studies ORDER BY study_id")
    assert names == [("quick",), ("quick-refined",)]
    assert query(url, "SELECT state FROM trials") == [("COMPLETE",)] * 3


def test_process_killed_while_it_extends_a_study_leaves_it_as_it_was(
    search, held, new_gate, sqlite_url, tmp_path
):
    """Refused while a worker trains; then killed in the transaction, then once more, completed."""
    gate = new_gate(2)
    worker = held(gate=gate, **SOURCE)
    more = SOURCE | {"space_state_size": "[3, 4, 5]"}
    before = read_all(sqlite_url)
    assert "held by workers" in error_of(search("--extend", **more), code=2)
    assert read_all(sqlite_url)[:4] == before[:4]
    gate.open()
    finish(worker)

    before = read_all(sqlite_url)
    for index, statement in enumerate(STATEMENTS):
        hold = StatementGate(tmp_path / f"extension-{index}", statement)
        extension = search("--extend", statements=hold, **more)
        wait_until_running([extension], lambda hold=hold: hold.held)
        kill(extension)
        assert read_all(sqlite_url) == before, statement
    assert "extended with 1 trial" in finish(search("--extend", **more))
    assert_all_complete(sqlite_url, 3)
