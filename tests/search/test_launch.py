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
from managed_studies import create

import rnn_search
from rnn.errors import DeviceError
from rnn_search.cli import refine
from search.errors import LaunchError
from search.launch import shared_files
from search.launch.jobs import build_worker_command, prepare_launch
from search.launch.launcher import JOB_VARIABLE, WorkerCommand, parse_settings
from search.launch.shared_files import require_server, require_shared, warn_of_loopback
from search.launch.slurm import SlurmLauncher
from search.launch.slurm_settings import SETTINGS, parse_minutes
from search.launch.slurm_worker import SlurmWorker
from search.launch.target import LaunchTarget, parse_target
from search.run import run_workers
from search.session import RunOptions, find_device
from studies.errors import ConfigError, StudyNotFoundError
from studies.storage.open import list_study_names, open_storage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", LaunchTarget()),
        ("slurm", LaunchTarget("slurm")),
        ("ray", LaunchTarget("ray")),
        ("ray://head:10001", LaunchTarget("ray", "ray://head:10001")),
    ],
)
def test_targets_are_parsed(text, expected):
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "Slurm", "ray://", "ray://head:x", "ssh://head", "ray:head"])
def test_other_targets_are_refused(text):
    with pytest.raises(ValueError, match="expected local, slurm, ray or ray://HOST:PORT"):
        parse_target(text)


def test_last_value_of_a_setting_counts():
    target = parse_target("slurm", ["time=1:00:00", "comment=a=b", "time=2:00:00"])
    assert target.settings == {"time": "2:00:00", "comment": "a=b"}


@pytest.mark.parametrize("setting", ["time", "=1", "time=", ""])
def test_settings_that_are_no_pairs_are_refused(setting):
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        parse_target("slurm", [setting])


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:59", 90), ("04:00:00", 240), ("1-12", 2160), ("1-12:30", 2190),
     ("2-00:00:00", 2880), ("0-0:3", 3)],
)  # fmt: skip
def test_time_limits_are_those_of_slurm(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["soon", "-5", "4h", "1:2:3:4", "2", "0", "1" * 30, "٣٠x"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(ValueError, match="expected a time limit such as 04:00:00"):
        parse_minutes(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "9" * 20, "0000000012345"])
def test_numbers_of_cores_are_checked(text):
    with pytest.raises(LaunchError, match="expected an integer from 1 to 1024"):
        parse_settings("slurm", {"cpus-per-task": text}, SETTINGS)


def test_unknown_setting_is_refused_with_those_that_exist():
    with pytest.raises(LaunchError, match="no key 'cpus' for slurm: expected one of account, "):
        parse_settings("slurm", {"cpus": "2"}, SETTINGS)


def test_missing_library_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LaunchError, match=r"pip install 'rnn-search\[slurm\]'"):
        SlurmLauncher({})


def test_worker_command_has_the_options_of_the_run_without_its_launch():
    options = RunOptions(
        "mine.toml", "postgresql+psycopg://me@host/studies", overrides=("training.steps=5",),
        workers=50, prune=True, extend=True, until=60.0, target=LaunchTarget("slurm"),
    )  # fmt: skip
    command = build_worker_command(options, is_refinement=False).with_threads(4)
    python, program, *arguments = command.arguments
    assert (python, Path(program).name) == (sys.executable, "run_search.py")
    assert " ".join(arguments) == (
        "mine.toml --storage postgresql+psycopg://me@host/studies --device auto --until 60.000s "
        "--set training.steps=5 --prune --threads 4"
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
        ("postgresql+psycopg://me@localhost/studies", True),
        ("postgresql+psycopg://me@database.example/studies", False),
        ("postgresql+psycopg://me@/studies", True),
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


@pytest.mark.parametrize(
    "query", ["?password=secret", "?sslpassword=secret"], ids=["password", "sslpassword"]
)
def test_password_in_the_query_of_a_url_is_refused_and_hidden(query):
    with pytest.raises(LaunchError, match="PGPASSWORD") as refused:
        require_server(f"postgresql+psycopg://me@host/studies{query}")
    assert "secret" not in str(refused.value)


@pytest.fixture
def mounted(monkeypatch):
    """Return a function that mounts file systems, as ``mounted({"/": "ext4"})``."""
    monkeypatch.delenv(shared_files.SHARED_VARIABLE, raising=False)

    def mount(kinds):
        found = [SimpleNamespace(mountpoint=path, fstype=kind) for path, kind in kinds.items()]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **_: found)

    return mount


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "fuse.sshfs", "9p"])
def test_file_on_a_network_file_system_is_shared(mounted, kind):
    mounted({"/": "ext4", "/data": kind})
    require_shared(Path("/data/text"), "corpus")


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "overlay", "fuse.gvfsd-fuse"])
def test_file_on_a_disk_of_the_machine_is_not_shared(mounted, kind, monkeypatch):
    mounted({"/": "nfs4", "/data": kind})
    with pytest.raises(LaunchError, match=rf"corpus /data/text is on a disk .*\({kind}\)"):
        require_shared(Path("/data/text"), "corpus")
    monkeypatch.setenv(shared_files.SHARED_VARIABLE, "/other:/data")
    require_shared(Path("/data/text"), "corpus")


def test_temporary_folder_is_not_shared_whatever_its_file_system(mounted, tmp_path):
    mounted({"/": "nfs4"})
    with pytest.raises(LaunchError, match="in the temporary folder of this machine"):
        require_shared(tmp_path / "text", "corpus")


def test_file_on_a_file_system_that_is_not_known_is_not_refused(mounted):
    mounted({})
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
