"""Trials of a study whose steps are extended continue from their checkpoints, bit for bit."""

import signal

import pytest
import small_searches
from helpers import ONE_TRIAL, QUICK
from invocation import require_refused
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
def test_extended_trials_equal_those_trained_at_once_and_a_frozen_worker_overwrites_nothing(
    search, held, new_gate, sqlite_url, list_final, reference_curves, assert_equals_training_at_once
):
    """A worker is frozen before the extension, another killed while it trains to the new end."""
    gate = new_gate(20)
    frozen = held(ALL, SHORT_LEASE, gate=gate, **FIVE)
    freeze_process(frozen, sqlite_url)
    finish(search(ALL, **FIVE))
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
    gate.open()
    frozen.send(signal.SIGCONT)
    assert error_of(frozen) == (
        "error: study 'quick' was extended to 120 steps while this search used it: run the same "
        "command to continue; recorded results are kept"
    )
    assert_equals_training_at_once()
    assert "study 'quick' was extended: using its stored 120 steps" in finish(search(**FIVE))


@pytest.mark.extended
def test_trials_of_damaged_and_of_missing_checkpoints_restart(
    search, sqlite_url, artifacts, list_final, assert_equals_training_at_once
):
    """Of those of the old end, which are kept for the best three."""
    finish(*(search("--set=keep_checkpoints=3", **FIVE) for _ in range(2)))
    best = sorted(query(sqlite_url, RESULTS), key=lambda trial: (trial[1], trial[0]))[:3]
    damaged, removed, _ = numbers = [number for number, *_ in best]
    assert list_final() == set(numbers)
    path = next(artifacts.rglob(f"trial-{damaged}.final"))
    path.write_bytes(path.read_bytes()[:-1])
    next(artifacts.rglob(f"trial-{removed}.final")).unlink()
    said = finish(search("--extend", **LONGER))
    assert "trials that continue from their checkpoints: 2" in said
    assert "restart from step 0, because they have none: 3" in said
    assert f"trial {damaged}: checkpoint is damaged" in said
    assert "no checkpoint of" not in said
    assert said.count("from step 40") == 1
    assert_equals_training_at_once()
    assert list_final() == set(), "this worker keeps none"


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
def test_derived_study_is_extended_and_its_report_written_again(invoke, sqlite_url, text, tmp_path):
    (tmp_path / "again.toml").write_text(
        "[refinement]\nsource = 'quick'\ntop = 1\nreplicates = 2\n"
    )
    common = ("--storage", sqlite_url, "--threads", "1", ALL)

    def refine(*options, report=False):
        return invoke("refine", "again.toml", *common, *options, cwd=tmp_path, report=report)

    search = ("run", QUICK, "--corpus", str(text), *common, *ONE_TRIAL)
    assert invoke(*search, report=False).returncode == 0
    longer = ("--extend", "--set=training.steps=8")
    require_refused(refine("--extend"), "is a refinement without")
    assert refine(report=True).returncode == 0
    (page,) = (tmp_path / "reports" / "out").glob("*.html")
    assert "4 steps, batch of" in page.read_text()
    require_refused(refine("--extend"), "or extend training.steps")
    require_refused(refine(*longer, "--set=refinement.top=3"), "refinement.top: 1 in the study")
    extended = refine(*longer, report=True)
    assert "trials that continue from their checkpoints: 2\n" in extended.stdout
    assert "8 steps, batch of" in page.read_text()
    assert "extended from" not in refine(*longer).stdout
    assert "study 'again' was extended: using its stored 8 steps" in refine().stdout
