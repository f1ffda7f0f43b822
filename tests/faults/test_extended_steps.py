"""Trials of a study whose steps are extended continue from their checkpoints, bit for bit."""

import json
import signal
from contextlib import closing

import pytest
import small_searches
from hooks import Gate
from process_runner import CURVES, FINISHED, freeze_process, query, wait_until_running

from studies.loader import read_study_record
from studies.storage.open import load_study, open_storage

FIVE = small_searches.FIVE | {"training_steps": 40, "training_log_every": 10}

LONGER = FIVE | {"training_steps": 120}

ALL = "--set=keep_checkpoints='all'"

SHORT_LEASE = "--set=lease.seconds=1"
"""For a worker whose trial others are to resume."""

RESULTS = """
    SELECT number, value, value_json FROM trials t
    JOIN trial_values v ON v.trial_id = t.trial_id
    JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'validation_loss'
    ORDER BY number
"""
"""Values, and losses of the averaged weights."""


@pytest.fixture
def finish(search):
    """Run searches to their end, at the same time; return their output."""

    def run(*options, count=1, **settings):
        commands = [search(*options, **settings) for _ in range(count)]
        for command in commands:
            assert command.wait() == 0, command.output
        return "".join(command.output for command in commands)

    return run


def list_final(tmp_path):
    return {int(path.stem.removeprefix("trial-")) for path in tmp_path.glob("**/trial-*.final")}


def assert_equals_training_at_once(sqlite_url, reference_curves):
    assert query(sqlite_url, FINISHED) == [(number, "COMPLETE", 1) for number in range(5)]
    assert query(sqlite_url, CURVES) == reference_curves(**LONGER)
    assert query(sqlite_url, RESULTS) == reference_curves(RESULTS, **LONGER)


@pytest.fixture
def artifacts(tmp_path):
    return f"--artifacts={tmp_path / 'artifacts'}"


@pytest.mark.extended
def test_extended_trials_equal_those_trained_at_once(
    search, finish, sqlite_url, tmp_path, artifacts, reference_curves, tmp_path_factory
):
    """From two processes, one of which is killed while it trains to the new end."""
    finish(ALL, artifacts, count=2, **FIVE)
    assert list_final(tmp_path) == set(range(5))
    values = {str(number): value for number, value, _ in query(sqlite_url, RESULTS)}
    assert query(sqlite_url, RESULTS) == reference_curves(RESULTS, **FIVE)
    refused = search(artifacts, **LONGER)
    assert refused.wait() == 2
    assert "--extend to train longer" in refused.stderr

    gate = Gate(tmp_path_factory.mktemp("gate") / "gate", 60)
    first = search(ALL, artifacts, "--extend", SHORT_LEASE, gate=gate, **LONGER)
    wait_until_running([first], lambda: first.pid in gate.held)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert (
        "extended from 40 to 120 steps; trials that continue from their checkpoints: 5\n"
        in first.stdout
    )
    assert "trial 0 resumes from step 40\n" in first.output
    finish(ALL, artifacts, count=2, **LONGER)
    assert_equals_training_at_once(sqlite_url, reference_curves)

    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "quick")
        (end,) = study.user_attrs["earlier_ends"]
        assert (end["steps"], end["values"]) == (40, values)
        assert "--extend" in end["command"]
        assert [each.steps for each in read_study_record(study).earlier_ends] == [40]
        trial = study.trials[0]
        earlier = trial.system_attrs["earlier_end:40"]
        assert earlier["value"] == values["0"]
        assert earlier["attributes"]["validation_loss"] != trial.user_attrs["validation_loss"]
        assert len(earlier["attributes"]["validation_windows"]) == 2
    joined = finish(artifacts, **FIVE)
    assert "study 'quick' was extended: using its stored 120 steps" in joined


@pytest.mark.extended
def test_as_many_checkpoints_are_kept_as_asked_and_other_trials_restart(
    finish, sqlite_url, tmp_path, artifacts, reference_curves
):
    finish("--set=keep_checkpoints=2", artifacts, count=2, **FIVE)
    best = sorted(query(sqlite_url, RESULTS), key=lambda trial: (trial[1], trial[0]))[:2]
    assert list_final(tmp_path) == {number for number, *_ in best}
    said = finish("--extend", artifacts, **LONGER)
    assert "trials that continue from their checkpoints: 2" in said
    assert "restart from step 0, because they have none: 3" in said
    assert "no checkpoint of" not in said
    assert said.count("from step 40") == 2
    assert_equals_training_at_once(sqlite_url, reference_curves)
    assert list_final(tmp_path) == set(), "this worker keeps none"
    (curve,) = query(
        sqlite_url,
        "SELECT value_json FROM trials t JOIN trial_system_attributes a ON a.trial_id = t.trial_id "
        f"WHERE key = 'earlier_end:40' AND number NOT IN ({best[0][0]}, {best[1][0]}) "
        "ORDER BY number LIMIT 1",
    )
    assert [step for step, _ in json.loads(curve[0])["curve"]] == [10, 20, 30, 40]


