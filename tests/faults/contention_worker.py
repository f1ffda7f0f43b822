"""A crowd of workers that all start at the same moment, with a trainer that trains nothing.

``python tests/faults/contention_worker.py URL WORKERS TRIALS``: prints, as JSON, the exit code of
each worker
and the trials that it had. The workers are the project's own; what they import is imported once,
and none of it is torch.
"""

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import hooks
import optuna
from helpers import create_small_study
from optuna.trial import TrialState

from search.worker.claims import Claim, ClaimManager
from search.worker.protocols import TrialResult, WorkerCallbacks
from search.worker.shutdown import ShutdownSignal
from search.worker.worker import Worker
from studies.storage.counts import count_trials
from studies.storage.open import open_storage

assert "torch" not in sys.modules


class Stub:
    """Trains nothing, and keeps the numbers of its trials.

    Its first trial ends when another worker has one too: one worker alone would test nothing.

    Args:
        folder: where each worker that has a trial leaves a file.
        crowd: how many workers must have one.
    """

    min_keep_probability = 0.5

    def __init__(self, folder: Path, crowd: int) -> None:
        self.numbers: list[int] = []
        self._folder = folder
        self._crowd = crowd

    def lockstep_size(self, trial) -> int:
        return 1

    def train(self, claims: Sequence[Claim], poll, decide) -> Iterator[tuple[Claim, TrialResult]]:
        for claim in claims:
            self.numbers.append(claim.trial.number)
            claim.report(1, 1.0)
            (self._folder / f"claimed-{os.getpid()}").touch()
            while len(list(self._folder.glob("claimed-*"))) < self._crowd:
                poll()
                time.sleep(0.01)
            poll()
            yield claim, TrialResult(TrialState.COMPLETE, 1.0, {}, "complete")

    def release_cores(self) -> None:
        return

    def save_checkpoints(self, claims: Sequence[Claim]) -> None:
        return

    def clean_up(self, number: int) -> None:
        return

    def describe_failure(self, error, claim):
        raise error


def work(url: str, trials: int, folder: Path, crowd: int) -> list[int]:
    """Work on a study that may not exist yet, nor its storage; return the trials' numbers."""
    storage = open_storage(url)
    study_id = create_small_study(storage, trials)
    stop, stub = ShutdownSignal(), Stub(folder, crowd)
    with ClaimManager(storage, study_id, f"stub/{os.getpid()}", stop, lambda line: None) as manager:
        Worker(
            manager, stub, lambda: count_trials(storage, study_id), stop, WorkerCallbacks()
        ).run()
    return stub.numbers


def main(url: str, workers: int, trials: int) -> None:
    """Start the crowd, and print what became of it."""
    hooks.make_patient()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith("postgresql"):
        importlib.import_module("psycopg")
    gate, release = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        with tempfile.TemporaryDirectory() as other:
            # Also what is imported late is imported once.
            work(f"sqlite:///{other}/studies.db", 1, Path(other), 1)
        pids = []
        for _ in range(workers):
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    os.close(release)
                    os.read(gate, 1)  # until the other end is closed: by all at once
                    numbers = work(url, trials, Path(folder), min(2, workers, trials))
                    Path(folder, f"had-{os.getpid()}").write_text(json.dumps(numbers))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            pids.append(pid)
        os.close(release)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        claimed = [json.loads(path.read_text()) for path in Path(folder).glob("had-*")]
    print(json.dumps({"codes": codes, "claimed": claimed}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
