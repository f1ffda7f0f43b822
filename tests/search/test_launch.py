"""Options of searches, and what workers on other machines need."""

import re
import signal
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import QUICK, ROOT, TINY_OVERRIDES
from invocation import refused

from rnn.errors import CorpusError, DeviceError, UserError
from rnn_search.commands.searches import continue_search, refine, run_search
from search.create_or_join import create_or_join, open_study
from search.launch.jobs import build_worker_command, prepare_launch
from search.launch.launcher import (
    LaunchError,
    LaunchTarget,
    WorkerCommand,
    create_launcher,
    mark_folder,
    parse_target,
)
from search.launch.slurm import write_script
from search.networks import find_device
from search.run_options import RunOptions, WorkerOptions
from studies.option_models import build_options, to_words

SERVER = "postgresql+psycopg://me@host/studies"


def test_targets_and_their_settings_are_parsed():
    for kind in ("local", "slurm", "ray"):
        assert parse_target(kind) == LaunchTarget(kind)
    assert parse_target("ray://head:10001") == LaunchTarget("ray", "ray://head:10001")
    target = parse_target("slurm", ["time=1:00:00", "comment=a=b", "time=2:00:00"])
    assert target.settings == {"time": "2:00:00", "comment": "a=b"}, "the last value counts"
    for text in ("", "Slurm", "ray://", "ray://head:x"):
        with pytest.raises(ValueError, match="expected local, slurm, ray or ray://HOST:PORT"):
            parse_target(text)


def test_worker_of_a_job_gets_the_name_of_the_study_and_a_marker(sqlite_url, text, tmp_path):
    options = RunOptions(
        study=QUICK,
        storage=sqlite_url,
        corpus=str(text),
        overrides=TINY_OVERRIDES,
        artifacts=str(tmp_path / "shared"),
    )
    with closing((handle := create_or_join(options)).storage):
        command = build_worker_command(options, handle)
        assert command.arguments[:4] == ("continue", "quick", "--storage", sqlite_url)
        assert f"--artifacts {tmp_path}/shared" in " ".join(command.arguments)
        assert command.marker.is_file()
        assert build_worker_command(options, handle).marker == command.marker, "one per folder"


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_study_is_created_for_gpus_that_only_the_workers_have(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device(device, trains=False) == torch.device("cpu")
    with pytest.raises(DeviceError, match="not found on this machine"):
        find_device(device, trains=True)
    with pytest.raises(DeviceError, match="device 'cuda:x' not found"):
        find_device("cuda:x", trains=False)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:///x.db", "expected a server, as in --storage"),
        ("postgresql+psycopg://me:s3cret@host/x", "expected it in PGPASSWORD"),
        (f"{SERVER}?sslpassword=s3cret", "PGPASSWORD"),
    ],
)
def test_storage_that_jobs_cannot_reach_is_refused_in_one_line(
    tmp_path, monkeypatch, storage, message
):
    monkeypatch.chdir(tmp_path)
    with refused(LaunchError, message, tmp_path):
        prepare_launch(RunOptions(study="quick", launch="slurm", storage=storage))


# ------------------------------------------------------------------ SLURM


