"""Points of the grid: their networks trained and measured, together, from wherever they are."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from rnn.config import NetworkConfig, Precision, TrialConfig
from rnn.inference.saved_model import SavedModel
from rnn.models.factory import build_network, is_stackable
from rnn.training import checkpoint as train_checkpoint
from rnn.training.checkpoint import TrainState
from rnn.training.devices import is_out_of_memory
from rnn.training.loop import TrainLoop
from search.errors import format_error
from search.pruning.policy import compute_rungs
from search.status import RunningTrial
from search.study import StudyHandle
from search.worker.batch_size import auto_lockstep, min_keep_probability
from search.worker.best_models import BestModelStore
from search.worker.checkpointing import CheckpointManager
from search.worker.claims import Claim
from search.worker.cpu_budget import ThreadBudget
from search.worker.evaluator import Evaluator
from search.worker.protocols import Judge, TrialResult, WorkerCallbacks
from search.worker.trial_artifacts import CheckpointStore
from search.worker.trial_attributes import Recording
from studies.attributes import EARLIER_CODE, Failure
from studies.config import to_trial_config


class Trainer:
    """Trains the points of a study, those of one shape in lockstep.

    Args:
        joined: the study.
        device: on which to train.
        budget: of threads, entered.
        checkpoints: of the study's trials.
        callbacks: called at log points and with messages.
        worker: this worker's name.
        lockstep: the most networks to train together; None for what is of use on the device.
        keeping: of the best networks' weights; None to keep none.

    Attributes:
        has_trained: whether a step was trained since this trainer was made.
    """

    def __init__(
        self,
        joined: StudyHandle,
        device: torch.device,
        budget: ThreadBudget,
        checkpoints: CheckpointStore,
        callbacks: WorkerCallbacks,
        worker: str,
        lockstep: int | None = None,
        keeping: BestModelStore | None = None,
    ) -> None:
        config = joined.config
        assert config.precision != "auto", "resolved when the study was made"
        self.study = joined.study.study_name
        self.config = config
        self.text = joined.token_corpus
        self.vocab_size = joined.token_corpus.tokenizer.size
        self.measuring = Evaluator(config, joined.token_corpus)
        self.keeping = keeping
        self.precision: Precision = config.precision
        self.device = device
        self.budget = budget
        self.recording = Recording(config, self.vocab_size, device, worker)
        self.resumption = CheckpointManager(joined, checkpoints, callbacks.on_message)
        self.callbacks = callbacks
        self.lockstep = lockstep
        self.settings = self.resumption.settings
        self.has_trained = False
        self._run: TrainLoop | None = None
        self._together = 0
        self._earlier_code: dict[TrialConfig, list[str] | None] = {}
        self._most: dict[tuple[int, int], int] = {}  # of a shape, after memory was too small
        self.min_keep_probability = min_keep_probability(device)
        rungs = compute_rungs(self.settings.steps, self.settings.log_every)
        self._rungs = {rung.step for rung in rungs} if config.pruning.enabled else set()

    def limit(self, trial: FrozenTrial) -> int:
        """Return how many trials like this one, itself among them, to train together."""
        trial_config = to_trial_config(trial.params, self.config)
        if not is_stackable(trial_config):
            return 1
        streams = max(self.settings.batch_size, self.config.evaluation.windows)
        limit = self.lockstep or auto_lockstep(
            trial_config, streams, self.precision, self.device, self.vocab_size
        )
        return min(limit, self._most.get(_shape(trial_config.architecture), limit))

    def train(
        self, claims: Sequence[Claim], look: Callable[[], bool], judge: Judge
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Run trials to their ends; see :class:`search.worker.protocols.Trainer`."""
        self.budget.apply()
        begun = self.resumption.resume(claims)
        # In lockstep are those that have come as far: as a rule all, for they stopped together.
        for step in sorted({progress.step if progress else 0 for progress in begun.values()}):
            some = {
                claim: progress
                for claim, progress in begun.items()
                if (progress.step if progress else 0) == step and not claim.lost
            }
            if some:
                yield from self._train(some, look, judge)
        self._run = None  # its memory is the next ones'

    def rest(self) -> None:
        """Let the other workers of this machine have its cores, until there is something to do."""
        self.budget.rest()

    def keep(self, claims: Sequence[Claim]) -> None:
        """Write a checkpoint of those trials that are trained now, at whatever step they are."""
        run = self._run
        if run is None:
            return
        for claim in claims:
            trial_config = to_trial_config(claim.trial.params, self.config)
            if trial_config in run.configs:
                self.resumption.write(claim, run.train_state(trial_config))

    def forget(self, number: int) -> None:
        """Remove the checkpoint of a finished trial, and weights that are not wanted any more."""
        self.resumption.forget(number)
        if self.keeping is not None:
            self.keeping.settle(number)

    def failure(self, error: Exception, claim: Claim) -> tuple[Failure, Mapping[str, Any]]:
        """Return the cause of an error, and what to record of a trial that it ends for good."""
        cause = Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.EXCEPTION
        trial_config = to_trial_config(claim.trial.params, self.config)
        return cause, self._record(trial_config, 0.0, 0.0, failure=cause, error=format_error(error))

    # ------------------------------------------------------------------ one population

    def _train(
        self, begun: Mapping[Claim, TrainState | None], look: Callable[[], bool], judge: Judge
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Train networks that have come equally far, together to their ends."""
        self._run = None
        self._together = len(begun)
        claims = {to_trial_config(claim.trial.params, self.config): claim for claim in begun}
        progress = {trial_config: begun[claim] for trial_config, claim in claims.items()}
        known = {trial_config: own for trial_config, own in progress.items() if own is not None}
        self._earlier_code = {
            trial_config: _earlier_code(claim.trial, progress[trial_config])
            for trial_config, claim in claims.items()
        }
        try:
            network = build_network(
                list(claims),
                self.config.seed,
                self.precision,
                self.vocab_size,
                self.device,
                {trial_config: own.weights for trial_config, own in known.items()},
            )
            self._run = run = TrainLoop(network, self.text.train, self.settings, known)
            yield from self._train_and_measure(run, claims, look, judge)
        except Exception as error:
            if is_out_of_memory(error):
                shape = _shape(next(iter(claims)).architecture)
                self._most[shape] = max(1, len(claims) // 2)
            raise

    def _train_and_measure(
        self,
        run: TrainLoop,
        claims: Mapping[TrialConfig, Claim],
        look: Callable[[], bool],
        judge: Judge,
    ) -> Iterator[tuple[Claim, TrialResult]]:
        written = time.monotonic()

        def held() -> list[Claim]:
            return [claims[trial_config] for trial_config in run.configs]

        def on_step() -> None:
            nonlocal written
            if not look():
                return
            self.budget.apply()
            if any(claim.lost for claim in held()):
                run.remove_configs(
                    [trial_config for trial_config in run.configs if claims[trial_config].lost]
                )
            if time.monotonic() - written >= self.config.checkpoint.seconds:
                self.keep(held())
                written = time.monotonic()

        def after_step() -> None:
            self.has_trained = True
            on_step()

        # Whom the last worker saw diverge, and could not record, is not trained again.
        yield from self._diverged(run, claims)
        for point in run.train(after_step):
            running = []
            for trial_config, smoothed in zip(run.configs, point.ema_losses, strict=True):
                claims[trial_config].report(point.step, smoothed)
                number = claims[trial_config].trial.number
                running.append(
                    RunningTrial(number, trial_config, point.step, self.settings.steps, smoothed)
                )
            self.callbacks.on_log(running)
            yield from self._diverged(run, claims)
            if run.step in self._rungs:
                yield from self._put_off(run, claims, judge)
        if run.configs:
            yield from self._measure(run, claims, on_step)

    def _measure(
        self, run: TrainLoop, claims: Mapping[TrialConfig, Claim], on_step: Callable[[], None]
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Measure on held-out text what is trained to the end."""
        began = time.monotonic()
        # As they are now: whoever is lost meanwhile is measured with the others, and not told of.
        trial_configs, seconds = run.configs, list(run.seconds)
        measured = self.measuring.measure(run, on_step)
        found = {
            claims[trial_config].trial.number: each.value
            for trial_config, each in zip(trial_configs, measured, strict=True)
            if each.value is not None and not claims[trial_config].lost
        }
        wanted = self.keeping.wanted(found) if self.keeping else set()
        share = (time.monotonic() - began) / len(trial_configs)
        for k, (trial_config, each) in enumerate(zip(trial_configs, measured, strict=True)):
            claim, rate = claims[trial_config], self.settings.steps / seconds[k]
            if claim.lost:
                continue
            if each.value is None:  # after the last log point, or on other text
                yield claim, self._divergence(trial_config, rate, seconds[k])
                continue
            kept = {}
            if claim.trial.number in wanted:
                kept["sample"] = self._keep(claim, run, trial_config, each.value)
            attributes = self._record(
                trial_config, rate, seconds[k] + share, **each.attributes, **kept
            )
            yield claim, TrialResult(TrialState.COMPLETE, each.value, attributes, "complete")

    def _keep(
        self, claim: Claim, run: TrainLoop, trial_config: TrialConfig, value: float
    ) -> str | None:
        """Keep a trial's weights; return what its network writes."""
        assert self.keeping is not None
        parameters = run.stack.parameters
        network = SavedModel(
            trial_config.architecture,
            parameters.extract(run.configs.index(trial_config), parameters.values),
            self.text.tokenizer,
            self.precision,
            {"study": self.study, "trial": str(claim.trial.number), "value": repr(value)},
        )
        return self.keeping.keep(claim.trial.number, network)

    def _diverged(
        self, run: TrainLoop, claims: Mapping[TrialConfig, Claim]
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Go on without those that have diverged."""
        gone = {
            trial_config: seconds
            for trial_config, curve, seconds in zip(
                run.configs, run.curves, run.seconds, strict=True
            )
            if not all(map(math.isfinite, curve.values()))
        }
        # They leave when it is recorded: until then they can be written down.
        for trial_config, seconds in gone.items():
            yield claims[trial_config], self._divergence(trial_config, run.step / seconds, seconds)
        if gone:
            run.remove_configs(gone)

    def _put_off(
        self, run: TrainLoop, claims: Mapping[TrialConfig, Claim], judge: Judge
    ) -> Iterator[tuple[Claim, TrialResult]]:
        """Go on without those that are not wanted at this rung, for now or at all."""
        # Who was further before, and lost its checkpoint, is not put off again until it is there.
        asked = {
            claims[trial_config]: k
            for k, trial_config in enumerate(run.configs)
            if max(claims[trial_config].trial.intermediate_values, default=0) < run.step
        }
        trial_configs, seconds, leaving = run.configs, list(run.seconds), []
        for claim, verdict in judge(list(asked)).items():
            k = asked[claim]
            found = self._record(trial_configs[k], run.step / seconds[k], seconds[k])
            attributes = {**found, **verdict.attributes}
            if verdict.is_final:
                words = f"pruned at step {run.step:,}"
                yield claim, TrialResult(TrialState.PRUNED, None, attributes, words)
            elif self.resumption.write(claim, run.train_state(trial_configs[k])):
                words = f"paused at step {run.step:,}"
                yield claim, TrialResult(TrialState.WAITING, None, attributes, words)
            else:
                continue  # nobody could go on with it
            leaving.append(trial_configs[k])
        if leaving:
            run.remove_configs(leaving)

    def _divergence(
        self, trial_config: TrialConfig, steps_per_second: float, seconds: float
    ) -> TrialResult:
        attributes = self._record(trial_config, steps_per_second, seconds, failure=Failure.DIVERGED)
        return TrialResult(TrialState.FAIL, None, attributes, "diverged")

    def _record(
        self, trial_config: TrialConfig, steps_per_second: float, seconds: float, **found: object
    ) -> Mapping[str, Any]:
        found[EARLIER_CODE] = self._earlier_code.get(trial_config)
        return self.recording.attributes(
            trial_config, self._together, steps_per_second, seconds, **found
        )


def _earlier_code(trial: FrozenTrial, progress: TrainState | None) -> list[str] | None:
    """Return the other code that trained what a trial resumes; None if there is none to record."""
    code = progress.source_hashes if progress else ()
    earlier = [each for each in code if each != train_checkpoint.source_hash()]
    # An empty list replaces what was recorded before a trial restarted from step 0.
    return earlier if earlier or EARLIER_CODE in trial.user_attrs else None


def _shape(architecture: NetworkConfig) -> tuple[int, int]:
    return architecture.layers, architecture.state_size
