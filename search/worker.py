"""A worker: claim a point → train its network → report → record, until no point is left."""

import math
import os
import platform
import socket
import time
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

import torch
from optuna.exceptions import OptunaError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from rnn.evaluation import bits, held_out_losses
from rnn.network import Member, Population
from rnn.training import LogPoint, Training, train
from search.joining import Joined
from search.space import member_of
from search.status import Running
from search.stopping import StopRequest
from search.threads import ThreadBudget
from studies.accounting import accounting_of
from studies.errors import ClaimLost
from studies.records import Failure, TrialRecord

LOOK_SECONDS = 0.25
"""Between two looks, in the midst of training, at the other workers and at what signals ask."""

POLL_SECONDS = 1.0
"""Between two looks for a point, while the last ones are in other workers' hands."""


@dataclass(frozen=True)
class Ended:
    """A trial that a worker has done with, as it is told of."""

    running: Running
    outcome: str
    value: float | None
    seconds: float


class Listener(Protocol):
    """Whom a worker tells of itself."""

    def advanced(self, running: Running) -> None:
        """The trial in hand has come to a log point."""

    def ended(self, ended: Ended) -> None:
        """The trial in hand is done with."""

    def waits(self) -> None:
        """No point is left to claim, but others still hold some."""


class _Stopped(Exception):
    """A stop was asked for in the midst of training."""


class Worker:
    """Works on a study until all its points are finished.

    Args:
        joined: the study.
        device: on which to train.
        budget: of threads, entered.
        stop: looked at between steps.
        listener: told of every log point.
        wait: stay until the points that others hold are finished too.
    """

    def __init__(
        self,
        joined: Joined,
        device: torch.device,
        budget: ThreadBudget,
        stop: StopRequest,
        listener: Listener,
        wait: bool = True,
    ) -> None:
        self.joined = joined
        self.device = device
        self.budget = budget
        self.stop = stop
        self.listener = listener
        self.wait = wait
        self.name = f"{socket.gethostname()}/{os.getpid()}"

    def run(self) -> None:
        """Work. Returns when a stop is asked for, or no point is left."""
        storage, study_id = self.joined.storage, self.joined.study_id
        while not self.stop.requested:
            owner = f"{self.name}/{uuid4().hex}"
            trial_id = storage.claim(study_id, owner)
            if trial_id is not None:
                _Claim(self, trial_id, owner).run()
                continue
            accounting = accounting_of(storage, study_id)
            if not self.wait or accounting.finished == accounting.planned:
                return
            self.listener.waits()
            self.stop.wait(POLL_SECONDS)


class _Claim:
    """One trial in a worker's hand, from its claim to its end."""

    def __init__(self, worker: Worker, trial_id: int, owner: str) -> None:
        self.worker = worker
        self.joined = worker.joined
        self.trial_id = trial_id
        self.owner = owner
        self.definition = self.joined.definition
        trial = self.joined.storage.get_trial(trial_id)
        self.member: Member = member_of(trial.params, self.definition)
        self.settings = Training(**self.definition.training.model_dump(), seed=self.definition.seed)
        self.running = Running(trial.number, self.member, 0, self.settings.steps)
        self.started = time.monotonic()
        self.trained_seconds = 0.0
        self.looked = self.started

    def run(self) -> None:
        """Train and record, or give the point back."""
        try:
            self._train_or_fail()
        except ClaimLost:
            self._end("dropped: another worker holds it now", None)
        except BaseException:  # the storage, a closed pipe, a second Ctrl-C: the point is not lost
            self._try_to_give_back()
            raise

    def _train_or_fail(self) -> None:
        try:
            self._train()
        except _Stopped:
            self.joined.storage.give_back(self.trial_id, self.owner)
            self._end("given back", None)
        except (ClaimLost, SQLAlchemyError, OptunaError):
            raise
        except Exception as error:  # whatever it is, it is this point's, and others may do well
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            self._finish(TrialState.FAIL, None, failure=Failure.EXCEPTION, error=line)
            self._end(f"failed ({line})", None)

    def _train(self) -> None:
        precision = self.definition.precision
        assert precision != "auto", "resolved when the study was made"
        population = Population([self.member], self.definition.seed, precision)
        population.to(self.worker.device)
        least = math.inf
        for point in train(population, self.joined.corpus.train, self.settings, self._look):
            (smoothed,) = point.smoothed_losses
            self._report(point, smoothed)
            if not math.isfinite(smoothed):
                self._finish(TrialState.FAIL, None, failure=Failure.DIVERGED)
                self._end("diverged", None)
                return
            least = min(least, smoothed)
        self.trained_seconds = time.monotonic() - self.started
        evaluation = self.definition.evaluation
        losses = held_out_losses(
            population, self.joined.corpus.validation, evaluation.lanes, evaluation.lane_length
        )  # (1, lanes)
        validation = bits(float(losses.mean()))
        if not math.isfinite(validation):  # after the last log point, or on other text
            self._finish(TrialState.FAIL, None, failure=Failure.DIVERGED)
            self._end("diverged", None)
            return
        self._finish(TrialState.COMPLETE, least, validation_bits_per_character=validation)
        self._end("complete", least)

    def _look(self) -> None:
        """Look up from training, now and then."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        if self.worker.stop.requested:
            raise _Stopped
        self.worker.budget.apply()

    def _report(self, point: LogPoint, smoothed: float) -> None:
        self.joined.storage.report(self.trial_id, self.owner, {point.step: smoothed})
        self.running = replace(self.running, step=point.step, smoothed_loss=smoothed)
        self.worker.listener.advanced(self.running)

    def _finish(self, state: TrialState, value: float | None, **found: object) -> None:
        now = time.monotonic() - self.started
        trained = self.trained_seconds or now
        record = TrialRecord(
            parameter_count=self.member.architecture.parameter_count(),
            steps_per_second=self.running.step / trained if trained else 0.0,
            seconds=now,
            host=socket.gethostname(),
            worker=self.worker.name,
            device=str(self.worker.device),
            threads=torch.get_num_threads(),
            precision=self.definition.precision,
            seed=self.definition.seed,
            replicate=self.member.replicate,
            python=platform.python_version(),
            torch=torch.__version__,
            **found,
        )
        self.joined.storage.finish(self.trial_id, self.owner, state, value, record.attributes())

    def _end(self, outcome: str, value: float | None) -> None:
        seconds = time.monotonic() - self.started
        self.worker.listener.ended(Ended(self.running, outcome, value, seconds))

    def _try_to_give_back(self) -> None:
        try:
            self.joined.storage.give_back(self.trial_id, self.owner)
        except (SQLAlchemyError, OptunaError, ClaimLost):
            return  # the storage is what is broken
