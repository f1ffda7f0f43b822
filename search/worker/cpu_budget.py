"""CPU cores, shared among the workers of one machine.

Two workers with two threads each on two cores train seven times slower together than two workers
with one thread each, because threads of one matrix product wait for each other. Workers find each
other by files that each one locks while it trains, and each takes its share of the cores.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Self
from uuid import uuid4

import torch
from filelock import FileLock, Timeout

_STALE_SECONDS = 3600
"""Age after which an unlocked file is removed; a younger one may be of a worker that starts."""


def cores() -> int:
    """Return the number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lock_dir() -> Path:
    """Return the folder of lock files of this user's workers on this machine."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return Path(tempfile.gettempdir()) / f"rnn-search-workers-{user}"


class ThreadBudget:
    """A worker's share of the cores; a context manager that takes and releases it.

    Args:
        fixed: fixed number of threads; None for an equal share of the cores that workers with a
            fixed number leave.
        folder: folder of the workers' lock files.
    """

    def __init__(self, fixed: int | None = None, folder: Path | None = None) -> None:
        self._fixed = fixed
        self._folder = folder or lock_dir()
        name = f"{os.getpid()}-{uuid4().hex[:8]}-{fixed or 'share'}"
        self._lock = FileLock(self._folder / name)

    def __enter__(self) -> Self:
        self.apply()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Leave the cores to other workers until the share is applied again."""
        if self._lock.is_locked:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def thread_count(self) -> int:
        """Return the number of threads of this worker's share now, at least one."""
        if self._fixed is not None:
            return self._fixed
        if not self._folder.is_dir():  # the temporary folder was cleared
            return torch.get_num_threads()
        active = sorted(path.name for path in self._folder.iterdir() if self._is_active(path))
        fixed = [int(name.rsplit("-", 1)[1]) for name in active if not name.endswith("-share")]
        sharing = [name for name in active if name.endswith("-share")]
        available = max(0, cores() - sum(fixed))
        each, remainder = divmod(available, max(1, len(sharing)))
        gets_one_more = Path(self._lock.lock_file).name in sharing[:remainder]
        return max(1, each + gets_one_more)

    def apply(self) -> int:
        """Set torch's threads to the share, and return it; cheap enough to call often."""
        if not self._lock.is_locked:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire()
        count = self.thread_count()
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        return count

    def _is_active(self, path: Path) -> bool:
        if path == Path(self._lock.lock_file):
            return True
        probe = FileLock(path)
        try:
            # The kernel releases the lock of a process, however that ends.
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                with probe.acquire(timeout=0):
                    path.unlink(missing_ok=True)
            else:
                probe.acquire(timeout=0)
                probe.release()
        except (Timeout, FileNotFoundError):
            return path.exists()
        return False
