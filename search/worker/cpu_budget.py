"""CPU cores, shared among the workers of one machine.

Two workers with two threads each on two cores train seven times slower together than two workers
with one thread each, because threads of one matrix product wait for each other. Workers find each
other by files that each one locks while it trains, and each takes its share of the cores.

The share is for training, by PyTorch. NumPy, which predicts final values, has a separate BLAS
library, which would use all cores.
"""

import contextlib
import logging
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Self
from uuid import uuid4

import numpy as np
import psutil
import torch
from filelock import FileLock, Timeout
from threadpoolctl import ThreadpoolController

_NAME = re.compile(r"[0-9]+-[0-9a-f]{8}-(share|[0-9]{1,9})")
"""Name of a lock file: the worker's process, a random part, its threads if they are fixed."""

_logger = logging.getLogger(__name__)


def cores() -> int:
    """Return the number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lock_dir() -> Path:
    """Return the folder of lock files of this user's workers on this machine."""
    return Path(tempfile.gettempdir()) / f"rnn-search-workers-{os.getuid()}"


class ThreadBudget:
    """A worker's share of the cores; a context manager that takes and releases it.

    A folder that cannot be used never stops the worker: it trains as if alone, with a warning.

    Args:
        fixed: fixed number of threads; None for an equal share of the cores that workers with a
            fixed number leave.
        folder: folder of the workers' lock files; :func:`lock_dir` by default.
    """

    def __init__(self, fixed: int | None = None, folder: Path | None = None) -> None:
        self._fixed = fixed
        self._folder = folder
        self._name = f"{os.getpid()}-{uuid4().hex[:8]}-{fixed or 'share'}"
        self._lock: FileLock | None = None
        self._has_warned = False

    def __enter__(self) -> Self:
        # Decisions about pruning take up to 10 times as long with two threads on shared cores.
        self._blas_limit = _numpy_blas().limit(limits=1)
        self._threads_before = torch.get_num_threads()
        self.apply()
        return self

    def __exit__(self, *error: object) -> None:
        # A report may follow, or other work of the script that ran the search.
        self._blas_limit.restore_original_limits()
        torch.set_num_threads(self._threads_before)
        self.release()

    def release(self) -> None:
        """Leave the cores to other workers until the share is applied again."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.release()
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock = None

    def thread_count(self) -> int:
        """Return the number of threads of this worker's share now, at least one."""
        if self._fixed is not None:
            return self._fixed
        if self._lock is None:
            return cores()
        try:
            active = self._list_active(Path(self._lock.lock_file).parent)
        except OSError:  # the temporary folder was cleared
            return torch.get_num_threads()
        fixed = [int(name.rsplit("-", 1)[1]) for name in active if not name.endswith("-share")]
        sharing = [name for name in active if name.endswith("-share")]
        available = max(0, cores() - sum(fixed))
        share, remainder = divmod(available, max(1, len(sharing)))
        gets_one_more = self._name in sharing[:remainder]
        return max(1, share + gets_one_more)

    def apply(self) -> int:
        """Set torch's threads to the share, and return it; cheap enough to call often.

        Only the training thread can: OpenMP's number of threads belongs to the thread that sets it.
        """
        if self._lock is None:
            self._lock = self._acquire()
        count = self.thread_count()
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        return count

    def _acquire(self) -> FileLock | None:
        try:
            folder = self._folder or lock_dir()
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700, parents=True)
            _require_private(folder)
            lock = FileLock(folder / self._name)
            lock.acquire()
            return lock
        except (OSError, NotImplementedError) as error:  # the latter where files cannot be locked
            if self._fixed is None and not self._has_warned:
                self._has_warned = True
                _logger.warning(
                    f"cannot count the workers of this machine ({error}): this one uses all cores, "
                    "as if it were alone; remove that folder, set TMPDIR to a private folder, "
                    "or give --threads"
                )
            return None

    def _list_active(self, folder: Path) -> list[str]:
        """Return the sorted names of the lock files of running workers."""
        _require_private(folder)
        # By the name first: anything else in the folder is left alone.
        paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(path.name for path in paths if path.name == self._name or _is_active(path))


def _require_private(folder: Path) -> None:
    """Require a folder that no other user can use.

    Raises:
        OSError: if it is missing, a link, not a folder, or open to others.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users")


def _is_active(path: Path) -> bool:
    """Return whether a worker holds a lock; remove its file if it is stale."""
    try:
        # The kernel releases the lock of a process, however that ends.
        with FileLock(path).acquire(timeout=0):
            # One that starts may not have locked its file yet.
            if not psutil.pid_exists(int(path.name.partition("-")[0])):
                path.unlink(missing_ok=True)
    except Timeout:
        return True
    except OSError:  # removed meanwhile, or unreadable
        return False
    return False


def _numpy_blas() -> ThreadpoolController:
    """Return the BLAS library that NumPy was installed with; none if it may be PyTorch's too."""
    package = Path(np.__file__).resolve().parent
    folders = {package, package.with_name("numpy.libs")}
    controller = ThreadpoolController()
    paths = [library["filepath"] for library in controller.info()]
    own = [path for path in paths if folders.intersection(Path(path).resolve().parents)]
    return controller.select(filepath=own)
