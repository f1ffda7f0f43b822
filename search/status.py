"""Where a study stands, read from its storage alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState

from rnn.member import Member
from search.claims import ClaimKeeper
from search.errors import Stopped
from search.space import member_of
from studies.accounting import (
    Accounting,
    Durations,
    accounting_of,
    best_of,
    durations_of,
    setbacks_of,
)
from studies.definition import Definition
from studies.records import Failure, is_point
from studies.storage import Storage

ANSWER_SECONDS = 2.0
"""How long a display waits for the storage before it shows what it knows."""

PEEK_SECONDS = 0.5
"""How long a line of progress waits for the storage before it shows what was read last."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Running:
    """A trial in a worker's hand.

    Attributes:
        number: of the trial.
        member: its network.
        step: of the last log point, 0 before the first.
        steps: of the whole training.
        smoothed_loss: at that log point, nats a symbol.
    """

    number: int
    member: Member
    step: int
    steps: int
    smoothed_loss: float | None = None

    @property
    def label(self) -> str:
        """The architecture in words, and the number of the replicate if it is not the first."""
        return label(self.member)


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
        accounting: of its points.
        best: None before the first complete trial.
        seconds_left: an estimate, at the present number of workers; None while it is not known.
        setbacks: how often points came back to be run again, by reason.
    """

    name: str
    accounting: Accounting
    best: Best | None
    seconds_left: float | None
    setbacks: Mapping[Failure, int]

    def as_json(self) -> dict[str, Any]:
        """Return the status as ``--json`` prints it."""
        return {
            "study": self.name,
            "planned": self.accounting.planned,
            **asdict(self.accounting),
            "best": asdict(self.best) if self.best else None,
            "seconds_left": self.seconds_left,
            "setbacks": dict(self.setbacks),
        }


def status(
    study: optuna.Study, storage: Storage, definition: Definition, workers: int = 0
) -> Status:
    """Read where a study stands.

    Args:
        study: to be read.
        storage: that holds it.
        definition: of it.
        workers: known to be at work, even if none of them has a point in hand just now.
    """
    accounting = accounting_of(storage, study._study_id)
    best = None
    if (trial_id := best_of(storage, study._study_id)) is not None:
        trial = storage.get_trial(trial_id)
        assert trial.value is not None
        best = Best(trial.number, trial.value, label(member_of(trial.params, definition)))
    # A worker may hold many trials; plain Optuna's have no lease.
    leases = storage.leases(study._study_id).values()
    others = max(0, accounting.running - len(leases))
    at_work = max(len({lease.worker for lease in leases}) + others, workers)
    left = None  # of points that wait it is not known which will be wanted
    if not (definition.pruning.enabled and accounting.waiting):
        left = seconds_left(durations_of(storage, study._study_id), accounting, at_work)
    setbacks = setbacks_of(storage, study._study_id)
    return Status(study.study_name, accounting, best, left, setbacks)


class StatusReader:
    """Reads how a study stands for a display; while the storage is away, as it last stood.

    Args:
        study: to be read.
        storage: that holds it.
        definition: of it.
        workers: known to be at work.
    """

    def __init__(
        self, study: optuna.Study, storage: Storage, definition: Definition, workers: int = 0
    ) -> None:
        self._study = study
        self._storage = storage
        self._definition = definition
        self._workers = workers
        self._keeper: ClaimKeeper | None = None
        self._status = self._read()
        self._running: list[Running] = []

    def read_through(self, keeper: ClaimKeeper) -> None:
        """Have a keeper's thread do what is read from now on: who shows it is not to be held up."""
        self._keeper = keeper

    def accounting(self) -> Accounting:
        """Return the study's accounting; raises whatever the storage raises."""
        return accounting_of(self._storage, self._study._study_id)

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

    def running(self) -> list[Running]:
        """Return the trials that workers hold."""

        def read() -> list[Running]:
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
        except Stopped:
            return last


def running_trials(study: optuna.Study, storage: Storage, definition: Definition) -> list[Running]:
    """Return the trials that workers hold now, in order."""
    found = []
    for trial in storage.get_all_trials(
        study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
    ):
        if not is_point(trial):
            continue
        step = max(trial.intermediate_values, default=0)
        found.append(
            Running(
                trial.number,
                member_of(trial.params, definition),
                step,
                definition.training.steps,
                trial.intermediate_values.get(step),
            )
        )
    return found


def label(member: Member) -> str:
    """Return a network in words: its architecture, its gradient window, which replicate it is."""
    window = f", window {member.gradient_window}" if member.gradient_window > 1 else ""
    replicate = f" #{member.replicate}" if member.replicate else ""
    return f"{member.architecture.label}{window}{replicate}"


def seconds_left(shapes: Sequence[Durations], accounting: Accounting, workers: int) -> float | None:
    """Estimate what is left from what points of the same kind took.

    Args:
        shapes: of the study's points.
        accounting: of the same points.
        workers: at work.

    Returns:
        Seconds; None while nobody works, or half of the points are still to come and some of them
        are of a shape of which nothing is known: the first may be the small ones, and the estimate
        a tenth of the truth.
    """
    if accounting.finished == accounting.planned:
        return 0.0
    complete = sum(shape.complete for shape in shapes)
    unknown = any(shape.waiting and not shape.complete for shape in shapes)
    if not workers or not complete or (unknown and accounting.finished < accounting.planned / 2):
        return None
    mean = sum(shape.seconds * shape.complete for shape in shapes) / complete
    seconds = sum(
        # Of those running, half is done on average.
        (shape.seconds if shape.complete else mean) * (shape.waiting + shape.running / 2)
        for shape in shapes
    )
    return seconds / workers
