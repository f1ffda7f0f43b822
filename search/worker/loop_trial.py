"""The live trial of a user's training loop."""

import contextlib
import hashlib
import json
import logging
import math
import operator
import platform
import socket
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from optuna import TrialPruned
from optuna.trial import TrialState

from rnn.errors import UserError, is_out_of_memory
from search.errors import ShutdownRequestedError, format_error
from search.pruning.policy import PruneDecision
from search.pruning.scheduler import compute_rungs
from search.worker.claims import Claim
from search.worker.loop_state import LoopState, check, pack
from search.worker.queue import STORAGE_ERRORS, TrialResult
from search.worker.versions import earlier_versions
from studies.attributes import (
    RESULT_NAMES,
    Failure,
    TrialRecord,
    parse_trial_attribute,
)
from studies.messages import expect_one_of, shorten
from studies.space import REPLICATE, replicate_of

if TYPE_CHECKING:
    from search.worker.loop_worker import LoopWorker

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


class TrialStoppedError(UserError, TrialPruned):
    """The trial ends here: it was pruned, paused, lost or requeued for a shutdown.

    ``with trial:`` suppresses it. Code of the loop that catches every exception must let it pass.
    It is an ``optuna.TrialPruned``, so that an objective of Optuna lets it pass as well.
    """


