"""Workers as jobs of SLURM, on a real cluster of two nodes on this machine."""

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from helpers import QUICK, ROOT
from hooks import Gate, Hooks
from process_runner import FINISHED, SETTINGS, query, wait_until, wait_until_running
from test_until_decided import REPLICATES, SOURCE, check_finished

import rnn_search

HOOKS_OF_JOBS = """
import sys
if any(name.endswith("run_search.py") for name in sys.orig_argv):
    sys.path.insert(0, {tests!r})
    import hooks
    hooks.install()
"""
"""Module that every interpreter imports at its start: passes the hooks on to workers in jobs."""

TRIALS = 6

SPACE = {
    "training.steps": 40,
    "training.log_every": 10,
    "space.layers": "[1]",
    "space.state_size": "[4]",
    "space.input_gate": "[false]",
    "space.output_gate": "[false]",
    "space.forget_gate": "[false]",
    "space.residual": "[true]",
    "space.exclude": "[]",
}
"""One switch and three state sources."""


@pytest.fixture
def launch(runner, slurm, postgresql_url, tmp_path):
    """Return a function that starts a search on SLURM, as ``launch("--workers=2", gate=gate)``."""
    packages = tmp_path / "packages"
    packages.mkdir()
    code = HOOKS_OF_JOBS.format(tests=str(ROOT / "tests"))
    (packages / "sitecustomize.py").write_text(code)
    overrides = [f"--set={key}={value}" for key, value in (SETTINGS | SPACE).items()]

    def start(*arguments, gate=None, **environment):
        return runner.start(
            "run_search.py", QUICK, "--launch=slurm", "--corpus=recall:5", "--lockstep=1",
            *overrides, *arguments,
            cwd=tmp_path, hooks=Hooks(report=False, gate=gate),
            **slurm.environment | environment_of_jobs(postgresql_url, packages) | environment,
        )  # fmt: skip

    return start


def environment_of_jobs(url, packages):
    return {
        "RNN_SEARCH_STORAGE": url,
        "RNN_SEARCH_SHARED": "/",  # one machine
        "PYTHONPATH": f"{packages}:{ROOT}",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def logs(tmp_path):
    """Return a function that reads the logs of all jobs."""
    return lambda: "\n".join(path.read_text() for path in tmp_path.rglob("*_log.out"))


def is_complete(url):
    """Return whether each trial is complete with one value, by plain SQL."""
    return query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(TRIALS)]


def running_trials(url):
    return query(url, "SELECT count(*) FROM trials WHERE state = 'RUNNING'")[0][0]


def test_job_array_works_a_study_off(
    launch, slurm, postgresql_server, postgresql_url, logs, tmp_path
):
    password = "password-of-the-user"
    user, url = "cluster_user", postgresql_url.replace("tester@", "cluster_user@")
    postgresql_server.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'")
    postgresql_server.require_password(user)
    search = launch(
        "--workers=2", "--launch-set=time=00:30:00", "--launch-set=cpus-per-task=2",
        RNN_SEARCH_STORAGE=url, PGPASSWORD=password,
    )  # fmt: skip

    assert search.wait() == 0, search.output + logs() + slurm.log
    assert is_complete(postgresql_url)
    assert "submitted 2 jobs" in search.stdout
    assert f"study quick: {TRIALS} of {TRIALS} finished" in search.stdout
    slurm.wait_for_no_job()
    ended = slurm.run("scontrol", "show", "job", "--oneliner").splitlines()
    ended = [line for line in ended if "JobName=quick-" in line][-2:]
    written = [path.read_bytes() for path in (tmp_path / "studies").rglob("*") if path.is_file()]
    assert len(written) >= 5, "script, pickles and logs of two jobs"
    assert not any(password.encode() in content for content in written)
    assert all("JobState=COMPLETED" in line and "ExitCode=0:0" in line for line in ended), ended
    assert all("NumCPUs=2" in line and "TimeLimit=00:30:00" in line for line in ended), ended


