"""Where a study stands, read from its storage alone."""

from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from rnn.network import Member
from search.space import member_of
from studies.accounting import Accounting, accounting_of, durations_of
from studies.definition import Definition
from studies.storage import Storage


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
    """

    name: str
    accounting: Accounting
    best: Best | None
    seconds_left: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the status as ``--json`` prints it."""
        return {
            "study": self.name,
            "planned": self.accounting.planned,
            **asdict(self.accounting),
            "best": asdict(self.best) if self.best else None,
            "seconds_left": self.seconds_left,
        }


def status(study: optuna.Study, storage: Storage, definition: Definition) -> Status:
    """Read where a study stands."""
    accounting = accounting_of(storage, study._study_id)
    best = None
    if accounting.complete:
        trial = storage.get_best_trial(study._study_id)
        assert trial.value is not None
        best = Best(trial.number, trial.value, label(member_of(trial.params, definition)))
    return Status(study.study_name, accounting, best, _seconds_left(study, storage, accounting))


def running_trials(study: optuna.Study, storage: Storage, definition: Definition) -> list[Running]:
    """Return the trials that workers hold now, in order."""
    found = []
    for trial in storage.get_all_trials(
        study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
    ):
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
    """Return a network's architecture in words, and the number of its replicate."""
    return member.architecture.label + (f" #{member.replicate}" if member.replicate else "")


def _seconds_left(study: optuna.Study, storage: Storage, accounting: Accounting) -> float | None:
    """Estimate from what points of the same layers and state size took."""
    if accounting.finished == accounting.planned:
        return 0.0
    seconds = 0.0
    shapes = durations_of(storage, study._study_id)
    measured = [shape for shape in shapes if shape.complete]
    unknown = [shape for shape in shapes if shape.waiting and not shape.complete]
    # The first points may be the small ones: no estimate is better than a tenth of the truth.
    if (
        not measured
        or not accounting.running
        or (unknown and accounting.finished < accounting.planned / 2)
    ):
        return None
    mean = sum(s.seconds * s.complete for s in measured) / sum(s.complete for s in measured)
    for shape in shapes:
        each = shape.seconds if shape.complete else mean
        # Of those running, half is done on average.
        seconds += each * (shape.waiting + shape.running / 2)
    return seconds / accounting.running
