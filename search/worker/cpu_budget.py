"""The processor's cores, shared among the workers of one machine.

Two workers with two threads each on two cores train seven times slower together than two workers
with one thread each: the products' threads wait for each other. So the workers see each other, by
files that each keeps locked while it lives, and each takes its share.
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
"""A file that nobody locks is removed after this time; before, its worker may just be starting."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def registry() -> Path:
    """Return the folder in which this user's workers on this machine find each other."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return Path(tempfile.gettempdir()) / f"rnn-search-workers-{user}"


class ThreadBudget:
    """This worker's share of the cores, for as long as the context lasts.

    Args:
        fixed: a number of threads to keep to, whatever the others do; None for an equal share of
            what those with a fixed number leave.
        folder: where workers find each other.
    """

    def __init__(self, fixed: int | None = None, folder: Path | None = None) -> None:
        self._fixed = fixed
        self._folder = folder or registry()
        name = f"{os.getpid()}-{uuid4().hex[:8]}-{fixed or 'share'}"
        self._lock = FileLock(self._folder / name)

    def __enter__(self) -> Self:
        self.apply()
        return self

    def __exit__(self, *error: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Leave the cores to the others, until the share is taken again."""
        if self._lock.is_locked:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def share(self) -> int:
        """Return how many threads this worker should use now, at least one."""
        if self._fixed is not None:
            return self._fixed
        if not self._folder.is_dir():  # somebody has cleared the temporary folder
            return torch.get_num_threads()
        living = sorted(path.name for path in self._folder.iterdir() if self._lives(path))
        fixed = [int(name.rsplit("-", 1)[1]) for name in living if not name.endswith("-share")]
        sharing = [name for name in living if name.endswith("-share")]
        left = max(0, cores() - sum(fixed))
        each, over = divmod(left, max(1, len(sharing)))
        own = Path(self._lock.lock_file).name
        first = own in sharing[:over]  # whom the cores left over by the division go to
        return max(1, each + first)

    def apply(self) -> int:
        """Take the share, and return it. Cheap enough to be done some times a second."""
        if not self._lock.is_locked:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire()
        share = self.share()
        if torch.get_num_threads() != share:
            torch.set_num_threads(share)
        return share

    def _lives(self, path: Path) -> bool:
        if path == Path(self._lock.lock_file):
            return True
        probe = FileLock(path)
        try:
            # A lock is the kernel's: it ends with its process, however that ends.
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                with probe.acquire(timeout=0):
                    path.unlink(missing_ok=True)
            else:
                probe.acquire(timeout=0)
                probe.release()
        except (Timeout, FileNotFoundError):
            return path.exists()
        return False
