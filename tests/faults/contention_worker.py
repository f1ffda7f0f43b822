"""Start many workers at the same moment, with a stub instead of a trainer.

``python tests/faults/contention_worker.py URL WORKERS TRIALS`` prints, as JSON, the exit code of
each worker and the numbers of the trials that it claimed. Apart from the stub, the workers run the
code of a search. They are forked after all imports, which do not include torch.
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

from search.worker.claim import Claim
from search.worker.claims import ClaimManager
from search.worker.protocols import TrialResult, WorkerCallbacks
from search.worker.shutdown import ShutdownSignal
from search.worker.worker import Worker
from studies.storage.counts import count_trials
from studies.storage.open import open_storage

assert "torch" not in sys.modules


class StubTrainer:
    """Trainer that only records the numbers of its trials.

    The first trial ends once a quorum of workers has claimed one, so that claims do compete. Each
    of them creates a file in the folder.
    """

    min_keep_probability = 0.5

    def __init__(self, folder: Path, quorum: int) -> None:
        self.numbers: list[int] = []
        self._folder = folder
        self._quorum = quorum

    def lockstep_size(self, trial) -> int:
        return 1

    def lockstep_params(self, trial) -> Sequence[str]:
        return ()

    def train(self, claims: Sequence[Claim], poll, decide) -> Iterator[tuple[Claim, TrialResult]]:
        for claim in claims:
            self.numbers.append(claim.trial.number)
            claim.report(1, 1.0)
            (self._folder / f"claimed-{os.getpid()}").touch()
            while len(list(self._folder.glob("claimed-*"))) < self._quorum:
                poll()
                time.sleep(0.01)
            poll()
            yield claim, TrialResult(TrialState.COMPLETE, 1.0, {}, "complete")

    def release_cores(self, *arguments) -> None:
        """There are none, and no files."""

    save_checkpoints = clean_up = release_cores

    def describe_failure(self, error, claim):
        raise error


def work(url: str, trials: int, folder: Path, quorum: int) -> list[int]:
    """Create storage and study unless they exist; return the numbers of the claimed trials."""
    storage = open_storage(url)
    study_id = create_small_study(storage, trials)
    stop, trainer = ShutdownSignal(), StubTrainer(folder, quorum)
    with ClaimManager(storage, study_id, f"stub/{os.getpid()}", stop) as manager:
        Worker(
            manager, trainer, lambda: count_trials(storage, study_id), stop, WorkerCallbacks()
        ).run()
    return trainer.numbers


def main(url: str, workers: int, trials: int) -> None:
    """Start the workers and print exit codes and claimed trials."""
    hooks.make_patient()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith("postgresql"):
        importlib.import_module("psycopg")
    gate, release = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        with tempfile.TemporaryDirectory() as other:
            # Perform late imports before the fork.
            work(f"sqlite:///{other}/studies.db", 1, Path(other), 1)
        pids = []
        for _ in range(workers):
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    os.close(release)
                    os.read(gate, 1)  # returns in all workers once the writer is closed
                    numbers = work(url, trials, Path(folder), min(2, workers, trials))
                    Path(folder, f"numbers-{os.getpid()}").write_text(json.dumps(numbers))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            pids.append(pid)
        os.close(release)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        claimed = [json.loads(path.read_text()) for path in Path(folder).glob("numbers-*")]
    print(json.dumps({"codes": codes, "claimed": claimed}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
