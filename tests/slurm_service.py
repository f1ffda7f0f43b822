"""A SLURM cluster of several nodes on this machine, from system packages, for tests."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from hooks import HANG_TIMEOUT
from process_runner import wait_until
from services import free_port, report_missing

PROGRAMS = ("munged", "slurmctld", "slurmd")
PROGRAMS += ("sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
CompleteWait=0
KillWait=60
ReturnToService=2
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=600
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """Context that runs a SLURM cluster, with its own key, ports and folders."""

    def __init__(self) -> None:
        search_path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
        found = {name: shutil.which(name, path=search_path) for name in PROGRAMS}
        if missing := [name for name, path in found.items() if path is None]:
            report_missing(f"SLURM ({', '.join(missing)})")
        self._programs = {name: str(path) for name, path in found.items()}
        self.nodes = ["node0", "node1"]
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Slurm":
        self._folder = tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(Exception):
            self.end_jobs()
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(30)
            daemon.kill()
        self._folder.cleanup()

    def run(self, program: str, *arguments: str) -> str:
        done = self._call(program, *arguments)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """Return the state of each job, by its id: elements of an array as ``12_0``."""
        listed = self.run("squeue", "--noheader", "--array", "--format=%i %T").split("\n")
        return dict(line.split() for line in listed if line)

    def wait_for_restart(self, job: str, number: int) -> None:
        """Wait until a job that was requeued so many times runs; before, it may be finished."""

        def runs_again() -> bool:
            shown = self.run("scontrol", "show", "job", job)
            return f"Restarts={number} " in shown and "JobState=RUNNING" in shown

        wait_until(runs_again)

    def wait_for_no_job(self) -> None:
        wait_until(lambda: not self.jobs())

    def end_jobs(self) -> None:
        """Kill all jobs and wait until they have left the nodes."""

        def have_ended() -> bool:
            for job in self.jobs():
                self._call("scancel", job)
                self._call("scancel", "--full", "--signal=KILL", job)
            return not self.jobs()

        wait_until(have_ended)

    def resume_nodes(self) -> None:
        """Make nodes that were drained accept jobs again."""
        for name in self.nodes:
            self._call("scontrol", "update", f"NodeName={name}", "State=RESUME")
        wait_until(self._is_idle)

    @property
    def log(self) -> str:
        logs = sorted(Path(self._folder.name).glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in logs)

    def _call(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self._programs[program], *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=HANG_TIMEOUT,
        )

    def _start(self) -> None:
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        ports = [free_port() for _ in self.nodes]
        config = folder / "slurm.conf"
        config.write_text(
            CONFIG.format(
                host=os.uname().nodename,
                user=pwd.getpwuid(os.getuid()).pw_name,
                controller_port=free_port(),
                folder=folder,
                nodes="\n".join(
                    f"NodeName={name} NodeHostname={os.uname().nodename} NodeAddr=127.0.0.1 "
                    f"Port={port} CPUs=2 RealMemory=8000 State=UNKNOWN"
                    for name, port in zip(self.nodes, ports, strict=True)
                ),
            )
        )
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        self.environment = {"SLURM_CONF": str(config)}
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        )  # fmt: skip
        self._wait_for(lambda: (folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-f", str(config))
        for name in self.nodes:
            self._daemon("slurmd", "-D", "-N", name, "-f", str(config))
        self._wait_for(self._is_idle)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; fail if a daemon ends before."""

        def holds() -> bool:
            assert all(daemon.poll() is None for daemon in self._daemons), self.log
            return condition()

        wait_until(holds)

    def _daemon(self, program: str, *arguments: str) -> None:
        output = (Path(self._folder.name) / "daemons.log").open("ab")
        command, environment = [self._programs[program], *arguments], os.environ | self.environment
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        self._daemons.append(
            subprocess.Popen(command, env=environment, cwd=self._folder.name, **streams)
        )

    def _is_idle(self) -> bool:
        # The controller may not answer yet.
        listed = self._call("sinfo", "--noheader", "--Node", "--partition=test", "--format=%T")
        return listed.stdout.split() == ["idle"] * len(self.nodes)
