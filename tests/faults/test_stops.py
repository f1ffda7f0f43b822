"""A worker that is stopped, killed or frozen loses nothing, and the next goes on bit for bit."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from nursery import CURVES, FINISHED, freeze, query, recorded, searching, until

ONE = {
    "training_steps": 4500,
    "training_log_every": 100,
    "checkpoint_seconds": 0.3,
    "lease_seconds": 2,
    "space_layers": "[2]",
    "space_state_size": "[6]",
    "space_exclude": "[]",
    "space_input_gate": "[false]",
    "space_forget_gate": "[true]",
    "space_output_gate": "[false]",
    "space_state_gate": "[true]",
    "space_residual": "[true]",
    "space_state_source": "['both']",
}
"""One point, of some seconds."""

TWO = ONE | {"space_residual": "[true, false]"}


FIVE = "[{residual=false, state_source='old'}]"
"""What to leave out of six points."""


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def search(nursery, sqlite_url, text):
    return searching(nursery, sqlite_url, text)


def files(tmp_path):
    return list(tmp_path.glob("studies.db.checkpoints/*/*"))


def checkpoints(tmp_path):
    """Those that are complete: one that is being written has another name."""
    return [path for path in files(tmp_path) if path.suffix == ".checkpoint"]


def finished_as_if_nothing_had_been(url, undisturbed, settings):
    points = len({number for number, *_ in undisturbed(**settings)})
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(points)]
    assert query(url, CURVES) == undisturbed(**settings)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_a_stopped_trial_goes_on_where_it_was(
    search, sqlite_url, tmp_path, undisturbed, number, code
):
    first = search(**ONE | {"checkpoint_seconds": 1000})
    until(lambda: recorded(sqlite_url))
    first.send(number)
    assert first.wait() == code
    assert "given back" in first.output
    assert "Traceback" not in first.output
    assert query(sqlite_url, "SELECT state FROM trials") == [("WAITING",)]
    reached = max(step for _, step, _ in query(sqlite_url, CURVES))
    assert len(files(tmp_path)) == 1
    told = search("--status")
    assert told.wait() == 0
    assert "waiting   1\n" in told.output
    assert "run again 1 interrupted\n" in told.output
    second = search(**ONE)
    assert second.wait() == 0
    assert "trial 0 goes on from step" in second.output
    step = second.output.split("goes on from step ")[1].split()[0]
    assert int(step.replace(",", "")) >= reached
    assert files(tmp_path) == []
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    ((setbacks,),) = query(
        sqlite_url, "SELECT value_json FROM trial_user_attributes WHERE key = 'setbacks'"
    )
    assert json.loads(setbacks) == {"interrupted": 1}


def test_a_trial_goes_on_from_a_bucket(search, sqlite_url, tmp_path, undisturbed, bucket):
    import boto3

    aws = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    first = search(f"--artifacts={bucket}", environment=aws, **ONE)
    until(lambda: recorded(sqlite_url))
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    kept = boto3.client("s3").list_objects(Bucket="networks")["Contents"]
    assert [entry["Key"].split("/")[1] for entry in kept] == ["trial-0.checkpoint"]
    second = search(f"--artifacts={bucket}", environment=aws, **ONE)
    assert second.wait() == 0
    assert "trial 0 goes on from step" in second.output
    assert "s3cret" not in first.output + second.output
    kept = boto3.client("s3").list_objects(Bucket="networks")["Contents"]
    assert not any("checkpoint" in entry["Key"] for entry in kept)
    assert kept  # what the dashboard shows
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)


def test_a_worker_whose_time_is_over_stops_in_good_order(search, sqlite_url, undisturbed):
    first = search("--until", "1s", **ONE)
    assert first.wait() == 0
    assert "what was trained is kept" in first.output
    assert "0 of 1 finished" in first.output
    assert search("--until", "10m", **ONE).wait() == 0
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)


@pytest.mark.parametrize("duration", ["3", "h", "-1h", "0s", "3 hours", ""])
def test_a_duration_that_is_none_is_refused(search, duration, tmp_path):
    refused = search("--until", duration)
    assert refused.wait() == 2
    assert "allowed: a number with d, h, m or s" in refused.output
    assert refused.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_workers_trial_is_adopted_by_who_waits_for_it(
    search, sqlite_url, tmp_path, undisturbed
):
    first = search(**ONE)
    until(lambda: recorded(sqlite_url) and checkpoints(tmp_path))
    waiting = search(**ONE)
    until(lambda: "waiting for those" in waiting.output)
    first.send(signal.SIGKILL)
    assert waiting.wait() == 0
    assert "was not heard of for the length of its lease" in waiting.output
    assert "trial 0 goes on from step" in waiting.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    assert list(tmp_path.glob("*.checkpoints")) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_trials_that_were_trained_together_go_on_together(
    search, sqlite_url, tmp_path, undisturbed, number
):
    """To the last digits: their company is another, for a fifth point is there to be claimed."""
    five = TWO | {"space_state_source": "['new', 'old', 'both']", "space_exclude": FIVE}
    first = search(population="4", **five)
    until(lambda: recorded(sqlite_url) and len(checkpoints(tmp_path)) == 4)
    first.send(number)
    first.wait()
    second = search(population="5", **five)
    assert second.wait() == 0
    assert second.output.count("goes on from step") == 4
    found, expected = query(sqlite_url, CURVES), undisturbed(**five)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    losses = [row[2] for row in expected]
    assert [row[2] for row in found] == pytest.approx(losses, rel=1e-3)
    states = query(sqlite_url, FINISHED)
    assert states == [(number, "COMPLETE", 1) for number in range(5)]


def test_who_wakes_up_after_its_lease_finds_its_trial_gone(
    search, sqlite_url, tmp_path, undisturbed
):
    """Frozen, taken over, woken while the other trains: its first write is refused."""
    frozen = search(**TWO)
    until(lambda: recorded(sqlite_url))
    freeze(frozen, sqlite_url)
    heir = search(**TWO)
    until(lambda: "was not heard of" in heir.output)
    frozen.send(signal.SIGCONT)
    assert heir.wait() == 0
    assert frozen.wait() == 0
    assert "dropped: another worker has taken it over" in frozen.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, TWO)


def test_who_wakes_up_when_all_is_done_overwrites_nothing(
    search, sqlite_url, tmp_path, undisturbed
):
    frozen = search(**ONE)
    until(lambda: recorded(sqlite_url))
    freeze(frozen, sqlite_url)
    assert search(**ONE).wait() == 0
    before = query(sqlite_url, "SELECT * FROM trials, trial_user_attributes, trial_values")
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert "dropped: another worker has taken it over" in frozen.output
    assert query(sqlite_url, "SELECT * FROM trials, trial_user_attributes, trial_values") == before
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    assert files(tmp_path) == []


def test_a_second_interrupt_leaves_at_once(search, sqlite_url, tmp_path, undisturbed):
    """Here the first would wait for a file that another program has locked."""
    import sqlite3

    first = search(**ONE)
    until(lambda: recorded(sqlite_url))
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=60)
    other.execute("BEGIN IMMEDIATE")
    first.send(signal.SIGINT)
    time.sleep(0.5)
    first.send(signal.SIGINT)
    assert first.wait() == 130
    assert "Traceback" not in first.output
    other.execute("ROLLBACK")
    other.close()
    assert search(**ONE).wait() == 0
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)


# ------------------------------------------------------------------ checkpoints that are not right


@pytest.fixture
def stopped(search, sqlite_url, tmp_path) -> Path:
    """The checkpoint of a trial that was stopped."""
    first = search(**ONE)
    until(lambda: recorded(sqlite_url))
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    (checkpoint,) = files(tmp_path)
    return checkpoint


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty])
def test_a_damaged_checkpoint_is_set_aside(
    search, sqlite_url, tmp_path, undisturbed, stopped, damage
):
    damage(stopped)
    damaged = stopped.read_bytes()
    second = search(**ONE)
    assert second.wait() == 0
    assert "warning: trial 0: the checkpoint is damaged" in second.output
    assert "the trial starts afresh" in second.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    (aside,) = files(tmp_path)
    assert aside.name == "trial-0.set-aside"
    assert aside.read_bytes() == damaged


def test_a_checkpoint_of_another_architecture_is_set_aside(
    search, sqlite_url, tmp_path, undisturbed, nursery, text
):
    first = search(**TWO)
    until(lambda: checkpoints(tmp_path))
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    (checkpoint,) = checkpoints(tmp_path)
    other = {"trial-0": "trial-1", "trial-1": "trial-0"}[checkpoint.stem]
    checkpoint.rename(checkpoint.with_name(f"{other}.checkpoint"))
    second = search(**TWO)
    assert second.wait() == 0
    assert "the checkpoint is of another run" in second.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, TWO)


def test_a_checkpoint_that_cannot_be_written_does_not_end_a_search(
    search, sqlite_url, tmp_path, undisturbed
):
    """A file stands where the folder should be made: as on a full or a read-only disk."""
    (tmp_path / "studies.db.checkpoints").write_text("in the way")
    first = search(**ONE)
    assert first.wait() == 0
    assert "warning: the checkpoint of trial 0 could not be" in first.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