@pytest.mark.extended
def test_cancelled_job_leaves_its_trial_to_others(launch, slurm, postgresql_url, logs, tmp_path):
    gate = Gate(tmp_path / "gate", 20)
    search = launch("--workers=2", gate=gate)
    wait_until_running([search], lambda: len(gate.held) == 2)

    slurm.run("scancel", min(slurm.jobs()))
    wait_until(lambda: running_trials(postgresql_url) == 1)
    gate.open()

    assert search.wait() == 0, search.output + logs()
    assert is_complete(postgresql_url)
    assert "requeued" in logs()


@pytest.mark.extended
@pytest.mark.parametrize("cause", ["time limit", "preemption"])
def test_job_that_is_ended_early_is_requeued_and_resumes(
    launch, slurm, postgresql_url, logs, tmp_path, cause
):
    gate = Gate(tmp_path / "gate", 20)
    search = launch("--launch-set=nodelist=node0", gate=gate)
    wait_until_running([search], lambda: gate.held)
    (job,) = slurm.jobs()

    if cause == "time limit":  # the signal that SLURM sends before it
        slurm.run("scancel", "--signal=USR2", job)
    else:
        urgent = ["--partition=urgent", "--nodelist=node0", "--exclusive", "--output=/dev/null"]
        slurm.run("sbatch", *urgent, "--wrap=true")
    wait_until(lambda: slurm.count_restarts(job) == 1)
    gate.open()

    assert search.wait() == 0, search.output + logs()
    assert is_complete(postgresql_url)
    assert re.search("trial [0-9]+ resumes from step [1-9]", logs()), logs()


@pytest.mark.extended
def test_job_of_a_drained_node_moves_to_another(launch, slurm, postgresql_url, logs, tmp_path):
    gate = Gate(tmp_path / "gate", 20)
    search = launch("--launch-set=nodelist=node0", gate=gate)
    wait_until_running([search], lambda: gate.held)
    (job,) = slurm.jobs()

    slurm.run("scontrol", "update", "NodeName=node0", "State=DRAIN", "Reason=test")
    slurm.run("scontrol", "requeue", job)
    wait_until(lambda: slurm.jobs() == {job: "PENDING"})
    gate.open()
    assert not is_complete(postgresql_url)
    slurm.run("scontrol", "update", f"JobId={job}", "ReqNodeList=node1")

    assert search.wait() == 0, search.output + logs()
    assert is_complete(postgresql_url)


@pytest.mark.extended
def test_jobs_outlive_ctrl_c_until_they_are_cancelled(launch, slurm, postgresql_url, tmp_path):
    gate = Gate(tmp_path / "gate", 20)
    search = launch("--workers=2", gate=gate)
    wait_until_running([search], lambda: len(gate.held) == 2)

    search.send(signal.SIGINT)
    assert search.wait() == 128 + signal.SIGINT
    assert "the jobs keep running: --status shows them, --cancel ends them" in search.stdout

    def run(*arguments):
        command = launch(*arguments, gate=gate)
        assert command.wait() == 0, command.output
        return command.stdout

    # Options of other jobs do not matter, not even such that SLURM refuses now.
    status = json.loads(run("--status", "--json", "--launch-set=partition=nowhere"))
    assert [(job["state"], len(job["trials"])) for job in status["jobs"]] == [("running", 1)] * 2
    assert {job["id"] for job in status["jobs"]} == slurm.jobs().keys()
    assert re.search(r"jobs      2 running\n +[0-9]+_0 +running +node\d +trial \d", run("--status"))

    again = run("--workers=2", "--no-wait")
    assert "jobs of this study already: 2 running" in again
    assert len(slurm.jobs()) == 2
    assert "submitted 1 job " in run("--workers=3", "--no-wait")
    assert len(slurm.jobs()) == 3

    assert run("--cancel").startswith("cancelled 3 jobs")
    slurm.wait_for_no_job()
    # Requeued at once, not after a lease.
    states = query(postgresql_url, "SELECT DISTINCT state FROM trials")
    assert states == [("WAITING",)]
    assert run("--cancel") == "no job to cancel\n"


