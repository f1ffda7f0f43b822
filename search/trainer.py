"""One point of the grid: its network trained and measured, from the start or from a checkpoint."""

import math
import platform
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tenacity
import torch
from optuna.trial import TrialState

from rnn.architecture import Member
from rnn.checkpoint import read_checkpoint, write_checkpoint
from rnn.device import is_out_of_memory
from rnn.errors import CheckpointError
from rnn.evaluation import bits, held_out_losses
from rnn.fingerprint import code_fingerprint
from rnn.network import Population, Precision
from rnn.training import Run, Training
from search.checkpoints import Checkpoints
from search.claims import Claim
from search.joining import Joined
from search.space import member_of
from search.status import Running
from search.threads import ThreadBudget
from search.worker import Outcome
from studies.records import Failure, TrialRecord


class Audience(Protocol):
    """Whom a trainer tells of itself."""

    def advanced(self, running: Running) -> None:
        """The trial in hand has come to a log point."""

    def says(self, line: str) -> None:
        """Something that a person should know."""


class Trainer:
    """Trains the points of a study, one at a time.

    Args:
        joined: the study.
        device: on which to train.
        budget: of threads, entered.
        checkpoints: of the study's trials.
        audience: told of every log point.
        worker: this worker's name.
    """

    def __init__(
        self,
        joined: Joined,
        device: torch.device,
        budget: ThreadBudget,
        checkpoints: Checkpoints,
        audience: Audience,
        worker: str,
    ) -> None:
        definition = joined.definition
        assert definition.precision != "auto", "resolved when the study was made"
        self.joined = joined
        self.definition = definition
        self.precision: Precision = definition.precision
        self.device = device
        self.budget = budget
        self.checkpoints = checkpoints
        self.audience = audience
        self.worker = worker
        self._run: Run | None = None
        self.settings = Training(**definition.training.model_dump(), seed=definition.seed)

    def train(self, claim: Claim, look: Callable[[], bool]) -> Outcome:
        """Run a trial to its end; see :class:`search.worker.Trainer`."""
        self._run = None
        member = member_of(claim.trial.params, self.definition)
        population = Population([member], self.definition.seed, self.precision)
        run = Run(population.to(self.device), self.joined.corpus.train, self.settings)
        self._go_on(claim, run)
        self._run = run
        written = time.monotonic()

        def between_steps() -> None:
            nonlocal written
            if not look():
                return
            self.budget.apply()
            if time.monotonic() - written >= self.definition.checkpoint.seconds:
                self.keep(claim)
                written = time.monotonic()

        return self._train_and_measure(claim, run, member, between_steps)

    def keep(self, claim: Claim) -> None:
        """Write a checkpoint of the trial that was trained last, at whatever step it is."""
        if self._run is None:
            return
        number = claim.trial.number
        try:
            self.checkpoints.write(number, write_checkpoint(self._run, self._identity(claim)))
        except Exception as error:  # a full disk, a bucket that is away: training is not to suffer
            self.audience.says(
                f"warning: the checkpoint of trial {number} could not be written ({error}); the "
                "one before it stands"
            )

    def forget(self, claim: Claim) -> None:
        """Remove the checkpoint of a finished trial."""
        try:
            self.checkpoints.remove(claim.trial.number)
        except Exception as error:
            self.audience.says(
                f"warning: the checkpoint of trial {claim.trial.number} could not be removed "
                f"({error})"
            )

    def failure(self, error: Exception, claim: Claim) -> tuple[Failure, Mapping[str, Any]]:
        """Return the cause of an error, and what to record of a trial that it ends for good."""
        cause = Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.EXCEPTION
        member = member_of(claim.trial.params, self.definition)
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return cause, self._record(member, 0.0, 0.0, failure=cause, error=line)

    def _train_and_measure(
        self, claim: Claim, run: Run, member: Member, between_steps: Callable[[], None]
    ) -> Outcome:
        if not all(math.isfinite(point.smoothed_losses[0]) for point in run.curve):
            return self._diverged(run, member)  # and the last worker could not record it
        for point in run.train(between_steps):
            (smoothed,) = point.smoothed_losses
            claim.report(point.step, smoothed)
            self.audience.advanced(
                Running(claim.trial.number, member, point.step, self.settings.steps, smoothed)
            )
            if not math.isfinite(smoothed):
                return self._diverged(run, member)
        began = time.monotonic()
        evaluation = self.definition.evaluation
        losses = held_out_losses(
            run.population,
            self.joined.corpus.validation,
            evaluation.lanes,
            evaluation.lane_length,
            between_steps,
        )  # (1, lanes)
        validation = bits(float(losses.mean()))
        if not math.isfinite(validation):  # after the last log point, or on other text
            return self._diverged(run, member)
        attributes = self._record(
            member,
            self.settings.steps / run.seconds,
            run.seconds + time.monotonic() - began,
            validation_bits_per_character=validation,
        )
        value = min(point.smoothed_losses[0] for point in run.curve)
        return Outcome(TrialState.COMPLETE, value, attributes, "complete")

    def _diverged(self, run: Run, member: Member) -> Outcome:
        attributes = self._record(
            member, run.step / run.seconds, run.seconds, failure=Failure.DIVERGED
        )
        return Outcome(TrialState.FAIL, None, attributes, "diverged")

    def _record(
        self, member: Member, steps_per_second: float, seconds: float, **found: object
    ) -> Mapping[str, Any]:
        return TrialRecord(
            parameter_count=member.architecture.parameter_count(),
            steps_per_second=steps_per_second,
            seconds=seconds,
            host=socket.gethostname(),
            worker=self.worker,
            device=str(self.device),
            threads=torch.get_num_threads(),
            precision=self.precision,
            seed=self.definition.seed,
            replicate=member.replicate,
            python=platform.python_version(),
            torch=torch.__version__,
            code=code_fingerprint(),
            **found,
        ).attributes()

    # ------------------------------------------------------------------ checkpoints

    def _go_on(self, claim: Claim, run: Run) -> None:
        """Bring a run to where the trial's last worker left it, if that is known."""
        number = claim.trial.number
        written = None
        try:
            written = _read_patiently(self.checkpoints, number)
        except Exception as error:
            self.audience.says(
                f"warning: the checkpoint of trial {number} could not be read ({error}); it starts "
                "afresh"
            )
        if written is not None:
            try:
                read_checkpoint(run, self._identity(claim), written)
            except CheckpointError as error:
                self._set_aside(number, written, error)
        curve = {point.step: point.smoothed_losses[0] for point in run.curve}
        if claim.trial.intermediate_values != curve:
            claim.begin_with(curve)
        if run.step:
            self.audience.says(f"trial {number} goes on from step {run.step:,}")

    def _set_aside(self, number: int, written: bytes, error: CheckpointError) -> None:
        try:
            place = f"it is set aside as {self.checkpoints.set_aside(number, written)}"
        except Exception as failed:
            place = f"it could not be set aside ({failed})"
        self.audience.says(f"warning: trial {number}: {error}; {place}, the trial starts afresh")

    def _identity(self, claim: Claim) -> str:
        """Return all that a trial's numbers follow from, threads and device apart."""
        member = member_of(claim.trial.params, self.definition)
        parts = (
            member.architecture.key,
            member.replicate,
            self.precision,
            self.settings,
            self.joined.corpus.sha256,
            self.joined.corpus.split,
        )
        return " ".join(map(str, parts))


@tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.5), reraise=True)
def _read_patiently(checkpoints: Checkpoints, number: int) -> bytes | None:
    return checkpoints.read(number)
