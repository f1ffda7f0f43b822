"""Processes that are killed while they create, extend or report on a study leave no half of it."""

import signal

import pytest
from helpers import QUICK, TINY
from hooks import Gate, Hooks, StatementGate
from process_runner import FINISHED, query, search_starter, wait_until, wait_until_running

pytestmark = pytest.mark.extended

SOURCE = {
    "training_steps": 4,
    "training_log_every": 2,
    "space_layers": "[1]",
    "space_state_size": "[3, 4]",
    "space_residual": "[true]",
    "space_input_gate": "[false]",
    "space_forget_gate": "[false]",
    "space_output_gate": "[false]",
    "space_state_gate": "[false]",
    "space_state_source": "['new']",
}
"""Two trials."""

STATEMENTS = ("INSERT INTO trials", "COMMIT")
"""What a process is about to do when it is killed while it creates or extends a study."""

TABLES = ("studies", "study_user_attributes", "trials", "trial_params", "trial_system_attributes")


def read_all(url):
    """Return the rows of all tables that a new study fills."""
    return [sorted(map(repr, query(url, f"SELECT * FROM {table}"))) for table in TABLES]


def kill(*commands):
    for command in commands:
        command.send(signal.SIGKILL)
    for command in commands:
        assert command.wait() == -signal.SIGKILL


@pytest.fixture
def search(runner, url, text):
    return search_starter(runner, url, text)


def test_two_processes_killed_while_they_derive_a_study_leave_nothing(
    search, runner, url, tmp_path
):
    """Whatever the first is about to write; the second waits for it or is about to begin."""
    source = search(**SOURCE)
    assert source.wait() == 0, source.output
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
    searches = [runner.start(*words, hooks=Hooks(report=False)) for _ in range(2)]
    for each in searches:
        assert each.wait() == 0, each.output
    assert sum("created with 1 trial" in each.stdout for each in searches) == 1
    assert query(url, "SELECT study_name FROM studies ORDER BY study_id") == [
        ("quick",),
        ("quick-refined",),
    ]
    assert query(url, FINISHED) == [(0, "COMPLETE", 1), (0, "COMPLETE", 1), (1, "COMPLETE", 1)]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_process_killed_while_it_extends_a_study_leaves_it_as_it_was(search, url, tmp_path):
    """Refused while a worker trains; then killed in the transaction, then once more, completed."""
    keep = ("--set=keep_checkpoints='all'",)
    gate = Gate(tmp_path / "gate", 2)
    worker = search(*keep, gate=gate, **SOURCE)
    wait_until_running([worker], lambda: gate.held)
    more = SOURCE | {"training_steps": 6, "space_state_size": "[3, 4, 5]"}
    before = read_all(url)
    refused = search("--extend", *keep, **more)
    assert refused.wait() == 2
    (line,) = refused.stderr.splitlines()
    assert "held by workers" in line
    assert read_all(url)[:4] == before[:4]
    gate.open()
    assert worker.wait() == 0, worker.output

    before = read_all(url)
    for index, statement in enumerate(STATEMENTS):
        hold = StatementGate(tmp_path / f"extension-{index}", statement)
        extension = search("--extend", *keep, statements=hold, **more)
        wait_until_running([extension], lambda hold=hold: hold.held)
        kill(extension)
        assert read_all(url) == before, statement
    done = search("--extend", *keep, **more)
    assert done.wait() == 0, done.output
    assert "trials that continue from their checkpoints: 2" in done.stdout
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(3)]
    steps = query(url, "SELECT trial_id, max(step) FROM trial_intermediate_values GROUP BY 1")
    assert {last for _, last in steps} == {6}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_killed_parent_of_workers_leaves_no_half_report(runner, url, text, tmp_path):
    words = ("run_search.py", QUICK, "--storage", url, "--corpus", str(text), *TINY)
    words += tuple(f"--set={name.replace('_', '.', 1)}={value}" for name, value in SOURCE.items())
    search = runner.start(*words, "--workers", "2", cwd=tmp_path, hooks=Hooks(half_report=True))
    folder = tmp_path / "reports" / "out"
    wait_until_running([search], lambda: folder.is_dir() and any(folder.iterdir()))
    (temporary,) = folder.iterdir()
    assert temporary.name.endswith(".part")
    children = f"/proc/{search.pid}/task/{search.pid}/children"
    with open(children) as file:  # noqa: PTH123  # its workers have ended
        assert "spawn_main" not in file.read()
    other = runner.start(*words, cwd=tmp_path)
    assert other.wait() == 0, other.output
    assert f"/{search.pid} writes it to {folder}" in other.stdout
    kill(search)
    wait_until(lambda: list(folder.iterdir()) == [temporary])
    done = runner.run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = folder / "quick.html"
    assert f"report: {page}" in done.stdout.splitlines()
    assert page.read_text().rstrip().endswith("</html>")
    assert set(folder.iterdir()) == {page, temporary}
