"""Train and evaluate the networks of claimed trials in lockstep, until a queue is empty."""

import logging
import math
import platform
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from optuna.trial import TrialState

from rnn.config import Precision, TrialConfig
from rnn.engines import build_network
from rnn.errors import CellError, is_out_of_memory
from rnn.export import SavedModel, generate, serialize_model
from rnn.network import network_shapes
from rnn.tasks.task import Task
from rnn.training.checkpoint import TrainState, deserialize_checkpoint, serialize_checkpoint
from rnn.training.loop import CURVE_POINTS, TrainLoop
from search.create_or_join import StudyHandle
from search.errors import format_error, is_bug
from search.networks import current_versions
from search.pruning.scheduler import compute_rungs
from search.worker.checkpoints import BestWeights, Checkpoints, StorageQuery, warn_of_errors
from search.worker.claims import Claim
from search.worker.cpu_budget import ThreadBudget
from search.worker.lockstep import LockstepPlan, checkpoint_identity, to_train_config
from search.worker.queue import STORAGE_ERRORS, PrunerCallback, TrialQueue, TrialResult
from search.worker.versions import earlier_versions
from studies.attributes import OBJECTIVE_ATTRIBUTES, Failure, TrialRecord
from studies.config import StudyConfig
from studies.messages import to_printable
from studies.network_facts import describe_facts
from studies.records import Floors
from studies.trial_params import to_trial_config

SAMPLE_LENGTH = 300
"""Tokens of the text sample that a network generates for the report."""

SAMPLE_TEMPERATURE = 0.8

CURVE_INPUTS = 20 * CURVE_POINTS
"""Inputs that the training reads for each that a point of the held-out curves reads: all points
together read a twentieth, without gradients."""

EXPLOSION = 1000.0
"""A network has diverged if its validation loss is more than so many times those of the task's
floors: without bounded activations states explode, on long sequences most. The mean of an effect
would be that one loss."""

_logger = logging.getLogger(__name__)


