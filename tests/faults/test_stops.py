"""Trials of stopped, killed or frozen workers are resumed by others, bit for bit."""

import contextlib
import hashlib
import json
import os
import re
import signal
import sqlite3
from pathlib import Path

import pytest
import torch
from hooks import HANG_TIMEOUT, Clock, Gate
from process_runner import (
    CURVES,
    FINISHED,
    freeze_process,
    query,
    search_starter,
    wait_until,
    wait_until_running,
)

from rnn.training.checkpoint import source_hash

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
"""One trial, with a lease that does not expire during a test."""

STEP = 100
"""Step at which the gate holds trainings."""

TWO = ONE | {"space_residual": "[true, false]"}

FIVE = TWO | {
    "space_state_source": "['new', 'old', 'both']",
    "space_exclude": "[{residual=false, state_source='old'}]",
}


@pytest.fixture
def search(runner, sqlite_url, text):
    return search_starter(runner, sqlite_url, text)


@pytest.fixture
def gate(tmp_path_factory):
    return Gate(tmp_path_factory.mktemp("gate") / "gate", STEP)


@pytest.fixture
def held(search, gate):
    """Return a function that starts a search and waits until the gate holds its training."""

    def start(*options, **settings):
        command = search(*options, gate=gate, **settings)
        wait_until_running([command], lambda: command.pid in gate.held)
        return command

    return start


def list_files(tmp_path):
    return list(tmp_path.glob("studies.db.checkpoints/*/*"))


def list_checkpoints(tmp_path):
    """List complete checkpoints: one that is being written has another suffix."""
    return [path for path in list_files(tmp_path) if path.suffix == ".checkpoint"]


def assert_all_trials_match(url, reference_curves, settings):
    trials = len({number for number, *_ in reference_curves(**settings)})
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(trials)]
    assert query(url, CURVES) == reference_curves(**settings)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
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


def test_worker_requeues_its_trial_at_its_time_limit(search, gate, sqlite_url, reference_curves):
    first = search("--until", "2s", gate=gate, **ONE)
    assert first.wait() == 0
    assert "stopped" in first.output
    assert "0 of 1 finished" in first.output
    assert query(sqlite_url, "SELECT state FROM trials") == [("WAITING",)]
    assert search("--until", "10h", **ONE).wait() == 0
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


@pytest.mark.parametrize("duration", ["3", "h", "-1h", "0s", "3 hours", ""])
def test_invalid_duration_is_refused(search, duration, tmp_path):
    refused = search("--until", duration)
    assert refused.wait() == 2
    assert "expected a duration such as 45m, 3h or 1h30m" in refused.output
    assert refused.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


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


def test_trial_of_a_worker_killed_before_its_first_log_point_says_so_without_a_warning(
    search, sqlite_url, reference_curves, tmp_path_factory
):
    early = Gate(tmp_path_factory.mktemp("early") / "gate", 1)
    settings = ONE | {"lease_seconds": 1, "checkpoint_seconds": 1000}
    first = search(gate=early, **settings)
    wait_until_running([first], lambda: first.pid in early.held)
    first.send(signal.SIGKILL)
    second = search(**ONE)
    assert second.wait() == 0
    assert (
        "\ntrial 0: the worker was killed or cut off before it recorded a loss or wrote a "
        "checkpoint; training starts at step 0\n"
    ) in second.output
    assert "warning" not in second.output
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


def test_lost_checkpoint_of_a_killed_worker_is_reported_as_lost(
    held, search, sqlite_url, tmp_path, reference_curves
):
    recorded = "SELECT trial_id FROM trial_system_attributes WHERE key = 'checkpointed'"
    first = held(**ONE | {"lease_seconds": 1})
    wait_until(lambda: query(sqlite_url, recorded))
    first.send(signal.SIGKILL)
    first.wait()
    for path in list_files(tmp_path):
        path.unlink()
    second = search(**ONE)
    assert second.wait() == 0
    (line,) = [line for line in second.output.splitlines() if "no checkpoint" in line]
    assert "training restarts from step 0; if the database was moved" in line
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


