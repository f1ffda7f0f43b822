"""Workers as tasks of a real Ray cluster of two nodes, with a study on PostgreSQL."""

import json
import os
import re
import signal

import psutil
import pytest
from hooks import HANG_TIMEOUT
from process_runner import query, search_starter, wait_until, wait_until_running
from ray_service import NOT_HEAD, RayCluster
from small_searches import (
    FOUR,
    RETRIES,
    STATES,
    assert_all_complete,
    finish,
    list_checkpoints,
)

pytestmark = pytest.mark.extended

ANYWHERE_BUT_HEAD = f"--launch-set=resources={json.dumps(NOT_HEAD)}"


@pytest.fixture(scope="module")
def cluster():
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture
def search(runner, cluster, postgresql_url, text, artifacts):
    """Return a function that starts a search of four trials on the cluster."""
    start = search_starter(runner, postgresql_url, text)

    def search(*options, launch="ray", on=cluster, gate=None, **settings):
        options = (f"--artifacts={artifacts}", f"--launch={launch}", *options)
        return start(*options, environment=on.environment, gate=gate, **FOUR | settings)

    return search


def test_tasks_on_two_nodes_finish_each_trial_once(runner, cluster, search, gate, postgresql_url):
    command = search("--workers=2", gate=gate)
    wait_until_running(
        [command],
        lambda: all(any(node.holds(pid) for pid in gate.held) for node in cluster.nodes[:2]),
    )
    shown = ("quick", "--storage", postgresql_url, "--launch=ray", "--json")
    jobs = json.loads(finish(runner.start("status", *shown, **cluster.environment)))["jobs"]
    follower = search("--workers=2", gate=gate)
    wait_until_running([follower], lambda: "jobs of this study already: 2" in follower.stdout)
    gate.open()
    finish(command, follower)
    assert_all_complete(postgresql_url, 4)
    # The tasks were named by study and number, and listed with the trials that they held.
    assert re.match(r"quick-\w+ worker 1$", jobs[0]["id"])
    assert [job["id"][-8:] for job in jobs] == ["worker 1", "worker 2"]
    assert [job["state"] for job in jobs] == ["running", "running"]
    assert sorted(trial for job in jobs for trial in job["trials"]) == [0, 1]
    assert {job["host"] for job in jobs} == {os.uname().nodename}


@pytest.mark.parametrize("victim", ["task", "node"])
def test_task_starts_again_when_its_processes_are_killed(
    cluster, search, gate, postgresql_url, victim
):
    if victim == "node":
        cluster.add_node()
    # A worker that is killed cannot requeue its trial: its lease expires. One whose task is killed
    # requeues it, however long that takes: Ray runs workers at a low priority.
    lease_seconds = HANG_TIMEOUT if victim == "task" else 2
    command = search(ANYWHERE_BUT_HEAD, gate=gate, lease_seconds=lease_seconds)
    (pid,) = wait_until_running([command], lambda: gate.held)
    node = next(node for node in cluster.nodes if node.holds(pid))
    if victim == "task":
        psutil.Process(pid).parent().kill()
    else:
        node.kill()
    wait_until_running([command], lambda: len(gate.held - {pid}))
    gate.open()
    finish(command)
    assert_all_complete(postgresql_url, 4)
    reason = "interrupted" if victim == "task" else "lease_expired"
    assert reason in "".join(value for (value,) in query(postgresql_url, RETRIES))


def test_interrupt_ends_the_workers_of_a_client_and_the_same_command_resumes(
    cluster, search, gate, postgresql_url, artifacts
):
    command = search(launch=cluster.client_address, gate=gate)
    (pid,) = wait_until_running([command], lambda: gate.held)
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "stopped 1 worker; progress is saved" in command.stdout
    assert not psutil.pid_exists(pid)
    assert query(postgresql_url, STATES) == [("WAITING",)]
    assert len(list_checkpoints(artifacts)) == 1

    finish(search(launch=cluster.client_address))
    assert_all_complete(postgresql_url, 4)
    assert query(postgresql_url, RETRIES) == [('{"interrupted": 1}',)]


def test_killed_command_leaves_no_worker_behind(search, gate, postgresql_url):
    command = search(gate=gate)
    (pid,) = wait_until_running([command], lambda: gate.held)
    command.send(signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))
    assert query(postgresql_url, STATES) == [("WAITING",)]


def test_tasks_that_wait_for_resources_are_counted(search):
    command = search("--launch-set=num_gpus=8", "--launch-set=memory=1e12")
    resources = "num_cpus=1, num_gpus=8, memory=1000000000000.0"
    wait_until_running([command], lambda: resources in command.stdout)
    other = search("--workers=2")
    wait_until_running([other], lambda: "submitted 1 task " in other.stdout)
    assert "jobs of this study already: 1 pending" in other.stdout
    for each in (other, command):
        each.send(signal.SIGINT)
        assert each.wait() == 130, each.output