def test_missing_command_of_slurm_or_library_of_ray_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="needs the command sbatch, which is not on PATH"):
        create_launcher(LaunchTarget("slurm")).check()
    monkeypatch.delitem(sys.modules, "search.launch.ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LaunchError, match=r"pip install 'rnn-search\[ray\]'"):
        create_launcher(LaunchTarget("ray"))


@pytest.fixture
def job(tmp_path):
    """Function that runs the script of a job, whose worker exits with a code."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "scontrol"):
        (folder / name).write_text(f'#!/bin/bash\necho {name} "$@"\nexit "$CODE"\n')
        (folder / name).chmod(0o755)
    array = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "2"}

    def run(command, code=0):
        return subprocess.run(
            ["/bin/bash"],
            input=write_script(command),
            env={"PATH": f"{folder}:/usr/bin:/bin", "CODE": str(code), **array},
            capture_output=True,
            text=True,
        )

    return run


def test_job_requeues_itself_only_after_the_signal_before_its_time_limit(job, tmp_path):
    command = WorkerCommand(("continue", "mine"), mark_folder(tmp_path))
    worker = f"srun --cpus-per-task=2 {sys.executable} -m rnn_search continue mine --threads 2\n"
    for code in (0, 1, 128 + signal.SIGTERM):
        done = job(command, code)
        assert (done.returncode, done.stdout) == (code, worker)
    assert job(command, 128 + signal.SIGUSR1).stdout == f"{worker}scontrol requeue 17_3\n"


def test_job_that_does_not_find_the_folder_of_checkpoints_stops_in_one_line(job, tmp_path):
    marker = mark_folder(tmp_path / "it's")
    command = WorkerCommand(("continue", "mine"), marker, threads=1)
    assert job(command).stdout.endswith("continue mine\n")
    marker.rename(marker.with_name(".shared-of-another-machine"))
    done = job(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*it's is not the same on all.*\n", done.stderr)

    ray_node = pytest.importorskip("search.launch.ray_node")
    with pytest.raises(ray_node.WorkerFailedError, match="is not the same on all machines"):
        ray_node.run_worker(command, tmp_path, "worker 1", {})


# ------------------------------------------------------------------ Ray


def test_ray_cluster_that_does_not_answer_is_refused():
    pytest.importorskip("ray")
    with pytest.raises(LaunchError, match="no Ray cluster answers at ray://127"):
        create_launcher(parse_target("ray://127.0.0.1:1"))


@pytest.mark.parametrize("setting", ["cores=4", "memory=much"])
def test_options_that_ray_does_not_take_are_refused_in_one_line(monkeypatch, setting):
    ray = pytest.importorskip("search.launch.ray", exc_type=ImportError)
    monkeypatch.setattr(ray, "join_cluster", lambda address: "")
    launcher = create_launcher(parse_target("ray", [setting]))
    with refused(LaunchError, "Ray refuses --launch-set: "):
        launcher.check()


def test_workers_that_would_end_with_their_command_are_refused(monkeypatch):
    launcher = SimpleNamespace(ends_with_command=True)
    monkeypatch.setattr("search.launch.jobs.create_launcher", lambda target: launcher)
    options = RunOptions(study="quick", storage=SERVER, wait=False, launch="ray")
    with pytest.raises(LaunchError, match="--no-wait would end the workers"):
        prepare_launch(options)


@pytest.mark.extended
def test_error_of_a_worker_is_reported(tmp_path):
    ray_node = pytest.importorskip("search.launch.ray_node")
    arguments = ("continue", "no-such-study", f"--storage=sqlite:///{tmp_path}/x.db")
    command = WorkerCommand(arguments, mark_folder(tmp_path))
    with pytest.raises(ray_node.WorkerFailedError, match="exited with code 2"):
        ray_node.run_worker(command, tmp_path, "worker 1", {"PYTHONPATH": str(ROOT)})


# ------------------------------------------------------------------ options


def create(url, text, *overrides, **options):
    settings = (*TINY_OVERRIDES, *overrides)
    given = {"study": QUICK, "storage": url, "overrides": settings, "corpus": str(text)}
    options = RunOptions(**given | options)
    handle = create_or_join(options)
    handle.storage.close()
    return options, handle


def test_command_line_of_a_worker_states_what_differs_and_nothing_else(sqlite_url, text):
    create(sqlite_url, text)
    given = {"threads": 2, "lockstep": 3, "until": 90.5, "wait": False, "report": False}
    own = ("lease.seconds=5.0", "keep_weights=3")
    options, handle = create(sqlite_url, text, *own, **given)
    worker = handle.for_worker(options)
    assert worker.overrides == ("keep_weights=3", "lease.seconds=5.0")
    words = to_words(worker)
    assert not [word for word in words if "training" in word]
    context = continue_search.make_context("continue", [handle.name, *words])
    parsed = {
        name: context.params[name] for name in WorkerOptions.model_fields.keys() & context.params
    }
    assert build_options(WorkerOptions, **parsed) == worker


def test_worker_by_name_trains_what_the_study_stores(sqlite_url, text):
    _, handle = create(sqlite_url, text, "lease.seconds=5.0")
    text_as_read = handle.task_of(()).corpus.text
    opened = open_study("quick", sqlite_url, WorkerOptions(overrides=("lease.seconds=7.0",)))
    assert opened.config == handle.config.model_copy(update={"lease": opened.config.lease})
    assert (handle.config.lease.seconds, opened.config.lease.seconds) == (5, 7)
    assert np.array_equal(opened.task_of(()).corpus.text, text_as_read)
    assert opened.notice == ""


def test_worker_by_name_sets_nothing_that_the_study_decides(sqlite_url, text):
    create(sqlite_url, text)
    with pytest.raises(UserError, match=r"^training.steps is a setting of the stored study: ex"):
        open_study("quick", sqlite_url, WorkerOptions(overrides=("training.steps=8",)))
    other = text.with_name("other")
    other.write_bytes(text.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"has other data: task.corpus.sha256: .* --corpus"):
        open_study("quick", sqlite_url, WorkerOptions(corpus=str(other)))
    moved = text.rename(text.with_name("moved"))
    with pytest.raises(CorpusError, match="give its current path with --corpus"):
        open_study("quick", sqlite_url, WorkerOptions())
    assert open_study("quick", sqlite_url, WorkerOptions(corpus=str(moved))).tasks


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        (run_search, {"is_stored": True, "prune": True}, "run mine --stored --prune"),
        (refine, {"partial": True, "extend": True}, "refine mine --extend --partial"),
    ],
)
def test_recorded_command_is_one_that_creates_the_same_study(command, given, words):
    options = RunOptions(study="mine", storage="sqlite:///studies.db", **given)
    assert options.command == f"rnn-search {words}"
    params = command.make_context("", words.split()[1:]).params
    assert {name: params[name] for name in given} == given