@pytest.mark.extended
def test_refinement_is_decided_in_jobs_and_one_that_waits_is_cancelled(
    runner, slurm, postgresql_url, logs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    environment = slurm.environment | environment_of_jobs(postgresql_url, tmp_path)
    rnn_search.run(SOURCE, name="source", storage=postgresql_url, corpus="recall:5")
    (tmp_path / "copies.toml").write_text(REPLICATES)

    def launch(*arguments, node="node0"):
        return runner.start(
            *arguments, "--launch=slurm", f"--launch-set=nodelist={node}", "--no-report",
            cwd=tmp_path, **environment,
        )  # fmt: skip

    other = ("--job-name=other", "--nodelist=node1", "--exclusive", "--output=/dev/null")
    slurm.run("sbatch", *other, "--wrap=sleep 10000")
    wait_until(lambda: [*slurm.jobs().values()] == ["RUNNING"])
    file = ("refine.py", "copies.toml", "--until-decided", "--no-wait")
    submitted = launch(*file, node="node1")
    assert submitted.wait() == 0, submitted.output
    search = launch("-m", "rnn_search", "continue", "copies", "--workers=3")

    assert search.wait() == 0, search.output + logs()
    check_finished(postgresql_url)
    assert "jobs of this study already: 1 pending" in search.stdout
    assert "submitted 2 jobs" in search.stdout
    assert "cancelled 1 job that had not started" in search.stdout
    slurm.run("scancel", "--name=other")
    slurm.wait_for_no_job()
    assert "report" not in logs()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--storage=sqlite:///x.db"], {}, "expected a server, as in --storage postgresql+psycopg"),
        (["--storage=postgresql+psycopg://me:secret@host/x"], {}, "expected it in PGPASSWORD"),
        ([], {"RNN_SEARCH_SHARED": ""}, "folder of checkpoints"),
        (["--artifacts=shared"], {"RNN_SEARCH_SHARED": "shared"}, "folder of logs"),
        (
            ["--artifacts=shared", "--corpus=text"],
            {"RNN_SEARCH_SHARED": f"shared:studies:{ROOT}"},
            "is in the temporary folder of this machine",
        ),
        (["--launch-set=partition=nowhere"], {}, "Invalid partition"),
        (["--launch-set=time=soon"], {}, "expected a time limit such as 04:00:00"),
        (["--launch-set=colour=red"], {}, "has no key 'colour' for slurm"),
        (["--launch-set=time"], {}, "expected KEY=VALUE"),
        ([], {"PATH": "/nowhere"}, "needs the command sbatch, which is not on PATH"),
    ],
    ids=[
        "sqlite",
        "password",
        "checkpoints",
        "logs",
        "corpus",
        "partition",
        "time",
        "key",
        "pair",
        "path",
    ],
)
def test_refused_launch_changes_nothing(
    launch, slurm, postgresql_url, tmp_path, arguments, environment, message
):
    (tmp_path / "text").write_bytes(b"text" * 1000)
    (tmp_path / "shared").mkdir()
    before = set(tmp_path.rglob("*"))

    search = launch(*arguments, **environment)

    assert search.wait() == 2
    assert re.fullmatch(r"error: [^\n]*\n", search.stderr), search.stderr
    assert message in search.stderr
    assert "secret" not in search.output
    assert set(tmp_path.rglob("*")) == before
    assert query(postgresql_url, "SELECT count(*) FROM pg_tables WHERE tablename = 'studies'") == [
        (0,)
    ]
    assert slurm.jobs() == {}


@pytest.mark.extended
def test_script_of_the_documents_works_a_study_off(slurm, postgresql_url, tmp_path):
    page = (ROOT / "docs" / "how-to" / "many-machines.md").read_text()
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL).group(1)
    settings = {**SETTINGS, **SPACE}
    options = " ".join(f'--set "{key}={value}"' for key, value in settings.items())
    script = script.replace("--array=1-50", "--array=1-2").replace("--cpus-per-task=2", "-c 1")
    script = script.replace(
        "python run_search.py stage-one",
        f"{sys.executable} {ROOT}/run_search.py {QUICK} --corpus recall:5 {options}",
    )
    assert "recall:5" in script
    (tmp_path / "search.sbatch").write_text(script)
    environment = environment_of_jobs(postgresql_url, tmp_path)
    export = ",".join(["ALL", *(f"{name}={value}" for name, value in environment.items())])

    slurm.run("sbatch", f"--chdir={tmp_path}", f"--export={export}", f"{tmp_path}/search.sbatch")
    slurm.wait_for_no_job()

    logs = "\n".join(path.read_text() for path in Path(tmp_path).glob("slurm-*.out"))
    assert is_complete(postgresql_url), logs


