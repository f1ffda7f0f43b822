"""Workers as jobs of SLURM, on a real cluster of two nodes on this machine."""

import json
import re
import signal

import pytest
from helpers import QUICK, ROOT
from hooks import Gate, Hooks
from process_runner import SETTINGS, query, wait_until, wait_until_running
from small_searches import STATES, assert_all_complete, finish

HOOKS_OF_JOBS = """
import sys
if "continue" in sys.orig_argv:
    sys.path.insert(0, {tests!r})
    import hooks
    hooks.install()
"""
"""Module that every interpreter imports at its start: passes the hooks on to workers in jobs."""

pytestmark = pytest.mark.extended

TRIALS = 6

SPACE = {
    "training.steps": 40,
    "training.log_every": 10,
    "space.layers": "[1]",
    "space.state_size": "[4]",
    "space.residual": "[true]",
    "space.exclude": "[]",
    **{f"space.{name}_gate": "[false]" for name in ("input", "forget", "output")},
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
    variables = slurm.environment | {
        "RNN_SEARCH_STORAGE": postgresql_url,
        "PYTHONPATH": f"{packages}:{ROOT}",
        "OMP_NUM_THREADS": "1",
    }

    def start(*arguments, gate=None, **environment):
        return runner.start(
            "run_search.py", QUICK, "--launch=slurm", "--lockstep=1",
            *overrides, *arguments,
            cwd=tmp_path, hooks=Hooks(report=False, gate=gate), **variables | environment,
        )  # fmt: skip

    return start


LOOP = """
[loop]
steps = 20
log_every = 5
function = "train.py:train"

[space]
rate = [0.1, 0.2, 0.3]
replicates = 2
"""

FUNCTION = """
def train(trial):
    for step in range(1, 21):
        trial.log(step, value=trial.params["rate"] / step)
    return trial.params["rate"] * (1 + trial.replicate)
"""


@pytest.fixture
def logs(tmp_path):
    return lambda: "\n".join(path.read_text() for path in tmp_path.rglob("*_*.log"))


def test_jobs_work_a_study_off_while_one_still_waits(
    launch, slurm, postgresql_server, postgresql_url, logs, tmp_path
):
    """A job waits for a node that another program has; a further one is submitted and works."""
    password = "password-of-the-user"
    user, url = "cluster_user", postgresql_url.replace("tester@", "cluster_user@")
    postgresql_server.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'")
    postgresql_server.require_password(user)
    other = ("--job-name=other", "--nodelist=node1", "--exclusive", "--output=/dev/null")
    slurm.run("sbatch", *other, "--wrap=sleep 10000")
    wait_until(lambda: [*slurm.jobs().values()] == ["RUNNING"])
    access = {"RNN_SEARCH_STORAGE": url, "PGPASSWORD": password}
    finish(launch("--launch-set=nodelist=node1", "--no-wait", **access))
    resources = ("--launch-set=time=00:30:00", "--launch-set=cpus-per-task=2")
    search = launch("--launch-set=nodelist=node0", "--workers=2", *resources, **access)

    assert search.wait() == 0, search.output + logs() + slurm.log
    assert_all_complete(postgresql_url, TRIALS)
    assert "jobs of this study already: 1 pending" in search.stdout
    assert "submitted 1 job " in search.stdout
    assert f"study quick: {TRIALS} of {TRIALS} finished" in search.stdout
    slurm.run("scancel", "--state=PENDING")
    wait_until(lambda: len(slurm.jobs()) == 1)
    shown = slurm.run("scontrol", "show", "job", "--oneliner").splitlines()
    ended = [line for line in shown if "JobName=quick-" in line and " NodeList=node0" in line][-1]
    written = [path.read_bytes() for path in (tmp_path / "studies").rglob("*") if path.is_file()]
    assert written, "logs of jobs"
    assert not any(password.encode() in content for content in written)
    for state in ("JobState=COMPLETED", "ExitCode=0:0", "NumCPUs=2", "TimeLimit=00:30:00"):
        assert state in ended


def test_cancelled_job_leaves_its_trial_to_one_that_is_requeued_when_it_is_ended_early(
    launch, slurm, postgresql_url, logs, tmp_path
):
    gate = Gate(tmp_path / "gate", step=20)
    search = launch("--launch-set=nodelist=node0", "--workers=2", gate=gate)
    wait_until_running([search], lambda: len(gate.held) == 2)
    slurm.run("scancel", min(slurm.jobs()))
    running = "SELECT count(*) FROM trials WHERE state = 'RUNNING'"
    wait_until(lambda: query(postgresql_url, running) == [(1,)] and len(slurm.jobs()) == 1)
    ((job, _),) = slurm.jobs().items()

    ended: set[int] = set(gate.held)
    for restarts, cause in enumerate(("time limit", "preemption"), start=1):
        if cause == "time limit":
            slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        else:
            urgent = ["--partition=urgent", "--nodelist=node0", "--exclusive", "--output=/dev/null"]
            slurm.run("sbatch", *urgent, "--wrap=true")
        slurm.wait_for_restart(job, restarts)
        slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        ended.update(wait_until_running([search], lambda: gate.held - ended))
    gate.open()

    assert search.wait() == 0, search.output + logs()
    assert_all_complete(postgresql_url, TRIALS)
    assert len(re.findall("trial [0-9]+ resumes from step [1-9]", logs())) == 3, logs()
    refused = launch("--launch-set=partition=nowhere")
    assert refused.wait() == 2
    assert re.fullmatch(r"error: [^\n]*Invalid partition[^\n]*\n", refused.stderr)


def test_jobs_outlive_ctrl_c_until_they_are_cancelled(
    runner, launch, slurm, postgresql_url, tmp_path
):
    gate = Gate(tmp_path / "gate", step=20)
    search = launch("--workers=2", gate=gate)
    wait_until_running([search], lambda: len(gate.held) == 2)

    search.send(signal.SIGINT)
    assert search.wait() == 128 + signal.SIGINT
    assert (
        "the jobs keep running: rnn-search status shows them, --cancel ends them" in search.stdout
    )

    def run(*arguments):
        return finish(launch(*arguments, gate=gate))

    def show_status(*options):
        words = ("status", "quick", "--launch=slurm", "--storage", postgresql_url, *options)
        return finish(runner.start(*words, **slurm.environment))

    status = json.loads(show_status("--json"))
    assert [(job["state"], len(job["trials"])) for job in status["jobs"]] == [("running", 1)] * 2
    assert {job["id"] for job in status["jobs"]} == slurm.jobs().keys()
    assert re.search(r"jobs      2 running\n +[0-9]+_0 +running +node\d +trial \d", show_status())

    again = run("--workers=2", "--no-wait")
    assert "jobs of this study already: 2 running" in again
    assert len(slurm.jobs()) == 2
    assert "submitted 1 job " in run("--workers=3", "--no-wait")
    assert len(slurm.jobs()) == 3

    assert run("--cancel").startswith("cancelled 3 jobs")
    slurm.wait_for_no_job()
    # Requeued at once, not after a lease.
    assert query(postgresql_url, STATES) == [("WAITING",)]
    assert run("--cancel") == "no job to cancel\n"


def test_function_of_a_loop_runs_in_jobs(runner, slurm, postgresql_url, logs, tmp_path):
    (tmp_path / "own.toml").write_text(LOOP)
    (tmp_path / "train.py").write_text(FUNCTION)
    variables = slurm.environment | {"RNN_SEARCH_STORAGE": postgresql_url, "PYTHONPATH": str(ROOT)}
    search = runner.start(
        "run_search.py", "own.toml", "--launch=slurm", "--workers=2", "--no-report",
        cwd=tmp_path, **variables,
    )  # fmt: skip

    assert search.wait() == 0, search.output + logs() + slurm.log
    values = query(postgresql_url, "SELECT value FROM trial_values ORDER BY value")
    assert [value for (value,) in values] == pytest.approx([0.1, 0.2, 0.2, 0.3, 0.4, 0.6])
