"""What ``--launch`` and ``--launch-set`` mean, and what workers on other machines need."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from helpers import ROOT
from managed_studies import create
from search.session import RunOptions, find_device

import rnn_search
from rnn.errors import DeviceError
from rnn_search.cli import refine
from search.errors import LaunchError
from search.launch import shared_files
from search.launch.jobs import build_worker_command, prepare_launch
from search.launch.launcher import JOB_VARIABLE, WorkerCommand, create_launcher
from search.launch.shared_files import require_shared, warn_of_loopback
from search.launch.slurm import parse_minutes
from search.launch.slurm_worker import SlurmWorker
from search.launch.target import LaunchTarget, parse_target
from search.run import run_workers
from studies.errors import ConfigError, StudyNotFoundError
from studies.storage.open import list_study_names, open_storage


def test_targets_and_their_settings_are_parsed():
    for kind in ("local", "slurm", "ray"):
        assert parse_target(kind) == LaunchTarget(kind)
    assert parse_target("ray://head:10001") == LaunchTarget("ray", "ray://head:10001")
    target = parse_target("slurm", ["time=1:00:00", "comment=a=b", "time=2:00:00"])
    assert target.settings == {"time": "2:00:00", "comment": "a=b"}, "the last value counts"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:59", 90), ("04:00:00", 240), ("1-12", 2160), ("1-12:30", 2190)],
)  # fmt: skip
def test_time_limits_are_those_of_slurm(text, minutes):
    assert parse_minutes(text) == minutes


TARGET = "expected local, slurm, ray or ray://HOST:PORT"
TIME = "expected a time limit such as 04:00:00"
CORES = "expected an integer from 1 to 1024"


@pytest.mark.parametrize(
    ("target", "setting", "message"),
    [
        *((text, "", TARGET) for text in ("", "Slurm", "ray://", "ray://head:x")),
        *(("slurm", f"time={text}", TIME) for text in ("soon", "4h", "1:2:3:4", "2", "1" * 30)),
        *(("slurm", f"cpus-per-task={text}", CORES) for text in ("0", "1.5", "9" * 20)),
        ("slurm", "cpus=2", "no key 'cpus' for slurm: did you mean 'gpus'. exp"),
        ("ray", "cores=4", "expected one of memory, num_cpus"),
        ("ray", "memory=much", "such as 4GiB"),
        ("ray", "num_gpus=1.5", "a whole number of GPUs"),
        ("ray", "resources=fast", "expected JSON"),
    ],
)
def test_other_targets_and_settings_are_refused(monkeypatch, target, setting, message):
    if target == "ray":
        pytest.importorskip("ray")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises((LaunchError, ValueError), match=message):
        create_launcher(parse_target(target, [setting] if setting else ()))


@pytest.mark.parametrize(("kind", "library"), [("slurm", "submitit"), ("ray", "ray")])
def test_missing_library_is_refused_with_the_command_that_installs_it(monkeypatch, kind, library):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    for name in [name for name in sys.modules if name.startswith("search.launch.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LaunchError, match=rf"pip install 'rnn-search\[{kind}\]'"):
        create_launcher(LaunchTarget(kind))


def test_worker_command_has_the_options_of_the_run_without_its_launch():
    options = RunOptions(
        "mine.toml", "postgresql+psycopg://me@host/studies", unset=("seed",), trial=3,
        overrides=("training.steps=5",), workers=50, prune=True,
        extend=True, until=60.0, target=LaunchTarget("slurm"),
    )  # fmt: skip
    command = build_worker_command(options, is_refinement=False).with_threads(4)
    python, program, *arguments = command.arguments
    assert (python, Path(program).name) == (sys.executable, "run_search.py")
    assert " ".join(arguments) == (
        "mine.toml --storage postgresql+psycopg://me@host/studies --trial 3 --device auto --until "
        "60.000s --unset seed --set training.steps=5 --prune --threads 4"
    )
    assert command.folder == Path.cwd()


def test_worker_of_a_refinement_runs_the_command_that_has_its_options():
    options = RunOptions(  # as of ``continue``, and of a call in Python
        "copies", "postgresql+psycopg://me@host/studies", partial=True, until_decided=True,
        is_stored=True, report=False, target=LaunchTarget("slurm"),
    )  # fmt: skip
    _, program, *arguments = build_worker_command(options, is_refinement=True).arguments
    assert Path(program).name == "refine.py"
    assert arguments[-3:] == ["--stored", "--until-decided", "--no-report"]
    parsed = refine.make_context("refine", [*arguments, "--storage", "sqlite:///x.db"])
    assert parsed.params["until_decided"]


def test_job_that_starts_after_its_study_was_renamed_creates_no_other(
    sqlite_url, text, monkeypatch
):
    create(sqlite_url, "renamed")
    monkeypatch.setenv(JOB_VARIABLE, "17_0")
    overrides = ("evaluation.window_length=8", "training.sequence_length=8", "training.steps=50")
    with pytest.raises(StudyNotFoundError, match=r"'quick' is not in .*: renamed"):
        run_workers(RunOptions("quick", sqlite_url, corpus=str(text), overrides=overrides))
    with closing(open_storage(sqlite_url)) as storage:
        assert list_study_names(storage) == ["renamed"]


@pytest.mark.parametrize(
    ("url", "is_warned"),
    [
        ("postgresql+psycopg://me@database.example/studies", False),
        ("postgresql+psycopg://me@/studies?host=/run/postgresql", True),
        ("postgresql+psycopg://me@/studies?host=database.example", False),
    ],
)
def test_storage_that_is_another_on_each_machine_is_warned_of(url, is_warned, monkeypatch):
    monkeypatch.delenv("PGHOST", raising=False)
    assert bool(warn_of_loopback(url)) == is_warned


def test_settings_in_python_are_refused():
    options = RunOptions("mine", "sqlite:///x.db", settings={}, target=LaunchTarget("slurm"))
    with pytest.raises(LaunchError, match="write them to a study file"):
        prepare_launch(options)


SERVER = "postgresql+psycopg://me@host/studies"


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """Commands of SLURM that accept everything, in a working directory that no machine shares."""
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(shared_files.SHARED_VARIABLE, str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "sqlite:///x.db"}, "expected a server, as in --storage"),
        ({"storage": "postgresql+psycopg://me:secret@host/x"}, "expected it in PGPASSWORD"),
        ({"storage": f"{SERVER}?password=secret"}, "PGPASSWORD"),
        ({"storage": f"{SERVER}?sslpassword=secret"}, "PGPASSWORD"),
        ({}, "folder of checkpoints"),
        ({"artifacts": "shared"}, "folder of logs"),
    ],
)
def test_job_that_could_not_reach_what_it_needs_is_refused_in_one_line(
    slurm_commands, tmp_path, options, message
):
    (tmp_path / "shared").mkdir()
    options = {"storage": SERVER} | options
    with pytest.raises(LaunchError, match=message) as refused:
        prepare_launch(RunOptions("quick", target=LaunchTarget("slurm"), **options))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "shared"}


def test_corpus_that_workers_on_other_machines_do_not_find_is_refused(sqlite_url, text, tmp_path):
    options = RunOptions("quick", sqlite_url, corpus=str(text), is_shared=True)
    with pytest.raises(LaunchError, match=r"corpus .* is in the temporary folder of this machine"):
        run_workers(options)
    assert list(tmp_path.iterdir()) == [text]


def test_missing_command_of_slurm_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="needs the command sbatch, which is not on PATH"):
        create_launcher(LaunchTarget("slurm"))


# ------------------------------------------------------------------ Ray


def test_ray_cluster_that_does_not_answer_is_refused():
    pytest.importorskip("ray")
    with pytest.raises(LaunchError, match="no Ray cluster answers at ray://127"):
        create_launcher(parse_target("ray://127.0.0.1:1"))


def test_workers_that_would_end_with_their_command_are_refused(monkeypatch):
    launcher = SimpleNamespace(ends_with_command=True)
    monkeypatch.setattr("search.launch.jobs.create_launcher", lambda target: launcher)
    options = RunOptions("quick", SERVER, wait=False, target=LaunchTarget("ray"))
    with pytest.raises(LaunchError, match="--no-wait would end the workers"):
        prepare_launch(options)


SERVER_DIED = """Initialization failure from server:
  File "proxier.py", line 765, in Datapath
    if not self.proxy_manager.start_specific_server(
  File "proxier.py", line 396, in start_specific_server
psutil.NoSuchProcess: process PID not found (pid=1)
"""


@pytest.mark.parametrize(
    ("message", "attempts"),
    [(SERVER_DIED, 4), (f"{SERVER_DIED}Failed to create runtime_env", 1)],
)
def test_death_of_a_clients_server_is_tried_again(monkeypatch, message, attempts):
    pytest.importorskip("ray")
    from search.launch import ray_cluster

    calls = []

    def fail(*arguments, **options):
        calls.append(arguments)
        raise ConnectionAbortedError(message)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster.ray, "init", fail)
    with pytest.raises(LaunchError, match="cannot join "):
        ray_cluster.join_cluster("auto")
    assert len(calls) == attempts


@pytest.mark.extended
def test_error_of_a_worker_is_reported_with_its_message(capfd, tmp_path):
    pytest.importorskip("ray")
    from search.launch.ray_worker import WorkerFailedError, run_worker

    words = ("python", "run_search.py", "no-such-study", f"--storage=sqlite:///{tmp_path}/x.db")
    with pytest.raises(WorkerFailedError, match=r"exited with code 2: error: .*no-such-study"):
        run_worker(WorkerCommand(words, tmp_path), "worker 1", {"PYTHONPATH": str(ROOT)})


# ------------------------------------------------------------------ file systems


@pytest.mark.parametrize(
    ("root", "data", "is_shared"),
    [
        ("ext4", "nfs4", True),
        ("ext4", "lustre", True),
        ("ext4", "fuse.sshfs", True),
        ("nfs4", "ext4", False),
        ("nfs4", "fuse.gvfsd-fuse", False),
        (None, None, True),  # a file system that is not known is not refused
    ],
)
def test_file_on_a_disk_of_the_machine_is_not_shared(monkeypatch, root, data, is_shared):
    monkeypatch.delenv(shared_files.SHARED_VARIABLE, raising=False)
    kinds = {"/": root, "/data": data} if root else {}
    mounted = [SimpleNamespace(mountpoint=path, fstype=kind) for path, kind in kinds.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounted)
    if not is_shared:
        with pytest.raises(LaunchError, match=rf"corpus /data/text is on a disk .*\({data}\)"):
            require_shared(Path("/data/text"), "corpus")
        monkeypatch.setenv(shared_files.SHARED_VARIABLE, "/other:/data")
    require_shared(Path("/data/text"), "corpus")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"launch": "nowhere"}, "expected local, slurm, ray or ray://HOST:PORT"),
        ({"launch": "slurm", "launch_set": "time=1"}, "expected a dict such as"),
        ({"launch_set": {"time": 90}}, "requires --launch slurm or ray"),
    ],
)
def test_targets_in_python_are_checked_before_anything_is_written(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        rnn_search.run("quick", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_study_is_created_for_gpus_that_only_the_workers_have(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = RunOptions("quick", "sqlite:///x.db", device=device, target=LaunchTarget("slurm"))
    assert find_device(options) == torch.device("cpu")
    with pytest.raises(DeviceError, match="not found on this machine"):
        find_device(replace(options, target=LaunchTarget()))
    with pytest.raises(DeviceError, match="device 'cuda:x' not found"):
        find_device(replace(options, device="cuda:x"))


def test_job_is_requeued_even_if_its_worker_has_just_ended(tmp_path):
    worker = SlurmWorker(WorkerCommand(("sleep", "600"), tmp_path))
    worker._process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, worker._process.pid, os.WEXITED | os.WNOWAIT)
    assert isinstance(worker.checkpoint().function, SlurmWorker)
    worker._process.wait()
    assert isinstance(worker.checkpoint().function, SlurmWorker)
