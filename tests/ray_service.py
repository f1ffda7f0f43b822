"""A Ray cluster of two nodes on this machine, for tests."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from hooks import HANG_TIMEOUT, ROOT
from process_runner import wait_until
from services import free_port, report_missing

COMMAND = Path(sys.executable).with_name("ray")

NOT_HEAD = {"not_head": 1}
"""Resource of all nodes but the head, which can be killed without ending the cluster."""

START_ATTEMPTS = 5

TOO_SLOW = "The current node timed out during startup"
"""Message of a node that has not started after half a minute, which Ray does not let one change."""

# Ray's nodes and workers are started by the tests: hooks reach a worker in its environment.
SITE = f"""
import os, sys
if os.environ.get("RNN_SEARCH_TEST_HOOKS"):
    sys.path.insert(0, {str(ROOT / "tests")!r})
    import hooks
    hooks.install()
"""


class RayNode:
    """Process that runs a node of a cluster, with its own folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir()
        self._folder = folder
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        environment = {**os.environ, "PYTHONPATH": str(site), "RAY_USAGE_STATS_ENABLED": "0"}
        # For jobs, which run "python".
        environment["PATH"] = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
        environment["OMP_NUM_THREADS"] = "1"
        # Ray looks for a node's death every few seconds otherwise.
        environment["RAY_health_check_period_ms"] = "500"
        # Workers have a low priority otherwise, and starve while other tests keep the cores busy.
        environment["RAY_worker_niceness"] = "0"
        self._process = subprocess.Popen(
            [
                str(COMMAND), "start", "--block", "--num-gpus=0", "--disable-usage-stats",
                "--object-store-memory=100000000", f"--temp-dir={folder}",
                "--dashboard-agent-listen-port=0", *arguments,
            ],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=(folder / "start.log").open("w"),
            stderr=subprocess.STDOUT,
            # As a shell starts it in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )  # fmt: skip

    def wait(self) -> bool:
        """Wait until the node belongs to the cluster; return False if it was too slow for Ray."""
        log = self._folder / "start.log"
        wait_until(lambda: "Ray runtime started" in log.read_text() or self._process.poll())
        if self._process.poll() is None:
            return True
        assert TOO_SLOW in log.read_text(), log.read_text()
        return False

    @property
    def processes(self) -> list[psutil.Process]:
        """All processes of the node, those of its workers included."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def holds(self, pid: int) -> bool:
        return pid in {process.pid for process in self.processes}

    def kill(self) -> None:
        """Kill all processes at once, as a failure of the machine."""
        processes = self.processes
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, HANG_TIMEOUT)
        self._process.wait(HANG_TIMEOUT)


class RayCluster:
    """Context that runs a Ray cluster on this machine, with its own ports and folders."""

    def __init__(self) -> None:
        if not COMMAND.exists() or shutil.which(str(COMMAND)) is None:
            report_missing("Ray")
        self.nodes: list[RayNode] = []

    def __enter__(self) -> "RayCluster":
        # Short: the path of a socket in it has at most 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        port, client = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.client_address = f"ray://127.0.0.1:{client}"
        try:
            self._add(
                "--head", "--num-cpus=1", f"--port={port}", f"--ray-client-server-port={client}",
                "--include-dashboard=False",
            )  # fmt: skip
            self.add_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self._folder.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which commands reach this cluster."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def add_node(self) -> RayNode:
        return self._add(
            f"--address={self.address}", "--num-cpus=1", f"--resources={json.dumps(NOT_HEAD)}"
        )

    def _add(self, *arguments: str) -> RayNode:
        for attempt in range(START_ATTEMPTS):
            folder = Path(self._folder.name) / f"{len(self.nodes)}-{attempt}"
            node = RayNode(folder, *arguments)
            self.nodes.append(node)
            if node.wait():
                return node
            self.nodes.remove(node)
            node.kill()
        raise AssertionError(f"no node of Ray has started in {START_ATTEMPTS} attempts")
