"""Workers as tasks of a real Ray cluster of two nodes, with a study on PostgreSQL."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from helpers import ROOT
from hooks import HANG_TIMEOUT, Gate, Hooks
from process_runner import (
    CURVES,
    FINISHED,
    SETTINGS,
    query,
    search_starter,
    wait_until,
    wait_until_running,
)
from ray_service import COMMAND, NOT_HEAD, RayCluster
from test_until_decided import REPLICATES, SOURCE, check_finished

import rnn_search
from search.errors import LaunchError
from search.launch.launcher import WorkerCommand, create_launcher
from search.launch.target import LaunchTarget

FOUR = {
    "training_steps": 200,
    "training_log_every": 20,
    "checkpoint_seconds": 0.3,
    "space_layers": "[1]",
    "space_state_size": "[6]",
    "space_exclude": "[]",
    "space_input_gate": "[false]",
    "space_forget_gate": "[false, true]",
    "space_output_gate": "[false]",
    "space_state_gate": "[false]",
    "space_residual": "[true, false]",
    "space_state_source": "['both']",
}
"""Four trials."""

STEP = 100
"""Step at which the gate holds trainings."""

ALL_COMPLETE = [(number, "COMPLETE", 1) for number in range(4)]

ANYWHERE_BUT_HEAD = f"--launch-set=resources={json.dumps(NOT_HEAD)}"

RETRIES = "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'"


@pytest.fixture(scope="module")
def cluster():
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate", STEP)


@pytest.fixture
def search(runner, cluster, postgresql_url, text, tmp_path):
    """Return a function that starts a search of four trials on the cluster."""
    start = search_starter(runner, postgresql_url, text)

    def search(*arguments, launch="ray", **others):
        artifacts = f"--artifacts={tmp_path}/artifacts"
        environment = cluster.environment
        settings = others if "space_state_size" in others else FOUR | others
        return start(
            artifacts, f"--launch={launch}", *arguments, environment=environment, **settings
        )

    return search


def status(search, *arguments):
    command = search("--status", "--json", *arguments)
    assert command.wait() == 0, command.output
    return json.loads(command.stdout)


def test_tasks_on_two_nodes_finish_each_trial_once(cluster, search, gate, postgresql_url):
    command = search("--workers=2", gate=gate)
    wait_until_running(
        [command],
        lambda: all(any(node.holds(pid) for pid in gate.held) for node in cluster.nodes[:2]),
    )
    jobs = status(search)["jobs"]
    gate.open()
    assert command.wait() == 0, command.output
    assert query(postgresql_url, FINISHED) == ALL_COMPLETE
    # The tasks were named by study and number, and listed with the trials that they held.
    assert re.match(r"quick-\w+ worker 1$", jobs[0]["id"])
    assert [job["id"][-8:] for job in jobs] == ["worker 1", "worker 2"]
    assert [job["state"] for job in jobs] == ["running", "running"]
    assert sorted(trial for job in jobs for trial in job["trials"]) == [0, 1]
    assert {job["host"] for job in jobs} == {os.uname().nodename}


@pytest.mark.parametrize(
    "victim",
    [*(pytest.param(name, marks=pytest.mark.extended) for name in ("worker", "task")), "node"],
)
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
    if victim == "worker":
        os.kill(pid, signal.SIGKILL)
    elif victim == "task":
        psutil.Process(pid).parent().kill()
    else:
        node.kill()
    wait_until_running([command], lambda: len(gate.held - {pid}))
    gate.open()
    assert command.wait() == 0, command.output
    assert query(postgresql_url, FINISHED) == ALL_COMPLETE
    reason = "interrupted" if victim == "task" else "lease_expired"
    assert reason in "".join(value for (value,) in query(postgresql_url, RETRIES))


@pytest.mark.extended
def test_interrupt_ends_the_workers_of_a_client_and_the_same_command_resumes(
    cluster, search, gate, postgresql_url, tmp_path
):
    command = search(launch=cluster.client_address, gate=gate)
    (pid,) = wait_until_running([command], lambda: gate.held)
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "stopped 1 worker; progress is saved" in command.stdout
    assert not psutil.pid_exists(pid)
    states = [state for _, state, _ in query(postgresql_url, FINISHED)]
    assert states == ["WAITING"] * 4
    assert len(list(tmp_path.glob("artifacts/**/*.checkpoint"))) == 1

    again = search(launch=cluster.client_address)
    assert again.wait() == 0, again.output
    assert query(postgresql_url, FINISHED) == ALL_COMPLETE
    assert query(postgresql_url, RETRIES) == [('{"interrupted": 1}',)]


@pytest.mark.extended
def test_refinement_is_decided_by_tasks(
    runner, cluster, postgresql_url, text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rnn_search.run(SOURCE, name="source", storage=postgresql_url, corpus=text)
    (tmp_path / "copies.toml").write_text(REPLICATES)
    command = runner.start(
        "refine.py", "copies.toml", "--until-decided", "--launch=ray", "--workers=2",
        f"--storage={postgresql_url}", "--no-report",
        cwd=tmp_path, **cluster.environment,
    )  # fmt: skip
    assert command.wait() == 0, command.output
    check_finished(postgresql_url)


@pytest.mark.extended
def test_killed_command_leaves_no_worker_behind(search, gate, postgresql_url):
    command = search(gate=gate)
    (pid,) = wait_until_running([command], lambda: gate.held)
    command.send(signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))
    assert [state for _, state, _ in query(postgresql_url, FINISHED)] == ["WAITING"] * 4


@pytest.mark.extended
def test_documented_script_runs_without_a_terminal_until_it_is_cancelled(
    cluster, search, gate, postgresql_url, text, tmp_path
):
    folder = tmp_path / "clone"
    for package in ("reports", "rnn", "rnn_search", "search", "studies"):
        shutil.copytree(ROOT / package, folder / package, ignore=only_code)
    shutil.copy(ROOT / "run_search.py", folder)
    page = (ROOT / "docs" / "how-to" / "many-machines.md").read_text()
    (script,) = (block for block in re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
                 if "--launch ray" in block and block.startswith("export"))  # fmt: skip
    settings = SETTINGS | {key.replace("_", ".", 1): value for key, value in FOUR.items()}
    options = [f"--set={key}={value}" for key, value in settings.items()]
    options += [f"--corpus={text}", "--lockstep=1", "--no-report"]
    script = script.replace("postgresql+psycopg://me@database.example/studies", postgresql_url)
    script = script.replace("s3://BUCKET", f"{tmp_path}/artifacts")
    script = script.replace("--workers 50", f"--workers 1 {shlex.join(options)}")
    variables = cluster.environment | Hooks(report=False, gate=gate).environment
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    (folder / "search.sh").write_text("\n".join([*exports, script]))

    submitted = subprocess.run(
        [COMMAND, "job", "submit", "--no-wait", "--working-dir", ".", "--", "bash", "search.sh"],
        cwd=folder,
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        timeout=HANG_TIMEOUT,
    )
    assert submitted.returncode == 0, submitted.stderr
    job = re.search(r"raysubmit_\w+", submitted.stdout + submitted.stderr)
    assert job
    (pid,) = wait_until(lambda: gate.held)
    command = search("--cancel", "--name=stage-one")
    assert command.wait() == 0, command.output
    assert f"stopped {job[0]}" in command.stdout
    wait_until(lambda: not psutil.pid_exists(pid))
    assert [state for _, state, _ in query(postgresql_url, FINISHED)] == ["WAITING"] * 4


def only_code(folder, names):
    """Leave out databases and other output of searches."""
    return [name for name in names if "." in name and not name.endswith((".py", ".toml"))]


def test_workers_of_a_terminal_are_not_cancelled_from_another(search, gate):
    command = search(gate=gate)
    wait_until_running([command], lambda: gate.held)
    cancel = search("--cancel")
    assert cancel.wait() == 2
    assert f"process {command.pid} on " in cancel.stderr
    assert cancel.stderr.count("\n") == 1
    gate.open()
    assert command.wait() == 0, command.output


def test_resources_that_no_node_has_are_warned_about(search):
    command = search("--launch-set=num_gpus=8", "--launch-set=memory=1TiB")
    wait_until_running([command], lambda: "no node has these resources" in command.stdout)
    assert "num_cpus=1, num_gpus=8.0, memory=1099511627776" in command.stdout
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output


REFUSED = {
    "a file as storage": (["--storage=sqlite:///x.db"], "postgresql+psycopg://USER@HOST/DATABASE"),
    "an address that does not answer": (["--launch=ray://127.0.0.1:1"], "no Ray cluster answers"),
    "an unknown resource": (["--launch-set=cores=4"], "expected one of memory, num_cpus"),
    "memory without a number": (["--launch-set=memory=much"], "such as 4GiB"),
    "a share of two GPUs": (["--launch-set=num_gpus=1.5"], "a whole number of GPUs"),
    "resources that are not JSON": (["--launch-set=resources=fast"], "expected JSON"),
    "an end before the workers": (["--no-wait"], "--no-wait would end the workers"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_bad_input_is_refused_in_one_line(search, postgresql_url, refused):
    arguments, message = REFUSED[refused]
    command = search(*arguments)
    assert command.wait() == 2, command.output
    assert message in command.stderr
    assert command.stderr.startswith("error: ")
    assert command.stderr.count("\n") == 1
    assert query(postgresql_url, "SELECT count(*) FROM information_schema.tables "
                 "WHERE table_name = 'studies'") == [(0,)]  # fmt: skip


@pytest.mark.parametrize("client", [False, True])
def test_other_version_of_ray_is_refused(cluster, monkeypatch, client):
    import ray

    monkeypatch.setattr(ray, "__version__", "2.0.0")
    monkeypatch.setenv("RAY_ADDRESS", cluster.client_address if client else cluster.address)
    try:
        with pytest.raises(LaunchError, match=r"Version mismatch.*2\.0\.0"):
            create_launcher(LaunchTarget("ray"))
    finally:
        ray.shutdown()


SERVER_DIED = """Initialization failure from server:
Traceback (most recent call last):
  File "proxier.py", line 765, in Datapath
    if not self.proxy_manager.start_specific_server(
  File "proxier.py", line 396, in start_specific_server
    cmd = psutil_proc.cmdline()
psutil.NoSuchProcess: process PID not found (pid=1)
"""
REFUSED_PACKAGES = SERVER_DIED.replace("psutil.NoSuchProcess", "Failed to create runtime_env")


@pytest.mark.parametrize(("message", "attempts"), [(SERVER_DIED, 4), (REFUSED_PACKAGES, 1)])
def test_death_of_a_clients_server_is_tried_again_and_explained(monkeypatch, message, attempts):
    pytest.importorskip("ray")
    from search.launch import ray_cluster

    calls = []

    def fail(*arguments, **options):
        calls.append(arguments)
        raise ConnectionAbortedError(message)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster.ray, "init", fail)
    with pytest.raises(LaunchError, match=r"cannot join .*: .*: process PID not found") as raised:
        ray_cluster.join_cluster("auto")
    assert len(calls) == attempts
    assert "Traceback" not in str(raised.value)


def test_missing_library_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("search.launch.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LaunchError, match=r"pip install 'rnn-search\[ray\]'"):
        create_launcher(LaunchTarget("ray"))


@pytest.mark.parametrize("program", ["run_search.py", "refine.py"])
def test_error_of_a_worker_is_reported_with_its_message(capfd, tmp_path, program):
    pytest.importorskip("ray")
    from search.launch.ray_worker import WorkerFailedError, run_worker

    arguments = ("python", program, "no-such-study", f"--storage=sqlite:///{tmp_path}/x.db")
    with pytest.raises(WorkerFailedError, match=r"exited with code 2: error: .*no-such-study"):
        run_worker(WorkerCommand(arguments, tmp_path), "worker 1", {"PYTHONPATH": str(ROOT)})


CHAOS_SECONDS = float(os.environ.get("RNN_SEARCH_CHAOS_SECONDS", "0"))
CHAOS_TRIALS = int(os.environ.get("RNN_SEARCH_CHAOS_TRIALS", "12"))
MIN_DISTURBANCES = 6
CHAOS_NODES = 3
CHAOS = FOUR | {
    "training_steps": 400,
    "lease_seconds": 2,
    "space_forget_gate": "[false, true]",
    "space_state_gate": "[false, true]",
    "space_state_source": "['new', 'old', 'both']",
    "space_residual": "[true]",
    "space_state_size": str([4 + index for index in range(CHAOS_TRIALS // 12)]),
}
"""Two switches and three state sources: twelve trials per state size."""


def find_processes(cluster, text):
    """Return the processes of the nodes whose command line contains a text."""
    found = []
    for node in cluster.nodes:
        for process in node.processes:
            try:
                if text in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
    return found


def disturb(cluster, kind, generator):
    """Send a signal to a process of the cluster, or kill a node; return whether there was one."""
    if kind in ("raylet", "node"):
        node = generator.choice([node for node in cluster.nodes[1:] if node.processes])
        if kind == "node":
            node.kill()
        else:
            node.raylets()[0].kill()
        cluster.add_node()
        return True
    victims = find_processes(
        cluster, "ray::quick" if kind == "task" else "search.launch.ray_worker"
    )
    if not victims:
        return False
    try:
        generator.choice(victims).send_signal(signal.SIGTERM if kind == "TERM" else signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


@pytest.mark.extended
def test_each_trial_finishes_once_whatever_happens_to_tasks_and_nodes(
    cluster, search, postgresql_url, reference_curves, tmp_path
):
    seed = int(os.environ.get("RNN_SEARCH_CHAOS_SEED", random.randrange(10**6)))
    print(f"RNN_SEARCH_CHAOS_SEED={seed}")
    generator = random.Random(seed)
    while sum(bool(node.processes) for node in cluster.nodes) < CHAOS_NODES:
        cluster.add_node()
    # Hold each training half-way, so that the study does not end before a task was disturbed.
    gate = Gate(tmp_path / "gate", 200)
    command = search(f"--workers={CHAOS_NODES}", gate=gate, **CHAOS)
    wait_until_running([command], lambda: gate.held)
    sent, start = Counter(), time.monotonic()
    while sum(sent.values()) < MIN_DISTURBANCES or time.monotonic() - start < CHAOS_SECONDS:
        wait_until_running([command], lambda: any(map(psutil.pid_exists, gate.held)))
        kinds = ["worker", "worker", "worker", "task", "task", "TERM", "TERM", "raylet", "node"]
        kind = generator.choice(kinds)
        sent[kind] += disturb(cluster, kind, generator)
        time.sleep(generator.uniform(0.2, 2.0))
    seconds = time.monotonic() - start
    gate.open()

    assert command.wait() == 0, command.output
    finished = query(postgresql_url, FINISHED)
    assert finished == [(number, "COMPLETE", 1) for number in range(CHAOS_TRIALS)]
    # Bit for bit those of a search without faults.
    assert query(postgresql_url, CURVES) == reference_curves(**CHAOS)
    retries = [json.loads(value) for (value,) in query(postgresql_url, RETRIES)]
    total = sum(map(Counter, retries), Counter())
    print(f"{seconds:.0f} s, {dict(sent)}; {CHAOS_TRIALS} trials complete once")
    print(f"{len(gate.held)} trainings killed while held; requeued trials: {dict(total)}")
    assert total, "no trial was interrupted"
