"""Trials of stopped, killed or frozen workers are resumed by others, bit for bit."""

import json
import os
import re
import signal
import sqlite3
from pathlib import Path

import pytest
from hooks import HANG_TIMEOUT, Gate
from process_runner import CURVES, FINISHED, freeze_process, query, wait_until
from small_searches import FIVE, ONE, STEP, TWO, assert_all_trials_match


def list_files(tmp_path):
    return list(tmp_path.glob("studies.db.checkpoints/*/*"))


def list_checkpoints(tmp_path):
    """List complete checkpoints: one that is being written has another suffix."""
    return [path for path in list_files(tmp_path) if path.suffix == ".checkpoint"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.extended),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.extended),
        pytest.param(signal.SIGUSR2, 140, marks=pytest.mark.extended),
    ],
)
def test_trial_stopped_by_a_signal_resumes_at_its_last_step(
    held, search, sqlite_url, tmp_path, reference_curves, number, code
):
    first = held(**ONE | {"checkpoint_seconds": 1000})
    first.send(number)
    assert first.wait() == code
    assert "requeued" in first.output
    assert "Traceback" not in first.output
    assert query(sqlite_url, "SELECT state FROM trials") == [("WAITING",)]
    assert max(step for _, step, _ in query(sqlite_url, CURVES)) == STEP
    assert len(list_files(tmp_path)) == 1
    status = search("--status")
    assert status.wait() == 0
    assert "waiting   1\n" in status.output
    assert "requeued  1 interrupted\n" in status.output
    second = search(**ONE)
    assert second.wait() == 0
    assert f"trial 0 resumes from step {STEP}" in second.output
    assert list_files(tmp_path) == []
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    ((retries,),) = query(
        sqlite_url, "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'"
    )
    assert json.loads(retries) == {"interrupted": 1}


@pytest.mark.extended
def test_trial_resumes_from_a_checkpoint_in_a_bucket(
    held, search, sqlite_url, reference_curves, bucket
):
    import boto3

    aws = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    first = held(f"--artifacts={bucket}", environment=aws, **ONE)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    stored = boto3.client("s3").list_objects(Bucket="networks")["Contents"]
    assert [entry["Key"].split("/")[1] for entry in stored] == ["trial-0.checkpoint"]
    second = search(f"--artifacts={bucket}", environment=aws, **ONE)
    assert second.wait() == 0
    assert "trial 0 resumes from step" in second.output
    assert "s3cret" not in first.output + second.output
    remaining = boto3.client("s3").list_objects(Bucket="networks").get("Contents", ())
    assert not any("checkpoint" in entry["Key"] for entry in remaining)
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


@pytest.mark.extended
def test_worker_requeues_its_trial_at_its_time_limit(search, gate, sqlite_url, reference_curves):
    first = search("--until", "2s", gate=gate, **ONE)
    assert first.wait() == 0
    assert "stopped" in first.output
    assert "0 of 1 finished" in first.output
    assert query(sqlite_url, "SELECT state FROM trials") == [("WAITING",)]
    assert search("--until", "10h", **ONE).wait() == 0
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


def test_waiting_worker_resumes_the_trial_of_a_killed_worker(
    held, search, sqlite_url, tmp_path, reference_curves
):
    first = held(**ONE | {"lease_seconds": 1})
    wait_until(lambda: list_checkpoints(tmp_path))
    waiting = search(**ONE)
    wait_until(lambda: "waiting for them" in waiting.output)
    first.send(signal.SIGKILL)
    assert waiting.wait() == 0
    assert "lease expired, its worker sent no heartbeat" in waiting.output
    assert f"trial 0 resumes from step {STEP}" in waiting.output
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert list(tmp_path.glob("*.checkpoints")) == []


@pytest.mark.extended
def test_trial_of_a_worker_killed_before_its_first_checkpoint_restarts_and_says_why(
    held, search, sqlite_url, reference_curves
):
    first = held(**ONE | {"lease_seconds": 1, "checkpoint_seconds": 1000})
    wait_until(lambda: max((step for _, step, _ in query(sqlite_url, CURVES)), default=0) == STEP)
    first.send(signal.SIGKILL)
    second = search(**ONE)
    assert second.wait() == 0
    (line,) = [line for line in second.output.splitlines() if "checkpoint" in line]
    assert line.startswith("warning: no checkpoint of trial 0 in ")
    assert line.endswith(
        f", though step {STEP} was recorded: none was written before the worker was killed or cut "
        "off; training restarts from step 0"
    )
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


