"""A worker that is stopped, killed or frozen loses nothing; the next resumes bit for bit."""

import hashlib
import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from hooks import HANG_TIMEOUT, Gate
from process_runner import (
    CURVES,
    FINISHED,
    freeze_process,
    query,
    search_starter,
    wait_until,
    wait_until_running,
)

ONE = {
    "training_steps": 200,
    "training_log_every": 20,
    "checkpoint_seconds": 0.3,
    "lease_seconds": 600,
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
"""One trial. Its lease does not expire, unless a test says so."""

STEP = 100
"""At which trainings are held."""

TWO = ONE | {"space_residual": "[true, false]"}


FIVE = "[{residual=false, state_source='old'}]"
"""What to leave out of six points."""


@pytest.fixture
def search(runner, sqlite_url, text):
    return search_starter(runner, sqlite_url, text)


@pytest.fixture
def gate(tmp_path_factory):
    return Gate(tmp_path_factory.mktemp("gate") / "gate", STEP)


@pytest.fixture
def held(search, gate):
    """Start a search, and return it when its training is held by the gate."""

    def start(*words, **settings):
        command = search(*words, gate=gate, **settings)
        wait_until_running([command], lambda: command.pid in gate.held)
        return command

    return start


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
def test_a_stopped_trial_resumes_where_it_was(
    held, search, sqlite_url, tmp_path, undisturbed, number, code
):
    first = held(**ONE | {"checkpoint_seconds": 1000})
    first.send(number)
    assert first.wait() == code
    assert "requeued" in first.output
    assert "Traceback" not in first.output
    assert query(sqlite_url, "SELECT state FROM trials") == [("WAITING",)]
    assert max(step for _, step, _ in query(sqlite_url, CURVES)) == STEP
    assert len(files(tmp_path)) == 1
    told = search("--status")
    assert told.wait() == 0
    assert "waiting   1\n" in told.output
    assert "requeued  1 interrupted\n" in told.output
    second = search(**ONE)
    assert second.wait() == 0
    assert f"trial 0 resumes from step {STEP}" in second.output
    assert files(tmp_path) == []
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    ((retries,),) = query(
        sqlite_url, "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'"
    )
    assert json.loads(retries) == {"interrupted": 1}


def test_a_trial_resumes_from_a_bucket(held, search, sqlite_url, undisturbed, bucket):
    import boto3

    aws = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    first = held(f"--artifacts={bucket}", environment=aws, **ONE)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    kept = boto3.client("s3").list_objects(Bucket="networks")["Contents"]
    assert [entry["Key"].split("/")[1] for entry in kept] == ["trial-0.checkpoint"]
    second = search(f"--artifacts={bucket}", environment=aws, **ONE)
    assert second.wait() == 0
    assert "trial 0 resumes from step" in second.output
    assert "s3cret" not in first.output + second.output
    left = boto3.client("s3").list_objects(Bucket="networks").get("Contents", ())
    assert not any("checkpoint" in entry["Key"] for entry in left)
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)


def test_a_worker_whose_time_is_over_requeues_its_trial(search, gate, sqlite_url, undisturbed):
    first = search("--until", "2s", gate=gate, **ONE)
    assert first.wait() == 0
    assert "stopped" in first.output
    assert "0 of 1 finished" in first.output
    assert query(sqlite_url, "SELECT state FROM trials") == [("WAITING",)]
    assert search("--until", "10h", **ONE).wait() == 0
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)


@pytest.mark.parametrize("duration", ["3", "h", "-1h", "0s", "3 hours", ""])
def test_invalid_duration_is_refused(search, duration, tmp_path):
    refused = search("--until", duration)
    assert refused.wait() == 2
    assert "expected a duration such as 45m, 3h or 1h30m" in refused.output
    assert refused.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_waits_resumes_the_trial_of_a_killed_one(
    held, search, sqlite_url, tmp_path, undisturbed
):
    first = held(**ONE | {"lease_seconds": 1})
    wait_until(lambda: checkpoints(tmp_path))
    waiting = search(**ONE)
    wait_until(lambda: "waiting for them" in waiting.output)
    first.send(signal.SIGKILL)
    assert waiting.wait() == 0
    assert "lease expired, its worker sent no heartbeat" in waiting.output
    assert f"trial 0 resumes from step {STEP}" in waiting.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    assert list(tmp_path.glob("*.checkpoints")) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_trials_that_were_trained_together_are_resumed(
    held, search, sqlite_url, tmp_path, undisturbed, number
):
    """Up to rounding: they are trained in another network stack, with a fifth trial."""
    five = TWO | {"space_state_source": "['new', 'old', 'both']", "space_exclude": FIVE}
    first = held(lockstep="4", **five | {"lease_seconds": 1})
    wait_until(lambda: len(checkpoints(tmp_path)) == 4)
    first.send(number)
    first.wait()
    second = search(lockstep="5", **five)
    assert second.wait() == 0
    assert second.output.count("resumes from step") == 4
    found, expected = query(sqlite_url, CURVES), undisturbed(**five)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    losses = [row[2] for row in expected]
    assert [row[2] for row in found] == pytest.approx(losses, rel=1e-3)
    states = query(sqlite_url, FINISHED)
    assert states == [(number, "COMPLETE", 1) for number in range(5)]