class Trainer:
    """Trains the trials of a study, those of one shape in lockstep.

    Args:
        budget: entered thread budget.
        query: runs a query of the storage; see :class:`BestWeights`.
        worker: name of this worker.
        lockstep: maximum number of networks to train together; None to choose by device.

    Attributes:
        lockstep_plan: how many trials, and which, to train together.
        best_weights: weights of the best trials; to be told of each finished one.
    """

    def __init__(
        self,
        handle: StudyHandle,
        device: torch.device,
        budget: ThreadBudget,
        query: StorageQuery,
        worker: str,
        lockstep: int | None = None,
    ) -> None:
        config = handle.config
        assert config.precision != "auto", "resolved when the study was created"
        self.config = config
        self.device = device
        self.budget = budget
        self._worker = worker
        self._precision: Precision = config.precision
        self._handle = handle
        self.best_weights = BestWeights(handle, query)
        self._checkpoints = Checkpoints(handle)
        self._rungs: set[int] = set()  # of the current loop, as what follows
        self.lockstep_plan = LockstepPlan(config, device, handle.spec_of, lockstep)
        self._loop: TrainLoop | None = None
        self._claims: dict[TrialConfig, Claim] = {}
        self._lockstep = 0  # when it began
        self._saved_at = 0.0
        self._earlier_versions: dict[TrialConfig, Mapping[str, list[str] | None]] = {}

    def train(
        self, claims: Sequence[Claim], poll: Callable[[], bool], decide: PrunerCallback
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Train trials; yield each one's result as soon as it is known.

        Args:
            claims: claims of the trials, to which values are reported. A trial that is lost
                (``claim.is_lost``) is dropped without a result.
            poll: called often; returns whether the polling interval has passed, raises to end the
                training.
            decide: called at every log point with the trials that have reached a rung there, often
                none. Decisions may come late: those on trials that no longer train are ignored.
        """
        self.budget.apply()
        states = self._checkpoints.resume(claims, self._decode)
        # Networks in lockstep are at one step: usually all, for they were interrupted together.
        for step in sorted({_step(state) for state in states.values()}):
            group = {
                claim: state
                for claim, state in states.items()
                if _step(state) == step and not claim.is_lost
            }
            if group:
                yield from self._train_group(group, poll, decide)
        self._loop = None  # frees its memory

    def save_checkpoints(self, claims: Sequence[Claim]) -> None:
        """Write checkpoints of those of these trials that are being trained."""
        for claim in claims:
            trial_config = to_trial_config(claim.trial.params, self.config)
            if self._loop is not None and trial_config in self._loop.configs:
                self._write_checkpoint(claim, self._loop.train_state(trial_config))

    def _write_checkpoint(self, claim: Claim, state: TrainState) -> bool:
        identity = checkpoint_identity(claim.trial.params, self.config)
        return self._checkpoints.write(claim, partial(serialize_checkpoint, state, identity))

    def _decode(self, claim: Claim, content: bytes) -> TrainState:
        identity = checkpoint_identity(claim.trial.params, self.config)
        return deserialize_checkpoint(identity, content)

    def describe_failure(self, error: Exception, claim: Claim) -> tuple[Failure, Mapping[str, Any]]:
        """Return the cause of an error, and the attributes of a trial that fails with it."""
        cause = Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.EXCEPTION
        trial_config = to_trial_config(claim.trial.params, self.config)
        message = format_error(error)
        return cause, self._attributes(trial_config, 0.0, 0.0, failure=cause, error=message)

    # ------------------------------------------------------------------ one lockstep group

    def _train_group(
        self,
        states: Mapping[Claim, TrainState | None],
        poll: Callable[[], bool],
        decide: PrunerCallback,
    ) -> Iterator[tuple[Claim, TrialResult]]:
        self._loop = None
        self._lockstep = len(states)
        params = next(iter(states)).trial.params
        claims = {to_trial_config(claim.trial.params, self.config): claim for claim in states}
        assert len(claims) == len(states)
        self._claims = claims
        resumed = {
            trial_config: state
            for trial_config, claim in claims.items()
            if (state := states[claim]) is not None
        }
        self._earlier_versions = {
            trial_config: earlier_versions(claim.trial, states[claim], current_versions())
            for trial_config, claim in claims.items()
        }
        try:
            network = build_network(
                list(claims),
                self.config.seed,
                self._precision,
                self._handle.spec_of(next(iter(claims)).task_options),
                self.device,
                {trial_config: state.weights for trial_config, state in resumed.items()},
            )
            settings = to_train_config(self.config, params)
            if self.config.pruning.enabled:
                rungs = compute_rungs(settings.steps, settings.log_every)
                self._rungs = {rung.step for rung in rungs}
            self._task = self._handle.task_of(next(iter(claims)).task_options)
            evaluation = self.config.evaluation
            # Not the batch size of the trial: all of a task are measured on the same data.
            steps = self.config.length_of(params).steps
            inputs = steps * self.config.training.batch_size // CURVE_INPUTS
            curve_data = self._task.select_curve_data(
                evaluation.windows, evaluation.window_length, inputs
            )
            self._loop = loop = TrainLoop(network, self._task, settings, resumed, curve_data)
            yield from self._train_and_evaluate(loop, poll, decide)
        except Exception as error:  # PyTorch has no class for a lack of memory
            if is_out_of_memory(error):
                self.lockstep_plan.reduce(params, len(claims))
            raise

    def _train_and_evaluate(
        self, loop: TrainLoop, poll: Callable[[], bool], decide: PrunerCallback
    ) -> Iterator[tuple[Claim, TrialResult]]:
        self._saved_at = time.monotonic()
        on_step = partial(self._check, loop, poll)
        # A checkpoint may be of a trial that diverged while the storage was unavailable.
        yield from self._remove_diverged(loop)
        for point in loop.train(on_step):
            for trial_config, loss in zip(loop.configs, point.ema_losses, strict=True):
                self._claims[trial_config].report(point.step, loss)
            self._report_metrics(loop)
            yield from self._remove_diverged(loop)
            if loop.step in self._rungs:
                yield from self._pause_or_prune(loop, decide)
        if loop.configs:
            self._report_metrics(loop)  # of a last step that is no log point
            yield from self._evaluate(loop, on_step)

    def _report_metrics(self, loop: TrainLoop) -> None:
        for trial_config, metrics in zip(loop.configs, loop.metrics, strict=True):
            self._claims[trial_config].report_metrics(metrics)

    def _check(self, loop: TrainLoop, poll: Callable[[], bool]) -> None:
        """Do after a step what is due: share the cores, drop lost trials, write checkpoints."""
        if not poll():
            return
        self.budget.apply()
        if lost := [config for config in loop.configs if self._claims[config].is_lost]:
            loop.remove_configs(lost)
        if time.monotonic() - self._saved_at >= self.config.checkpoint.seconds:
            self.save_checkpoints([self._claims[config] for config in loop.configs])
            self._saved_at = time.monotonic()

    def _evaluate(
        self, loop: TrainLoop, on_step: Callable[[], None]
    ) -> Iterator[tuple[Claim, TrialResult]]:
        claims = self._claims
        started_at = time.monotonic()
        # Copies: on_step may drop networks, which are evaluated but not reported.
        trial_configs = loop.configs
        train_seconds = list(loop.seconds)
        measured = _evaluate_networks(loop, self._task, self.config, on_step)
        limit = _limit_loss(self._handle.floors_of(next(iter(claims.values())).trial.params))
        values = [_find_value(attributes, limit, self.config) for attributes in measured]
        selected = self.best_weights.select(
            {
                claims[trial_config].trial.number: value
                for trial_config, value in zip(trial_configs, values, strict=True)
                if value is not None and not claims[trial_config].is_lost
            }
        )
        eval_seconds = (time.monotonic() - started_at) / len(trial_configs)
        settings = loop.train_config
        for trial_config, results, value, seconds in zip(
            trial_configs, measured, values, train_seconds, strict=True
        ):
            claim = claims[trial_config]
            rate = settings.steps / seconds
            if claim.is_lost:
                continue
            if value is None:
                yield claim, self._diverged_result(trial_config, rate, seconds)
                continue
            results |= {
                "steps": settings.steps,
                "updates": loop.updates,
                "inputs": settings.steps * settings.batch_size,
            }
            if claim.trial.number in selected:
                results["sample"] = self._save_weights(claim, loop, trial_config, value)
            attributes = self._attributes(trial_config, rate, seconds + eval_seconds, **results)
            yield claim, TrialResult(TrialState.COMPLETE, value, attributes, "complete")

    def _save_weights(
        self, claim: Claim, loop: TrainLoop, trial_config: TrialConfig, value: float
    ) -> str | None:
        """Save a trial's weights; return a text sample of its network, if it predicts text."""
        parameters = loop.stack.parameters
        task = self._task.save()
        number = claim.trial.number
        model = SavedModel(
            trial_config.architecture,
            parameters.extract(loop.configs.index(trial_config), parameters.values),
            task,
            self._precision,
            {"study": self._handle.name, "trial": str(number), "value": repr(value)},
        )
        self.best_weights.write(number, partial(serialize_model, model))
        if task.merges is None:
            return None
        with warn_of_errors(f"generate a sample of trial {number}"):
            sample = generate(model, length=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
            return to_printable(sample)
        return None

    def _remove_diverged(self, loop: TrainLoop) -> Iterator[tuple[Claim, TrialResult]]:
        networks = zip(loop.configs, loop.curves, loop.seconds, strict=True)
        diverged = {
            trial_config: seconds
            for trial_config, curve, seconds in networks
            if not all(map(math.isfinite, curve.values()))
        }
        for trial_config, seconds in diverged.items():
            result = self._diverged_result(trial_config, loop.step / seconds, seconds)
            yield self._claims[trial_config], result
        # Only after their results are recorded: until then they may need a checkpoint.
        if diverged:
            loop.remove_configs(diverged)

    def _pause_or_prune(
        self, loop: TrainLoop, decide: PrunerCallback
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Remove the networks that are paused or pruned at this rung."""
        indices = {self._claims[config]: index for index, config in enumerate(loop.configs)}
        # A trial that lost its checkpoint trains to where it was before it can be paused again.
        at_rung = [
            claim
            for claim in indices
            if max(claim.trial.intermediate_values, default=0) < loop.step
        ]
        trial_configs = loop.configs
        seconds = list(loop.seconds)
        removed = []
        for claim, decision in decide(at_rung).items():
            if claim.is_lost:
                continue
            index = indices[claim]
            trial_config = trial_configs[index]
            attributes = {
                **self._attributes(trial_config, loop.step / seconds[index], seconds[index]),
                **decision.attributes,
            }
            if decision.is_final:
                outcome = "pruned"
            elif self._write_checkpoint(claim, loop.train_state(trial_config)):
                outcome = "paused"
            else:
                continue  # without a checkpoint it could not resume
            state = TrialState.PRUNED if decision.is_final else TrialState.WAITING
            message = f"{outcome} at step {loop.step:,}"
            yield claim, TrialResult(state, None, attributes, message)
            removed.append(trial_config)
        if removed:
            loop.remove_configs(removed)

    def _diverged_result(
        self, trial_config: TrialConfig, steps_per_second: float, seconds: float
    ) -> TrialResult:
        attributes = self._attributes(
            trial_config, steps_per_second, seconds, failure=Failure.DIVERGED
        )
        return TrialResult(TrialState.FAIL, None, attributes, "diverged")

    def _attributes(
        self, trial_config: TrialConfig, steps_per_second: float, seconds: float, **results: Any
    ) -> Mapping[str, Any]:
        """Return a trial's user attributes; see :class:`studies.attributes.TrialRecord`."""
        return TrialRecord(
            **self._count_numbers(trial_config),
            steps_per_second=steps_per_second,
            seconds=seconds,
            host=socket.gethostname(),
            worker=self._worker,
            device=str(self.device),
            threads=torch.get_num_threads(),
            lockstep=self._lockstep,
            precision=self._precision,
            seed=self.config.seed,
            replicate=trial_config.replicate,
            python=platform.python_version(),
            **current_versions().model_dump(),
            **{**self._earlier_versions.get(trial_config, {}), **results},
        ).attributes()

    def _count_numbers(self, trial_config: TrialConfig) -> dict[str, int]:
        """Count a network's parameters and the numbers of its state."""
        try:
            spec = self._handle.spec_of(trial_config.task_options)
            shapes = network_shapes(trial_config.architecture, spec)
        except CellError:  # of a trial that fails because its cell cannot be built
            return {"parameter_count": 0, "trained_parameter_count": 0, "state_count": 0}
        facts = describe_facts(trial_config, self.config)
        trained = shapes.parameter_count if facts is None else shapes.count_trained(facts)
        return {
            "parameter_count": shapes.parameter_count,
            "trained_parameter_count": trained,
            "state_count": shapes.states,
        }


def _step(state: TrainState | None) -> int:
    return state.step if state else 0


# ------------------------------------------------------------------ evaluation


def _evaluate_networks(
    loop: TrainLoop, task: Task, config: StudyConfig, on_step: Callable[[], None]
) -> list[dict[str, Any]]:
    """Evaluate the networks of a finished train loop, in their order.

    The test split is read only if the config says so. An exception of ``on_step`` ends the
    evaluation.

    Returns:
        Fields of :class:`studies.attributes.TrialRecord`.
    """
    steps = loop.train_config.steps
    measured: list[dict[str, Any]] = [
        {
            OBJECTIVE_ATTRIBUTES["training"]: min(curve.values()),
            OBJECTIVE_ATTRIBUTES["training-mean"]: _mean_training_loss(curve, steps),
        }
        for curve in loop.curves
    ]
    loop.swap_in_averaged_weights()
    stack = loop.stack  # on_step may remove networks from the loop
    evaluation = config.evaluation
    splits: list[Literal["validation", "test"]] = ["validation"]
    if config.eval_split == "test":
        splits.append("test")
    for split in splits:
        found = task.evaluate(stack, split, evaluation.windows, evaluation.window_length, on_step)
        for attributes, of_split in zip(measured, found, strict=True):
            attributes |= of_split
    return measured


def _limit_loss(floors: Floors | None) -> float:
    """Return the validation loss above which a network has diverged; infinite without floors."""
    if floors is None:
        return math.inf
    return EXPLOSION * max(abs(floors.constant["loss"]), abs(floors.memoryless["loss"]))


def _find_value(attributes: Mapping[str, Any], limit: float, config: StudyConfig) -> float | None:
    """Return the objective value of an evaluated trial; None if it has diverged."""
    numbers = (number for number in attributes.values() if isinstance(number, float))
    if not all(map(math.isfinite, numbers)):
        return None
    if attributes[OBJECTIVE_ATTRIBUTES["validation"]] > limit:
        return None
    value: float = attributes[OBJECTIVE_ATTRIBUTES[config.objective]]
    return value


def _mean_training_loss(curve: Mapping[int, float], steps: int) -> float:
    """Return the mean of the smoothed training loss over the last quarter of the steps.

    The minimum of a curve is at one log point for most networks of a study, so that one passage of
    the text ranks them; the mean takes many. Without a log point in the last quarter, the last one
    alone counts.
    """
    last = [loss for step, loss in curve.items() if 4 * step > 3 * steps]
    return statistics.fmean(last or [curve[max(curve)]])


# ------------------------------------------------------------------ the worker


class Worker:
    """Works on a study until all its trials are finished.

    With ``wait`` it stays until the trials that others run are finished too.
    """

    def __init__(self, queue: TrialQueue, trainer: Trainer, wait: bool = True) -> None:
        self.queue = queue
        self.trainer = trainer
        self.wait = wait

    def run(self) -> None:
        """Work until no trial is left or a shutdown is requested.

        Raises:
            StorageUnavailableError: if the storage was unavailable for too long.
        """
        plan = self.trainer.lockstep_plan
        for claims in self.queue.batches(plan, self.wait, self.trainer.budget.release):
            with self.queue.holding(self.trainer.save_checkpoints):
                self._train(claims)

    def _train(self, claims: Sequence[Claim]) -> None:
        """Train trials together; bisect after an error to find the trial that caused it."""
        try:
            for claim, result in self.trainer.train(claims, self.queue.poll, self.queue.decide):
                self.queue.settle(claim, result)
            self.queue.drop_lost()
            return
        except STORAGE_ERRORS:
            raise
        except Exception as raised:  # of any kind: a user's cell may raise it
            if is_bug(raised):
                _logger.warning(f"training failed ({format_error(raised)})", exc_info=True)
            # The traceback would keep the memory of the failed training alive.
            error = raised.with_traceback(None)
        held = self.queue.drop_lost()
        unfinished = [claim for claim in claims if claim in held]
        if len(unfinished) > 1:
            _logger.info(
                f"{len(unfinished)} trials trained in lockstep failed ({format_error(error)}); "
                "retrying in halves"
            )
            middle = len(unfinished) // 2
            self._train(unfinished[:middle])
            self._train(unfinished[middle:])
        elif unfinished:
            (claim,) = unfinished
            self.queue.fail(claim, error, *self.trainer.describe_failure(error, claim))
