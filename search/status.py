"""Where a study stands, read from its storage alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState

from rnn.config import TrialConfig
from search.errors import ShutdownRequestedError
from search.parameters import to_trial_config
from search.worker.claims import ClaimManager
from studies.attributes import Failure, is_grid_trial
from studies.config import StudyConfig
from studies.storage.counts import (
    TimingStats,
    TrialCounts,
    best_trial_id,
    count_retries,
    count_trials,
    timing_by_shape,
)
from studies.storage.storage import LeasedRDBStorage

ANSWER_SECONDS = 2.0
"""How long a display waits for the storage before it shows what it knows."""

PEEK_SECONDS = 0.5
"""How long a line of progress waits for the storage before it shows what was read last."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunningTrial:
    """A trial in a worker's hand.

    Attributes:
        number: of the trial.
        trial_config: its network.
        step: of the last log point, 0 before the first.
        steps: of the whole training.
        smoothed_loss: at that log point, nats a symbol.
    """

    number: int
    trial_config: TrialConfig
    step: int
    steps: int
    smoothed_loss: float | None = None

    @property
    def label(self) -> str:
        """The architecture in words, and the number of the replicate if it is not the first."""
        return self.trial_config.label


@dataclass(frozen=True)
class Best:
    """The best trial so far."""

    number: int
    value: float
    architecture: str


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        name: of the study.
        counts: of its points.
        best: None before the first complete trial.
        seconds_left: an estimate, at the present number of workers; None while it is not known.
        retries: how often points came back to be run again, by reason.
    """

    name: str
    counts: TrialCounts
    best: Best | None
    seconds_left: float | None
    retries: Mapping[Failure, int]

    def as_json(self) -> dict[str, Any]:
        """Return the status as ``--json`` prints it."""
        return {
            "study": self.name,
            "planned": self.counts.planned,
            **asdict(self.counts),
            "best": asdict(self.best) if self.best else None,
            "seconds_left": self.seconds_left,
            "retries": dict(self.retries),
        }


def status(
    study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig, workers: int = 0
) -> Status:
    """Read where a study stands.

    Args:
        study: to be read.
        storage: that holds it.
        config: of it.
        workers: known to be at work, even if none of them has a point in hand just now.
    """
    counts = count_trials(storage, study._study_id)
    best = None
    if (trial_id := best_trial_id(storage, study._study_id)) is not None:
        trial = storage.get_trial(trial_id)
        assert trial.value is not None
        best = Best(trial.number, trial.value, to_trial_config(trial.params, config).label)
    # A worker may hold many trials; plain Optuna's have no lease.
    running_leases = storage.running_leases(study._study_id).values()
    others = max(0, counts.running - len(running_leases))
    at_work = max(len({lease.worker for lease in running_leases}) + others, workers)
    left = None  # of points that wait it is not known which will be wanted
    if not (config.pruning.enabled and counts.waiting):
        left = seconds_left(timing_by_shape(storage, study._study_id), counts, at_work)
    retries = count_retries(storage, study._study_id)
    return Status(study.study_name, counts, best, left, retries)


class StatusReader:
    """Reads how a study stands for a display; while the storage is away, as it last stood.

    Args:
        study: to be read.
        storage: that holds it.
        config: of it.
        workers: known to be at work.
    """

    def __init__(
        self, study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig, workers: int = 0
    ) -> None:
        self._study = study
        self._storage = storage
        self._definition = config
        self._workers = workers
        self._keeper: ClaimManager | None = None
        self._status = self._read()
        self._running: list[RunningTrial] = []

    def read_through(self, keeper: ClaimManager) -> None:
        """Have a keeper's thread do what is read from now on: who shows it is not to be held up."""
        self._keeper = keeper

    def counts(self) -> TrialCounts:
        """Return the study's accounting; raises whatever the storage raises."""
        return count_trials(self._storage, self._study._study_id)

    def status(self) -> Status:
        """Return the study's status."""
        self._status = self._ask(self._read, self._status)
        return self._status

    def recent(self) -> Status:
        """Return the study's status as it was read last, now if the storage answers soon.

        Any thread may ask for it. It raises nothing and reports no outage.
        """

        def read() -> None:
            self._status = self._read()

        if self._keeper is not None and not self._keeper.trouble:
            self._keeper.peek(read, PEEK_SECONDS)
        return self._status

    def running(self) -> list[RunningTrial]:
        """Return the trials that workers hold."""

        def read() -> list[RunningTrial]:
            return running_trials(self._study, self._storage, self._definition)

        self._running = self._ask(read, self._running)
        return self._running

    def _read(self) -> Status:
        return status(self._study, self._storage, self._definition, self._workers)

    def _ask(self, query: Callable[[], _T], last: _T) -> _T:
        if self._keeper is None or self._keeper.trouble:
            return last
        try:
            return self._keeper.read(query, ANSWER_SECONDS)
        except ShutdownRequestedError:
            return last


def running_trials(
    study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig
) -> list[RunningTrial]:
    """Return the trials that workers hold now, in order."""
    found = []
    for trial in storage.get_all_trials(
        study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
    ):
        if not is_grid_trial(trial):
            continue
        step = max(trial.intermediate_values, default=0)
        found.append(
            RunningTrial(
                trial.number,
                to_trial_config(trial.params, config),
                step,
                config.training.steps,
                trial.intermediate_values.get(step),
            )
        )
    return found


def seconds_left(shapes: Sequence[TimingStats], counts: TrialCounts, workers: int) -> float | None:
    """Estimate what is left from what points of the same kind took.

    Args:
        shapes: of the study's points.
        counts: of the same points.
        workers: at work.

    Returns:
        Seconds; None while nobody works, or half of the points are still to come and some of them
        are of a shape of which nothing is known: the first may be the small ones, and the estimate
        a tenth of the truth.
    """
    if counts.finished == counts.planned:
        return 0.0
    complete = sum(shape.complete for shape in shapes)
    unknown = any(shape.waiting and not shape.complete for shape in shapes)
    if not workers or not complete or (unknown and counts.finished < counts.planned / 2):
        return None
    mean = sum(shape.seconds * shape.complete for shape in shapes) / complete
    seconds = sum(
        # Of those running, half is done on average.
        (shape.seconds if shape.complete else mean) * (shape.waiting + shape.running / 2)
        for shape in shapes
    )
    return seconds / workers