def test_a_worker_that_wakes_up_after_its_lease_drops_its_trial(
    held, gate, search, sqlite_url, undisturbed, tmp_path_factory
):
    """Frozen, taken over, woken while another worker trains: its first write is refused."""
    frozen = held(**TWO | {"lease_seconds": 1})
    freeze_process(frozen, sqlite_url)
    later = Gate(tmp_path_factory.mktemp("later") / "gate", STEP + 50)
    heir = search(gate=later, **TWO)
    wait_until(lambda: "lease expired" in heir.output and heir.pid in later.held)
    frozen.send(signal.SIGCONT)
    wait_until(
        lambda: "dropped: claimed by another worker after its lease expired" in frozen.output
    )
    gate.open()
    later.open()
    assert heir.wait() == 0
    assert frozen.wait() == 0
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, TWO)


def test_a_worker_that_wakes_up_after_the_search_overwrites_nothing(
    held, search, sqlite_url, tmp_path, undisturbed
):
    frozen = held(**ONE | {"lease_seconds": 1})
    freeze_process(frozen, sqlite_url)
    assert search(**ONE).wait() == 0
    before = query(sqlite_url, "SELECT * FROM trials, trial_user_attributes, trial_values")
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert "dropped: claimed by another worker after its lease expired" in frozen.output
    assert query(sqlite_url, "SELECT * FROM trials, trial_user_attributes, trial_values") == before
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    assert files(tmp_path) == []


def test_a_second_interrupt_leaves_at_once(held, search, sqlite_url, tmp_path, undisturbed):
    """After the first one, the worker waits for a file that another program has locked."""
    first = held(**ONE | {"checkpoint_seconds": 1000, "lease_seconds": 1})
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=HANG_TIMEOUT)
    other.execute("BEGIN IMMEDIATE")
    first.send(signal.SIGINT)
    wait_until(lambda: checkpoints(tmp_path))
    first.send(signal.SIGINT)
    assert first.wait() == 130
    assert "Traceback" not in first.output
    other.execute("ROLLBACK")
    other.close()
    assert search(**ONE).wait() == 0
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)


# ------------------------------------------------------------------ checkpoints that are not right


@pytest.fixture
def stopped(held, tmp_path) -> Path:
    """The checkpoint of a trial that was stopped."""
    first = held(**ONE)
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
def test_a_damaged_checkpoint_is_quarantined(
    search, sqlite_url, tmp_path, undisturbed, stopped, damage
):
    damage(stopped)
    damaged = stopped.read_bytes()
    second = search(**ONE)
    assert second.wait() == 0
    assert "warning: trial 0: checkpoint is damaged" in second.output
    assert "the trial restarts from step 0" in second.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    (quarantined,) = files(tmp_path)
    assert quarantined.name == "trial-0.quarantined"
    assert quarantined.read_bytes() == damaged


def test_checkpoint_of_an_older_format_is_quarantined_and_its_trial_restarts(
    search, sqlite_url, tmp_path, undisturbed, stopped
):
    content = stopped.read_bytes()[32:]
    older = content.replace(b'"format_version":"4"', b'"format_version":"3"')
    assert older != content
    stopped.write_bytes(hashlib.sha256(older).digest() + older)
    second = search(**ONE)
    assert second.wait() == 0
    assert "warning: trial 0: checkpoint was written by another version" in second.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
    assert [path.name for path in files(tmp_path)] == ["trial-0.quarantined"]


def test_a_checkpoint_of_another_architecture_is_quarantined(
    held, search, sqlite_url, tmp_path, undisturbed
):
    first = held(**TWO)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    (checkpoint,) = checkpoints(tmp_path)
    other = {"trial-0": "trial-1", "trial-1": "trial-0"}[checkpoint.stem]
    checkpoint.rename(checkpoint.with_name(f"{other}.checkpoint"))
    second = search(**TWO)
    assert second.wait() == 0
    assert "checkpoint belongs to another training" in second.output
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, TWO)


def test_a_checkpoint_that_cannot_be_written_does_not_end_a_search(
    held, gate, sqlite_url, tmp_path, undisturbed
):
    """A file stands where the folder should be made: as on a full or a read-only disk."""
    (tmp_path / "studies.db.checkpoints").write_text("in the way")
    first = held(**ONE)
    wait_until(lambda: "warning: cannot write the checkpoint of trial 0" in first.output)
    gate.open()
    assert first.wait() == 0
    finished_as_if_nothing_had_been(sqlite_url, undisturbed, ONE)