@pytest.mark.extended
def test_damaged_checkpoint_of_the_old_end_is_quarantined_and_its_trial_restarts(
    finish, sqlite_url, tmp_path, artifacts, reference_curves
):
    finish(ALL, artifacts, **FIVE)
    path = next(tmp_path.glob("**/trial-3.final"))
    path.write_bytes(path.read_bytes()[:-1])
    next(tmp_path.glob("**/trial-1.final")).unlink()
    said = finish("--extend", artifacts, **LONGER)
    assert "trial 3: checkpoint is damaged" in said
    assert "trials that continue from their checkpoints: 4; trials that restart" in said
    assert_equals_training_at_once(sqlite_url, reference_curves)


def test_trials_trained_in_lockstep_continue_in_lockstep(
    finish, sqlite_url, tmp_path, artifacts, reference_curves
):
    best = "--set=keep_checkpoints=4"
    finish(best, artifacts, lockstep="5", **FIVE)
    assert len(list_final(tmp_path)) == 4
    said = finish(best, artifacts, "--extend", lockstep="5", **LONGER)
    assert "trials that continue from their checkpoints: 4; trials that restart" in said
    assert "resume from step 40" in said
    assert len(list_final(tmp_path)) == 4
    for statement in (CURVES, RESULTS):
        rows, others = query(sqlite_url, statement), reference_curves(statement, **LONGER)
        for row, other in zip(rows, others, strict=True):
            assert [float(each) for each in row] == pytest.approx(
                [float(each) for each in other], rel=1e-5
            )


@pytest.mark.extended
def test_stopped_trial_of_an_extended_study_continues_from_where_it_was(
    search, finish, sqlite_url, tmp_path, artifacts, tmp_path_factory, reference_curves
):
    gate = Gate(tmp_path_factory.mktemp("gate") / "gate", 20)
    first = search(artifacts, gate=gate, **FIVE)
    wait_until_running([first], lambda: first.pid in gate.held)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    said = finish(artifacts, "--extend", **LONGER)
    assert "extended from 40 to 120 steps\n" in said
    assert "trial 0 resumes from step 20" in said
    assert_equals_training_at_once(sqlite_url, reference_curves)


def test_frozen_worker_that_wakes_after_an_extension_overwrites_nothing(
    search, finish, sqlite_url, artifacts, tmp_path_factory, reference_curves
):
    gate = Gate(tmp_path_factory.mktemp("gate") / "gate", 20)
    frozen = search(ALL, artifacts, SHORT_LEASE, gate=gate, **FIVE)
    wait_until_running([frozen], lambda: frozen.pid in gate.held)
    freeze_process(frozen, sqlite_url)
    finish(ALL, artifacts, **FIVE)
    finish("--extend", artifacts, **LONGER)
    gate.open()
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 1
    assert (
        "error: study 'quick' was extended to 120 steps while this search used it: run the same "
        "command to continue; recorded results are kept\n" in frozen.stderr
    )
    assert_equals_training_at_once(sqlite_url, reference_curves)


REFINEMENT = """
[refinement]
source = "quick"
top = 2
replicates = 2
"""


@pytest.mark.extended
def test_derived_study_is_extended_and_its_report_written_again(
    runner, finish, sqlite_url, tmp_path, artifacts
):
    finish(artifacts, **FIVE)
    path = tmp_path / "again.toml"
    path.write_text(REFINEMENT)
    common = ("refine.py", str(path), "--storage", sqlite_url, "--threads", "1", artifacts, ALL)

    def refine(*options):
        done = runner.run(*common, "--set=precision='fp32'", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    refused = runner.run(*common, "--extend", cwd=tmp_path)
    assert (refused.returncode, "is a refinement without" in refused.stderr) == (2, True)
    refine()
    (page,) = (tmp_path / "reports" / "out").glob("*.html")
    assert "40 steps per trial" in page.read_text()
    refused = runner.run(*common, "--extend", cwd=tmp_path)
    assert (refused.returncode, "or extend training.steps" in refused.stderr) == (2, True)
    refused = runner.run(
        *common, "--extend", "--set=training.steps=80", "--set=refinement.top=3", cwd=tmp_path
    )
    assert (refused.returncode, "refinement.top: 2 in the study" in refused.stderr) == (2, True)
    said = refine("--extend", "--set=training.steps=80")
    assert "trials that continue from their checkpoints: 4\n" in said
    assert "80 steps per trial" in page.read_text()
    assert "extended from" not in refine("--extend", "--set=training.steps=80")
    reported = runner.run("-m", "reports", "again", "--storage", sqlite_url, cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "study 'again' was extended: using its stored 80 steps" in refine()
