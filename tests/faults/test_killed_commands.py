"""Commands that create, extend, import or delete studies are killed, and meet workers."""

import signal

import pytest
from helpers import TINY
from hooks import Gate, Hooks
from managed_studies import FILES, create_with_everything, dump, list_files
from process_runner import query, wait_until_running
from small_searches import (
    FOUR,
    assert_all_complete,
    assert_all_trials_match,
    error_of,
    finish,
    kill,
)

COUNT = "SELECT count(*) FROM studies"


@pytest.fixture
def start(runner):
    """Start a command, as ``start("delete", "made", "--yes")``."""
    return lambda *arguments, **hooks: runner.start(*arguments, hooks=Hooks(**hooks))


@pytest.fixture
def end(start):
    """Start a command, wait until a gate holds it, and end it by a signal."""

    def start_and_end(*arguments, gate, number=signal.SIGKILL):
        command = start(*arguments, gate=gate)
        wait_until_running([command], lambda: gate.held)
        command.send(number)
        assert command.wait() == (130 if number == signal.SIGINT else -number)

    return start_and_end


@pytest.fixture
def source(tmp_path, artifacts):
    """URL of an SQLite file with a study that has all kinds of rows and files."""
    url = f"sqlite:///{tmp_path}/source.db"
    create_with_everything(url, artifacts)
    return url


@pytest.mark.extended
@pytest.mark.parametrize(
    ("url", "number"),
    [("sqlite", signal.SIGINT), ("postgresql", signal.SIGKILL)],
    indirect=["url"],
)
def test_import_that_is_ended_before_its_commit_leaves_nothing(
    start, end, source, url, tmp_path, number
):
    file = str(tmp_path / "made.jsonl.gz")
    finish(start("export-study", "made", file, "--storage", source))
    arguments = ("import", file, "--storage", url)
    end(*arguments, number=number, gate=Gate(tmp_path / "gate", statement="COMMIT"))
    assert query(url, COUNT) == [(0,)]
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]
    assert "imported study 'made'" in finish(start(*arguments))
    assert dump(url)["trial_values"] == dump(source)["trial_values"]


@pytest.mark.extended
def test_killed_deletion_changes_nothing_or_leaves_files_of_the_study_alone(
    start, end, url, tmp_path, artifacts
):
    """Killed before its commit, then after it."""
    for name in ("made", "other"):
        create_with_everything(url, artifacts, name)
    before, files = dump(url), list_files(artifacts)
    common = ("--yes", "--storage", url, "--artifacts", str(artifacts))
    rows = Gate(tmp_path / "rows", statement="DELETE FROM studies")
    end("delete", "made", *common, gate=rows)
    assert (dump(url), list_files(artifacts)) == (before, files)
    removal = Gate(tmp_path / "files", function="studies.storage.edits:delete_study")
    end("delete", "made", *common, gate=removal)
    assert query(url, "SELECT study_name FROM studies") == [("other",)]
    assert list_files(artifacts) == files
    finish(start("delete", "other", *common))
    assert query(url, COUNT) == [(0,)]
    left = {f"made-folder/{name}" for names in FILES.values() for name in names}
    assert list_files(artifacts).keys() == left


def test_worker_finishes_an_unfinished_study_that_was_imported(
    held, search, run, search_url, url, tmp_path, reference_curves
):
    """Its open trial, which a killed worker holds, restarts from step 0; the others stay."""
    file, elsewhere = str(tmp_path / "quick.jsonl.gz"), f"sqlite:///{tmp_path}/elsewhere.db"
    target = elsewhere if url == search_url else url
    worker = held(**FOUR)
    finish(search("--no-wait", **FOUR))
    kill(worker)
    for words in (("export-study", "quick", file), ("import", file)):
        storage = search_url if words[0] == "export-study" else target
        done = run(*words, "--storage", storage)
        assert done.returncode == 0, done.stderr
    states = "SELECT number, state FROM trials ORDER BY number"
    assert query(target, states) == [(0, "WAITING"), *[(n, "COMPLETE") for n in (1, 2, 3)]]
    curve = "SELECT count(*) FROM trial_intermediate_values JOIN trials USING (trial_id)"
    assert query(target, f"{curve} WHERE number = 0") == [(0,)]
    said = finish(search(url=target, **FOUR))
    assert "no checkpoint" not in said
    assert_all_trials_match(target, reference_curves, FOUR)


# ------------------------------------------------------------------ creation and extension


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


@pytest.mark.extended
def test_two_processes_killed_while_they_derive_a_study_leave_nothing(
    search, runner, url, tmp_path
):
    """Whatever the first is about to write; the second waits for it or is about to begin."""
    finish(search(url=url, **SOURCE))
    before = read_all(url)
    words = ("refine.py", "quick-refined", "--storage", url, "--threads", "1", *TINY)
    words += ("--set=refinement.top=1", "--set=refinement.variants=[{}]")

    def start(name, statement):
        gate = Gate(tmp_path / name, statement=statement)
        command = runner.start(*words, hooks=Hooks(report=False, gate=gate))
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


@pytest.mark.extended
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
        hold = Gate(tmp_path / f"extension-{index}", statement=statement)
        extension = search("--extend", gate=hold, **more)
        wait_until_running([extension], lambda hold=hold: hold.held)
        kill(extension)
        assert read_all(sqlite_url) == before, statement
    assert "extended with 1 trial" in finish(search("--extend", **more))
    assert_all_complete(sqlite_url, 3)
