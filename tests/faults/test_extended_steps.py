"""Trials of a study whose steps are extended continue from their checkpoints, bit for bit."""

import signal

import pytest
import small_searches
from process_runner import CURVES, freeze_process, query
from small_searches import assert_all_complete, error_of, finish, kill

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
def list_final(artifacts):
    """Function that lists the trials whose checkpoints of the end are kept."""
    return lambda: {
        int(path.stem.removeprefix("trial-")) for path in artifacts.rglob("trial-*.final")
    }


@pytest.fixture
def assert_equals_training_at_once(sqlite_url, reference_curves):
    def check():
        assert_all_complete(sqlite_url, 5)
        for statement in (CURVES, RESULTS):
            assert query(sqlite_url, statement) == reference_curves(statement, **LONGER)

    return check


@pytest.mark.extended
def test_extended_trials_equal_those_trained_at_once(
    search, held, new_gate, sqlite_url, list_final, reference_curves, assert_equals_training_at_once
):
    """From two processes, one of which is killed while it trains to the new end."""
    finish(*(search(ALL, **FIVE) for _ in range(2)))
    assert list_final() == set(range(5))
    assert query(sqlite_url, RESULTS) == reference_curves(RESULTS, **FIVE)
    assert "--extend to train longer" in error_of(search(**LONGER), code=2)

    first = held(ALL, "--extend", SHORT_LEASE, gate=new_gate(60), **LONGER)
    kill(first)
    assert (
        "extended from 40 to 120 steps; trials that continue from their checkpoints: 5\n"
        in first.stdout
    )
    assert "trial 0 resumes from step 40\n" in first.output
    finish(*(search(ALL, **LONGER) for _ in range(2)))
    assert_equals_training_at_once()

    joined = finish(search(**FIVE))
    assert "study 'quick' was extended: using its stored 120 steps" in joined


@pytest.mark.extended
def test_as_many_checkpoints_are_kept_as_asked_and_other_trials_restart(
    search, sqlite_url, list_final, assert_equals_training_at_once
):
    finish(*(search("--set=keep_checkpoints=2", **FIVE) for _ in range(2)))
    best = sorted(query(sqlite_url, RESULTS), key=lambda trial: (trial[1], trial[0]))[:2]
    assert list_final() == {number for number, *_ in best}
    said = finish(search("--extend", **LONGER))
    assert "trials that continue from their checkpoints: 2" in said
    assert "restart from step 0, because they have none: 3" in said
    assert "no checkpoint of" not in said
    assert said.count("from step 40") == 2
    assert_equals_training_at_once()
    assert list_final() == set(), "this worker keeps none"


@pytest.mark.extended
def test_damaged_checkpoint_of_the_old_end_is_quarantined_and_its_trial_restarts(
    search, artifacts, assert_equals_training_at_once
):
    finish(search(ALL, **FIVE))
    path = next(artifacts.rglob("trial-3.final"))
    path.write_bytes(path.read_bytes()[:-1])
    next(artifacts.rglob("trial-1.final")).unlink()
    said = finish(search("--extend", **LONGER))
    assert "trial 3: checkpoint is damaged" in said
    assert "trials that continue from their checkpoints: 4; trials that restart" in said
    assert_equals_training_at_once()


def test_trials_trained_in_lockstep_continue_in_lockstep(
    search, sqlite_url, list_final, reference_curves
):
    best = "--set=keep_checkpoints=4"
    finish(search(best, lockstep="5", **FIVE))
    assert len(list_final()) == 4
    said = finish(search(best, "--extend", lockstep="5", **LONGER))
    assert "trials that continue from their checkpoints: 4; trials that restart" in said
    assert "resume from step 40" in said
    assert len(list_final()) == 4
    for statement in (CURVES, RESULTS):
        rows, others = query(sqlite_url, statement), reference_curves(statement, **LONGER)
        for row, other in zip(rows, others, strict=True):
            assert [*map(float, row)] == pytest.approx([*map(float, other)], rel=1e-5)


@pytest.mark.extended
def test_frozen_worker_that_wakes_after_an_extension_overwrites_nothing(
    search, held, new_gate, sqlite_url, assert_equals_training_at_once
):
    gate = new_gate(20)
    frozen = held(ALL, SHORT_LEASE, gate=gate, **FIVE)
    freeze_process(frozen, sqlite_url)
    finish(search(ALL, **FIVE))
    finish(search("--extend", **LONGER))
    gate.open()
    frozen.send(signal.SIGCONT)
    assert error_of(frozen) == (
        "error: study 'quick' was extended to 120 steps while this search used it: run the same "
        "command to continue; recorded results are kept"
    )
    assert_equals_training_at_once()


REFINEMENT = """
[refinement]
source = "quick"
top = 2
replicates = 2
"""


@pytest.mark.extended
def test_derived_study_is_extended_and_its_report_written_again(
    runner, search, sqlite_url, tmp_path, artifacts
):
    finish(search(**FIVE))
    (tmp_path / "again.toml").write_text(REFINEMENT)

    def start(*options):
        common = ("again.toml", "--storage", sqlite_url, "--threads", "1", ALL)
        places = (f"--artifacts={artifacts}", "--set=precision='fp32'")
        return runner.start("refine.py", *common, *places, *options, cwd=tmp_path)

    longer = ("--extend", "--set=training.steps=80")
    assert "is a refinement without" in error_of(start("--extend"), code=2)
    finish(start())
    (page,) = (tmp_path / "reports" / "out").glob("*.html")
    assert "40 steps per trial" in page.read_text()
    assert "or extend training.steps" in error_of(start("--extend"), code=2)
    line = error_of(start(*longer, "--set=refinement.top=3"), code=2)
    assert "refinement.top: 2 in the study" in line
    assert "trials that continue from their checkpoints: 4\n" in finish(start(*longer))
    assert "80 steps per trial" in page.read_text()
    assert "extended from" not in finish(start(*longer))
    assert "study 'again' was extended: using its stored 80 steps" in finish(start())