@pytest.mark.extended
def test_trials_trained_in_lockstep_are_resumed(
    held, search, sqlite_url, tmp_path, reference_curves
):
    """Curves match up to rounding, since the second stack has a fifth network."""
    first = held(lockstep="4", **FIVE | {"lease_seconds": 1})
    wait_until(lambda: len(list_checkpoints(tmp_path)) == 4)
    first.send(signal.SIGKILL)
    first.wait()
    second = search(lockstep="5", **FIVE)
    assert second.wait() == 0
    listed = " ".join(re.findall("trials? (.*) resumes? from step", second.output))
    ranges = re.findall(r"(\d+)(?:-(\d+))?", listed)
    assert sum(int(last or start) - int(start) + 1 for start, last in ranges) == 4
    curves, expected = query(sqlite_url, CURVES), reference_curves(**FIVE)
    assert [row[:2] for row in curves] == [row[:2] for row in expected]
    losses = [row[2] for row in expected]
    assert [row[2] for row in curves] == pytest.approx(losses, rel=1e-3)
    states = query(sqlite_url, FINISHED)
    assert states == [(number, "COMPLETE", 1) for number in range(5)]


@pytest.mark.extended
def test_frozen_worker_drops_its_trial_when_resumed_after_its_lease(
    held, gate, search, sqlite_url, reference_curves, tmp_path_factory
):
    """Another worker trains the trial by then; the first write of the resumed one is refused."""
    frozen = held(**TWO | {"lease_seconds": 1})
    freeze_process(frozen, sqlite_url)
    later = Gate(tmp_path_factory.mktemp("later") / "gate", STEP + 50)
    successor = search(gate=later, **TWO)
    wait_until(lambda: "lease expired" in successor.output and successor.pid in later.held)
    frozen.send(signal.SIGCONT)
    wait_until(
        lambda: "dropped: claimed by another worker after its lease expired" in frozen.output
    )
    gate.open()
    later.open()
    assert successor.wait() == 0
    assert frozen.wait() == 0
    assert_all_trials_match(sqlite_url, reference_curves, TWO)


@pytest.mark.extended
def test_second_interrupt_exits_at_once(held, search, sqlite_url, tmp_path, reference_curves):
    """After the first interrupt, the worker waits for a file locked by another program."""
    first = held(**ONE | {"checkpoint_seconds": 1000, "lease_seconds": 1})
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=HANG_TIMEOUT)
    other.execute("BEGIN IMMEDIATE")
    first.send(signal.SIGINT)
    wait_until(lambda: list_checkpoints(tmp_path))
    first.send(signal.SIGINT)
    assert first.wait() == 130
    assert "Traceback" not in first.output
    other.execute("ROLLBACK")
    other.close()
    assert search(**ONE).wait() == 0
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


# --------------------------------------------- damaged, foreign and unwritable checkpoints


@pytest.fixture
def stopped(held, tmp_path) -> Path:
    """Checkpoint of a stopped trial."""
    first = held(**ONE)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    (checkpoint,) = list_files(tmp_path)
    return checkpoint


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("damage", "warning", "left"),
    [
        (flip_bit, "trial 0: checkpoint is damaged", ["trial-0.quarantined"]),
        (
            lambda path: os.truncate(path, 32 * 2**30),
            "cannot read the checkpoint of trial 0 (it has more than ",
            [],
        ),
    ],
    ids=["damaged", "larger_than_any"],
)
def test_trial_of_an_unusable_checkpoint_restarts(
    search, sqlite_url, tmp_path, reference_curves, stopped, damage, warning, left
):
    damage(stopped)
    second = search(**ONE)
    assert second.wait() == 0
    (line,) = [line for line in second.output.splitlines() if "warning" in line]
    assert line.startswith(f"warning: {warning}")
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert [path.name for path in list_files(tmp_path)] == left


@pytest.mark.extended
def test_checkpoint_of_another_architecture_is_quarantined(
    held, search, sqlite_url, tmp_path, reference_curves
):
    first = held(**TWO)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    (checkpoint,) = list_checkpoints(tmp_path)
    other = {"trial-0": "trial-1", "trial-1": "trial-0"}[checkpoint.stem]
    checkpoint.rename(checkpoint.with_name(f"{other}.checkpoint"))
    second = search(**TWO)
    assert second.wait() == 0
    assert "checkpoint belongs to another training" in second.output
    assert_all_trials_match(sqlite_url, reference_curves, TWO)


@pytest.mark.extended
def test_search_continues_if_a_checkpoint_cannot_be_written(
    held, gate, sqlite_url, tmp_path, reference_curves
):
    """A file in place of the folder acts as a full or read-only disk."""
    (tmp_path / "studies.db.checkpoints").write_text("not a folder")
    first = held(**ONE)
    wait_until(lambda: "warning: cannot write the checkpoint of trial 0" in first.output)
    gate.open()
    assert first.wait() == 0
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