CHAOS_SECONDS = float(os.environ.get("RNN_SEARCH_CHAOS_SECONDS", "0"))
CHAOS_TRIALS = int(os.environ.get("RNN_SEARCH_CHAOS_TRIALS", "12"))
MIN_DISTURBANCES = 6
CHAOS_WORKERS = 4
CHAOS = {
    "training.steps": 400,
    "training.log_every": 50,
    "lease.seconds": 2,
    "checkpoint.seconds": 0.3,
    "space.forget_gate": "[false, true]",
    "space.state_size": [4 + index for index in range(CHAOS_TRIALS // 12)],
}
"""Two switches and three state sources: twelve trials per state size."""


UNFINISHED = "SELECT count(*) FROM trials WHERE state IN ('WAITING', 'RUNNING')"


def find_workers(url):
    """Return the processes of workers of a storage in jobs, by job."""
    found = {}
    for process in psutil.process_iter():
        try:
            is_worker = any(word.endswith("run_search.py") for word in process.cmdline())
            environment = process.environ() if is_worker else {}
            if environment.get("RNN_SEARCH_STORAGE") == url and "RNN_SEARCH_JOB" in environment:
                found[environment["RNN_SEARCH_JOB"]] = process
        except psutil.Error:  # it has ended, or belongs to another user
            continue
    return found


@pytest.mark.extended
def test_each_trial_finishes_once_whatever_happens_to_jobs(
    launch, slurm, postgresql_url, logs, tmp_path
):
    seed = int(os.environ.get("RNN_SEARCH_CHAOS_SEED", random.randrange(10**6)))
    print(f"RNN_SEARCH_CHAOS_SEED={seed}")
    generator = random.Random(seed)
    settings = [f"--set={key}={value}" for key, value in CHAOS.items()]
    # Hold each training half-way, so that the study does not end before a job was disturbed.
    gate = Gate(tmp_path / "gate", 200)
    sent: Counter[str] = Counter()

    def submit(*arguments):
        return launch(f"--workers={CHAOS_WORKERS}", *settings, *arguments, gate=gate)

    assert submit("--no-wait").wait() == 0
    wait_until(lambda: gate.held)
    start = time.monotonic()
    while sum(sent.values()) < MIN_DISTURBANCES or time.monotonic() - start < CHAOS_SECONDS:
        jobs = slurm.jobs()
        if len(jobs) < CHAOS_WORKERS:
            assert submit("--no-wait").wait() == 0  # adds those that are missing
        # Those that hold a trial: a job that is still starting has nothing to lose.
        workers = find_workers(postgresql_url)
        holding = sorted(job for job, process in workers.items() if process.pid in gate.held)
        if not holding:
            assert query(postgresql_url, UNFINISHED) != [(0,)], "too few trials"
            time.sleep(0.2)
            continue
        job = generator.choice(holding)
        kind = generator.choice(["kill -9", "scancel", "requeue", "USR2", "TERM"])
        if kind == "kill -9":
            with contextlib.suppress(psutil.NoSuchProcess):
                workers[job].kill()
        elif kind == "requeue":
            slurm.try_to("scontrol", "requeue", job)
        else:
            slurm.try_to("scancel", *([] if kind == "scancel" else [f"--signal={kind}"]), job)
        sent[kind] += 1
        time.sleep(generator.uniform(0.2, 2.0))
    gate.open()
    search = submit()

    assert search.wait() == 0, search.output + logs()
    finished = query(postgresql_url, FINISHED)
    assert finished == [(number, "COMPLETE", 1) for number in range(CHAOS_TRIALS)]
    slurm.wait_for_no_job()
    assert query(postgresql_url, "SELECT count(*) FROM trials WHERE state = 'RUNNING'") == [(0,)]
    retries = query(
        postgresql_url, "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'"
    )
    total = sum((Counter(json.loads(value)) for (value,) in retries), Counter())
    resumed = len(re.findall("resumes? from step", logs()))
    print(f"{time.monotonic() - start:.0f} s, {dict(sent)}; {CHAOS_TRIALS} trials complete once")
    print(f"requeued trials: {dict(total)}; {resumed} times resumed from a checkpoint")
    assert total, "no trial was interrupted"