def derive_seed(seed: int, replicate: int) -> int:
    """Return the seed of a trial, 32 bits that depend on the study's seed and the replicate."""
    digest = hashlib.sha256(f"{seed}/{replicate}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


class Trial:
    """A claimed trial, as the training loop of a user sees it; a context manager.

    The block ends quietly if the trial is pruned, paused or lost, or the process is asked to stop.
    Of any other exception the trial is requeued, and the exception leaves the block. A thread keeps
    the lease meanwhile.

    Attributes:
        number: number of the trial in the study.
        params: value of each parameter, without the replicate.
        replicate: number of the replicate; 0 in a study without replicates.
        seed: seed of this trial, which follows from the study's seed and the replicate alone: all
            configurations of a replicate share it.
    """

    def __init__(self, worker: "LoopWorker", claim: Claim) -> None:
        config = worker.config
        assert config.loop is not None
        self.number = claim.trial.number
        self.params = {
            name: value for name, value in claim.trial.params.items() if name != REPLICATE
        }
        self.replicate = replicate_of(claim.trial.params)
        self.seed = derive_seed(config.seed, self.replicate)
        self._config = config
        self._loop = config.loop
        self._worker = worker
        self._queue = worker.queue
        self._versions = worker.versions
        self._claim = claim
        self._held = contextlib.ExitStack()
        self._outcome = ""  # why the trial has ended; "" while it is held
        self._state: LoopState | None = None  # that it resumes from
        self._has_begun = False
        self._step = 0
        self._curve: dict[int, float] = {}
        self._metrics: dict[str, dict[int, float]] = {}
        self._user_attrs: dict[str, Any] = {}
        self._started_at = time.monotonic()
        self._saved_at = self._started_at
        self._saves = False
        self._is_stopping = False
        self._awaits_save = False
        self._decision: PruneDecision | None = None
        is_pruned = config.pruning.enabled
        rungs = compute_rungs(self._loop.steps, self._loop.log_every) if is_pruned else ()
        self._rungs = {rung.step for rung in rungs}

    # ------------------------------------------------------------------ the block

    def __enter__(self) -> Self:
        self._require_held()
        self._held.enter_context(self._queue.holding())
        self._held.push(self._settle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        is_left = False  # by an exception
        try:
            is_left = not self._held.__exit__(kind, error, trace) and error is not None
        except BaseException:  # of any kind, such as a storage that was unavailable for too long
            is_left = True
            raise
        finally:
            self._outcome = self._outcome or "requeued"
            if is_left:
                self._worker.close()
        return not is_left

    def _settle(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Settle the trial as its block has ended; return whether the exception ends here."""
        if self._outcome:  # settled, or lost
            return isinstance(error, TrialPruned)
        if error is None:
            if self.number in self._worker.unfinished:
                raise UserError(
                    f"trial {self.number} ended twice without trial.finish(value): expected it at "
                    "the end of the block, or optuna.TrialPruned"
                )
            self._worker.unfinished.add(self.number)
            _logger.warning(f"trial {self.number} ended without trial.finish(value): requeued")
            self._requeue()
            return False
        if isinstance(error, TrialPruned):
            self._prune()
            return True
        if isinstance(error, self._worker.catch) and not isinstance(error, STORAGE_ERRORS):
            _logger.warning(f"trial {self.number} raised {format_error(error)}{_locate(error)}")
            cause = Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.EXCEPTION
            attributes = self._record_attributes(failure=cause, error=format_error(error))
            self._queue.fail(self._claim, error, cause, attributes)
            self._outcome = "failed"
            return True
        return False

    @property
    def is_held(self) -> bool:
        """Whether the trial has not ended yet."""
        return not self._outcome

    def _requeue(self) -> None:
        """End the trial here; another worker resumes it."""
        self._queue.requeue_in_time()
        self._outcome = "requeued"

    def _require_held(self) -> None:
        if self._outcome == "complete":
            raise UserError(f"trial {self.number} is finished: expected no call after trial.finish")
        if self._outcome:
            raise TrialStoppedError(f"trial {self.number} has ended: {self._outcome}")

    def _stop(self, outcome: str) -> TrialStoppedError:
        """Return the exception that ends the block of a trial that this worker no longer holds."""
        self._outcome = outcome
        return TrialStoppedError(f"trial {self.number} has ended: {outcome}")

    # ------------------------------------------------------------------ the loop

    def resume(self, default: _T | None = None) -> Any:
        """Return the step and the state that were saved last, on any machine.

        Args:
            default: what to return where nothing was saved.

        Returns:
            The step, and what :meth:`save` was given: bytes, the path of a file in a temporary
            folder that exists until the block ends, or the tensors on the CPU. Log points after
            that step are dropped.
        """
        self._require_held()
        if self._has_begun:
            raise UserError("resume: expected the call before the first log, save or finish")
        self._has_begun = True
        self._saved_at = time.monotonic()
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        saved: list[Any] = []

        def decode(claim: Claim, content: bytes) -> LoopState:
            state = LoopState.deserialize(content)
            saved.append(state.unpack(folder))
            return state

        state = self._queue.checkpoints.resume([self._claim], decode)[self._claim]
        if state is None:
            return default
        self._state = state
        self._saves = True
        self._step = state.step
        self._curve = dict(state.curve)
        self._metrics = {name: dict(points) for name, points in state.metrics.items()}
        self._user_attrs = {**state.user_attrs, **self._user_attrs}
        return state.step, saved[0]

    def log(self, step: int, /, **values: float) -> None:
        """Log the metric of the study, and others, at a step.

        Values at multiples of ``loop.log_every`` are stored; at others this only looks whether the
        trial goes on. A stored value is a number, or a tensor of one.

        Raises:
            TrialStoppedError: if the trial was pruned or lost, or the process is to stop.
            UserError: if the step is before the last one or after ``loop.steps``.
        """
        decision = self._record(step, values)
        if decision is not None and decision.is_final:
            self._prune()
            raise self._stop("pruned")

    def save(self, step: int, state: Any) -> None:
        """Save the state of the loop after a step, if that is due.

        It is due every ``checkpoint.seconds``, where the trial is to be paused, and where the
        process is to stop.

        Args:
            step: number of steps that the state has done; log what is to be kept of them before.
            state: bytes, the path of a file, or what ``torch.save`` writes and ``torch.load``
                reads with ``weights_only``: tensors, numbers and texts in dicts and lists.

        Raises:
            TrialStoppedError: if the trial was paused or lost, or the process is to stop.
            UserError: if the state cannot be saved.
        """
        step = self._begin(step)
        self._worker.saves = True
        pause = None if self._decision is None or self._decision.is_final else self._decision
        now = time.monotonic()
        is_due = now - self._saved_at >= self._config.checkpoint.seconds
        self._awaits_save = False
        if not self._saves:
            check(state)
            self._saves = True
        if not (is_due or pause or self._is_stopping):
            return
        is_written = self._write(step, state)
        self._saved_at = time.monotonic()
        if self._is_stopping:
            self._requeue()
            raise self._stop("the process stops")
        if pause is not None and is_written:  # without a checkpoint it could not resume
            attributes = {**self._record_attributes(), **pause.attributes}
            message = f"paused at step {step:,}"
            self._queue.settle(
                self._claim, TrialResult(TrialState.WAITING, None, attributes, message)
            )
            raise self._stop("paused")

    def finish(self, value: float) -> None:
        """Finish the trial with its value; one that is not finite is recorded as diverged.

        Raises:
            TrialStoppedError: if the trial was lost.
            UserError: if the value is no number.
        """
        self._begin(self._step)
        number = _to_number(f"value of trial {self.number}", value)
        attributes = self._record_attributes()
        result = TrialResult(TrialState.COMPLETE, number, attributes, "complete")
        if not math.isfinite(number):
            attributes = self._record_attributes(failure=Failure.DIVERGED)
            result = TrialResult(TrialState.FAIL, None, attributes, "diverged")
        if self._rungs and not self._curve:
            _logger.warning(f"trial {self.number} logged no {self._loop.metric}: it is not pruned")
        self._queue.settle(self._claim, result)
        if self._claim.is_lost:
            raise self._stop("lost: claimed by another worker after its lease expired")
        self._outcome = "complete"

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute, which is stored when the trial ends.

        ``parameter_count`` is the number of weights, against which reports show the value.

        Raises:
            UserError: if the program records an attribute of this name itself, or the value cannot
                be stored.
        """
        if key == "parameter_count":
            value = int(_to_number(f"set_user_attr {key}", value))
        elif key in RESULT_NAMES:
            raise UserError(f"set_user_attr: {key} is recorded by the program: use another name")
        try:
            parse_trial_attribute(key, json.dumps(value))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"set_user_attr: {key} is {shorten(repr(value))}: expected what JSON can store "
                f"({error})"
            ) from error
        self._user_attrs[key] = value

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The user attributes that the loop has set."""
        return dict(self._user_attrs)

    # ------------------------------------------------------------------ Optuna's words

    def report(self, value: float, step: int) -> None:
        """Log the metric of the study as in Optuna; :meth:`should_prune` says whether to stop.

        Raises:
            TrialStoppedError: if the trial was lost, or the process is to stop.
        """
        self._record(step, {self._loop.metric: value})

    def should_prune(self) -> bool:
        """Return whether the trial was pruned at the last reported step."""
        return self._decision is not None and self._decision.is_final

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the value of a parameter, which the study's grid has chosen.

        Raises:
            UserError: if the trial has no such parameter, or its value is not among the choices.
        """
        value = self._find(name)
        if value not in choices:
            raise UserError(
                f"trial {self.number} has {name} = {value!r}: expected it among the choices "
                f"{shorten(repr(list(choices)))}; state them in [space]"
            )
        return value

    def suggest_float(self, name: str, low: float, high: float, **options: Any) -> float:
        """Return the value of a parameter between two bounds, which the study's grid has chosen."""
        value: Any = self._find(name)
        if isinstance(value, str) or not low <= value <= high:
            raise UserError(
                f"trial {self.number} has {name} = {value!r}: expected a number from {low} to "
                f"{high}; state its values in [space]"
            )
        return float(value)

    def suggest_int(self, name: str, low: int, high: int, **options: Any) -> int:
        """Return the value of a parameter between two bounds, which the study's grid has chosen."""
        return int(self.suggest_float(name, low, high))

    def _find(self, name: str) -> Any:
        if name not in self.params:
            raise UserError(
                f"trial {self.number} has no parameter {name!r}: {expect_one_of(self.params, name)}"
            )
        return self.params[name]

    # ------------------------------------------------------------------ helpers

    def _begin(self, step: int) -> int:
        """Check what happened since the last call, and that steps go on; return the step.

        Raises:
            TrialStoppedError: if the trial has ended, or was lost.
            UserError: if the step is before the last one or after ``loop.steps``, or no integer.
        """
        self._require_held()
        if not self._has_begun:  # a loop that does not resume starts from step 0
            self._has_begun = True
            self._claim.replace_curve({})
        try:
            step = operator.index(step)  # databases do not store those of NumPy
        except TypeError as error:
            raise UserError(f"step {step!r} is no integer: expected the steps done") from error
        if not self._step <= step <= self._loop.steps:
            raise UserError(
                f"step {step:,} of trial {self.number} after step {self._step:,}: expected "
                f"ascending steps up to loop.steps = {self._loop.steps:,}"
            )
        self._step = step
        try:
            self._queue.poll()
        except ShutdownRequestedError:
            self._is_stopping = True
        if self._claim.is_lost:
            self._queue.drop_lost()
            raise self._stop("lost: claimed by another worker after its lease expired")
        return step

    def _record(self, step: int, values: Mapping[str, Any]) -> PruneDecision | None:
        """Store values if the step is a log point; return the pruner's decision at a rung."""
        step = self._begin(step)
        if self._is_stopping:
            # A loop that saves gets the chance to, in the same step.
            if self._awaits_save or not self._saves:
                self._requeue()
                raise self._stop("the process stops")
            self._awaits_save = True
        if step % self._loop.log_every:
            return None
        metric = self._loop.metric
        for name, value in values.items():
            number = _to_number(f"log {name}", value)
            if name != metric:
                self._metrics.setdefault(name, {})[step] = number
                self._claim.report_metric(name, step, number)
            elif math.isfinite(number):
                self._curve[step] = number
                self._claim.report(step, number)
        has_value = metric in values and step in self._curve
        return self._decide(step) if has_value and step in self._rungs else None

    def _decide(self, step: int) -> PruneDecision | None:
        """Ask whether the trial continues beyond a rung."""
        worker = self._worker
        if self._decision is not None and worker.saves is None:
            worker.saves = False
            _logger.info("trials cannot be paused, because the loop does not call trial.save")
        self._decision = None
        # A trial that lost its checkpoint trains to where it was before it can be paused again.
        if step <= max(self._claim.trial.intermediate_values, default=0):
            return None
        try:
            decisions = self._queue.decide([self._claim], can_pause=worker.saves is not False)
        except ShutdownRequestedError:
            self._is_stopping = True
            return None
        self._decision = decisions.get(self._claim)
        return self._decision

    def _prune(self) -> None:
        """Record that the trial is pruned: by the pruner, or by the loop's own decision."""
        decision = self._decision
        reason: Mapping[str, Any] = {"reason": "pruned by the loop"}
        if decision is not None and decision.is_final:
            reason = decision.attributes
        attributes = {**self._record_attributes(), **reason}
        message = f"pruned at step {self._step:,}"
        self._queue.settle(self._claim, TrialResult(TrialState.PRUNED, None, attributes, message))
        self._outcome = "pruned"

    def _write(self, step: int, state: Any) -> bool:
        """Write a checkpoint; return whether that succeeded."""
        earlier = self._state
        codes = dict.fromkeys(earlier.source_hashes if earlier else ())
        versions = dict.fromkeys(earlier.torch_versions if earlier else ())
        saved = LoopState(
            step=step,
            curve=self._curve,
            metrics=self._metrics,
            seconds=self._seconds,
            user_attrs=self._user_attrs,
            source_hashes=[*filter(None, codes | {self._versions.code: None})],
            torch_versions=[*filter(None, versions | {self._versions.torch: None})],
            **pack(state),
        )
        return self._queue.checkpoints.write(self._claim, saved.serialize)

    @property
    def _seconds(self) -> float:
        before = self._state.seconds if self._state else 0.0
        return before + time.monotonic() - self._started_at

    def _record_attributes(self, **results: Any) -> Mapping[str, Any]:
        """Return the user attributes of the trial, those that the loop has set included."""
        seconds = self._seconds
        last = {name: points[max(points)] for name, points in self._metrics.items()}
        record = TrialRecord(
            steps=self._step,
            steps_per_second=self._step / seconds,
            seconds=seconds,
            host=socket.gethostname(),
            worker=self._worker.name,
            seed=self._config.seed,
            replicate=self.replicate,
            python=platform.python_version(),
            code=self._versions.code or None,
            torch=self._versions.torch or None,
            metrics={name: value for name, value in last.items() if math.isfinite(value)} or None,
            **results,
            **earlier_versions(self._claim.trial, self._state, self._versions),
        )
        return {**self._user_attrs, **record.attributes()}


def _locate(error: Exception) -> str:
    """Return where the loop's own code raised an exception, or called what raised it."""
    packages = Path(__file__).parents[2]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_installed = "site-packages" in path.parts or path.is_relative_to(packages / "search")
        if not is_installed and path.is_file():
            return f" ({path.name}, line {frame.lineno})"
    return ""


def _to_number(subject: str, value: Any) -> float:
    detach = getattr(value, "detach", None)  # of a tensor, which else warns of its gradient
    try:
        return float(value if detach is None else detach())
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{subject} is {shorten(repr(value))}: expected a number") from error