def test_worker_with_other_versions_warns_once_when_it_joins_and_when_it_resumes(
    held, search, sqlite_url, tmp_path, reference_curves
):
    first = held(**TWO)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    assert "warning" not in first.output
    (checkpoint,) = list_checkpoints(tmp_path)
    content, torch_version = checkpoint.read_bytes()[32:], str(torch.__version__)
    other = "9" * len(torch_version)
    written = f'"torch_versions":"{torch_version}"'.encode()
    content = content.replace(written, f'"torch_versions":"{other}"'.encode())
    checkpoint.write_bytes(hashlib.sha256(content).digest() + content)
    # As if another checkout and another PyTorch had created the study.
    with sqlite3.connect(tmp_path / "studies.db") as database:
        created_with = json.dumps({"code": "0123456789ab", "torch": other})
        database.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = 'created_with'",
            (created_with,),
        )
    database.close()
    second = search("--workers", "2", **TWO)
    assert second.wait() == 0
    warnings = [line for line in second.output.splitlines() if line.startswith("warning")]
    joined, resumed = sorted(warnings)
    assert joined == (
        f"warning: study 'quick' was created or trained with training code 0123456789ab and "
        f"PyTorch {other} so far; this worker trains with training code {source_hash()} and "
        f"PyTorch {torch_version}; to avoid mixing them, stop and use the earlier version"
    )
    assert resumed == (
        f"warning: trial 0 resumes with PyTorch {torch_version} and was trained with {other} so "
        "far; to avoid mixing them, stop and use the earlier version"
    )
    assert_all_trials_match(sqlite_url, reference_curves, TWO)
    attributes = query(
        sqlite_url, "SELECT value_json FROM trial_user_attributes WHERE key = 'earlier_torch'"
    )
    assert attributes == [(json.dumps([other]),)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_trials_trained_in_lockstep_are_resumed(
    held, search, sqlite_url, tmp_path, reference_curves, number
):
    """Curves match up to rounding, since the second stack has a fifth network."""
    first = held(lockstep="4", **FIVE | {"lease_seconds": 1})
    wait_until(lambda: len(list_checkpoints(tmp_path)) == 4)
    first.send(number)
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


def test_frozen_worker_overwrites_nothing_when_resumed_after_the_search(
    held, search, sqlite_url, tmp_path, reference_curves
):
    frozen = held(**ONE | {"lease_seconds": 1})
    freeze_process(frozen, sqlite_url)
    assert search(**ONE).wait() == 0
    before = query(sqlite_url, "SELECT * FROM trials, trial_user_attributes, trial_values")
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert "dropped: claimed by another worker after its lease expired" in frozen.output
    assert query(sqlite_url, "SELECT * FROM trials, trial_user_attributes, trial_values") == before
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert list_files(tmp_path) == []


def test_trial_under_an_unreadable_lease_is_requeued_and_stops_no_worker(
    held, gate, search, sqlite_url, reference_curves, tmp_path
):
    """As another version of this program may have written it."""
    killed = held(**TWO)
    killed.send(signal.SIGKILL)
    killed.wait()
    gate.open()
    with contextlib.closing(sqlite3.connect(tmp_path / "studies.db")) as database, database:
        database.execute(
            "UPDATE trial_system_attributes SET value_json = 'not JSON' WHERE key = 'lease'"
        )
    status = search("--status")
    assert status.wait() == 0
    assert "running   1\n" in status.output
    clock = Clock(tmp_path / "clock")
    worker = search(clock=clock, **TWO | {"outage_seconds": 1e9})
    wait_until_running([worker], lambda: "waiting for them" in worker.output)

    def has_expired():
        clock.advance(61)
        return "trial 0: lease expired" in worker.output or "trial 1: lease" in worker.output

    wait_until_running([worker], has_expired)
    assert worker.wait() == 0
    assert_all_trials_match(sqlite_url, reference_curves, TWO)


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


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty])
def test_damaged_checkpoint_is_quarantined(
    search, sqlite_url, tmp_path, reference_curves, stopped, damage
):
    damage(stopped)
    damaged = stopped.read_bytes()
    second = search(**ONE)
    assert second.wait() == 0
    assert "warning: trial 0: checkpoint is damaged" in second.output
    assert "the trial restarts from step 0" in second.output
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    (quarantined,) = list_files(tmp_path)
    assert quarantined.name == "trial-0.quarantined"
    assert quarantined.read_bytes() == damaged


def test_checkpoint_larger_than_any_is_not_read(
    search, sqlite_url, tmp_path, reference_curves, stopped
):
    os.truncate(stopped, 32 * 2**30)
    second = search(**ONE)
    assert second.wait() == 0
    (line,) = [line for line in second.output.splitlines() if "warning" in line]
    assert line.startswith("warning: cannot read the checkpoint of trial 0 (it has more than ")
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert list_files(tmp_path) == []


def test_checkpoint_of_an_older_format_is_quarantined_and_its_trial_restarts(
    search, sqlite_url, tmp_path, reference_curves, stopped
):
    content = stopped.read_bytes()[32:]
    older = content.replace(b'"format_version":"4"', b'"format_version":"3"')
    assert older != content
    stopped.write_bytes(hashlib.sha256(older).digest() + older)
    second = search(**ONE)
    assert second.wait() == 0
    assert "warning: trial 0: checkpoint was written by another version" in second.output
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert [path.name for path in list_files(tmp_path)] == ["trial-0.quarantined"]


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
