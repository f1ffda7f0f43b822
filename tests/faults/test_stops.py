"""Trials of stopped or killed workers are resumed by others, bit for bit."""

import os
import signal
import sqlite3

import boto3
import pytest
from hooks import HANG_TIMEOUT
from process_runner import CURVES, query, wait_until
from small_searches import (
    ONE,
    RETRIES,
    STATES,
    STEP,
    TWO,
    assert_all_trials_match,
    finish,
    kill,
    list_checkpoints,
    stop,
)

SELDOM = ONE | {"checkpoint_seconds": 1000}
"""One trial with a checkpoint at its stop only."""


def list_names(folder):
    return [path.name for path in folder.glob("*/*")]


OTHERS = [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.extended) for each in OTHERS)],
)
def test_trial_stopped_by_a_signal_resumes_at_its_last_step(
    held, search, show_status, sqlite_url, artifacts, reference_curves, number
):
    first = held(**SELDOM)
    stop(first, number)
    assert "requeued" in first.output
    assert query(sqlite_url, STATES) == [("WAITING",)]
    assert max(step for _, step, _ in query(sqlite_url, CURVES)) == STEP
    assert list_names(artifacts) == ["trial-0.checkpoint"]
    status = finish(show_status())
    assert "waiting   1\n" in status
    assert "requeued  1 interrupted\n" in status
    assert f"trial 0 resumes from step {STEP}" in finish(search(**ONE))
    assert list_names(artifacts) == []
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert query(sqlite_url, RETRIES) == [('{"interrupted": 1}',)]


@pytest.mark.extended
def test_trial_resumes_from_a_checkpoint_in_a_bucket(
    held, search, sqlite_url, reference_curves, bucket
):
    def list_names():
        listed = boto3.client("s3").list_objects(Bucket="networks").get("Contents", ())
        return [entry["Key"].split("/")[1] for entry in listed]

    aws = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    first = held(f"--artifacts={bucket}", environment=aws, **ONE)
    stop(first)
    assert list_names() == ["trial-0.checkpoint"]
    output = finish(search(f"--artifacts={bucket}", environment=aws, **ONE))
    assert "trial 0 resumes from step" in output
    assert "s3cret" not in first.output + output
    assert "trial-0.checkpoint" not in list_names()
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


@pytest.mark.extended
def test_worker_requeues_its_trial_at_its_time_limit(search, gate, sqlite_url, reference_curves):
    assert "0 of 1 finished" in finish(search("--until", "2s", gate=gate, **ONE))
    assert query(sqlite_url, STATES) == [("WAITING",)]
    finish(search("--until", "10h", **ONE))
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


def test_waiting_worker_resumes_the_trial_of_a_killed_worker(
    held, search, sqlite_url, artifacts, reference_curves
):
    first = held(**ONE | {"lease_seconds": 1})
    wait_until(lambda: list_checkpoints(artifacts))
    waiting = search(**ONE)
    wait_until(lambda: "waiting for them" in waiting.output)
    kill(first)
    finish(waiting)
    assert "lease expired, its worker sent no heartbeat" in waiting.output
    assert f"trial 0 resumes from step {STEP}" in waiting.output
    assert_all_trials_match(sqlite_url, reference_curves, ONE)
    assert list_names(artifacts) == []


@pytest.mark.extended
def test_trial_of_a_worker_killed_before_its_first_checkpoint_restarts_and_says_why(
    held, search, sqlite_url, reference_curves
):
    first = held(**SELDOM | {"lease_seconds": 1})
    wait_until(lambda: max((step for _, step, _ in query(sqlite_url, CURVES)), default=0) == STEP)
    kill(first)
    (line,) = [line for line in finish(search(**ONE)).splitlines() if "checkpoint" in line]
    assert line.startswith("warning: no checkpoint of trial 0 in ")
    assert line.endswith(
        f", though step {STEP} was recorded: none was written before the worker was killed or cut "
        "off; training restarts from step 0"
    )
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


@pytest.mark.extended
def test_second_interrupt_exits_at_once(
    held, search, sqlite_url, tmp_path, artifacts, reference_curves
):
    """After the first interrupt, the worker waits for a file locked by another program."""
    first = held(**SELDOM | {"lease_seconds": 1})
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=HANG_TIMEOUT)
    other.execute("BEGIN IMMEDIATE")
    first.send(signal.SIGINT)
    wait_until(lambda: list_checkpoints(artifacts))
    stop(first, signal.SIGINT)
    other.close()
    finish(search(**ONE))
    assert_all_trials_match(sqlite_url, reference_curves, ONE)


# ------------------------------------------------------------------ damaged and foreign checkpoints


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def enlarge(path):
    os.truncate(path, 32 * 2**30)


def give_to_the_other_trial(path):
    path.rename(path.with_stem({"trial-0": "trial-1", "trial-1": "trial-0"}[path.stem]))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("damage", "warning", "suffixes"),
    [
        (flip_bit, ": checkpoint is damaged", [".quarantined"]),
        (enlarge, "cannot read the checkpoint of trial ", []),
        (give_to_the_other_trial, ": checkpoint belongs to another training", [".quarantined"]),
    ],
)
def test_trial_of_an_unusable_checkpoint_restarts(
    held, search, sqlite_url, artifacts, reference_curves, damage, warning, suffixes
):
    stop(held(**TWO))
    (checkpoint,) = list_checkpoints(artifacts)
    damage(checkpoint)
    (line,) = [line for line in finish(search(**TWO)).splitlines() if warning in line]
    assert line.startswith("warning: ")
    assert_all_trials_match(sqlite_url, reference_curves, TWO)
    assert [path.suffix for path in artifacts.glob("*/*")] == suffixes
