"""Where a trial goes on from: its checkpoint, read, written, set aside and thrown away."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import tenacity
from optuna.trial import FrozenTrial

from rnn.config import TrialConfig
from rnn.data.corpus import Corpus
from rnn.errors import CheckpointError
from rnn.training import checkpoint as train_checkpoint
from rnn.training.checkpoint import TrainState, deserialize_checkpoint, serialize_checkpoint
from rnn.training.loop import TrainConfig
from search.study import StudyHandle
from search.worker.claims import Claim
from search.worker.trial_artifacts import CheckpointStore
from studies.attributes import RETRY_COUNTS, RUNG, Failure
from studies.config import StudyConfig, to_trial_config

_SHOWN = 6
"""How many trials a line names."""


class CheckpointManager:
    """What becomes of training that was broken off, for the trials of one study.

    Nothing that goes wrong with a checkpoint ends a training.

    Args:
        joined: the study.
        checkpoints: of its trials.
        says: told of what a person should know.
    """

    def __init__(
        self, joined: StudyHandle, checkpoints: CheckpointStore, says: Callable[[str], None]
    ) -> None:
        self.config = joined.config
        self.corpus = joined.corpus
        self.vocab_size = joined.token_corpus.tokenizer.size
        self.checkpoints = checkpoints
        self.says = says
        self.settings = TrainConfig(
            **self.config.training.model_dump(exclude={"bptt_steps"}),
            seed=self.config.seed,
            average_fraction=self.config.evaluation.average,
        )

    def resume(self, claims: Sequence[Claim]) -> dict[Claim, TrainState | None]:
        """Return where each trial's last worker left it; None where it starts from step 0.

        Each claim begins with the curve that belongs to its progress.
        """
        begun: dict[Claim, TrainState | None] = {}
        missing = []
        for claim in claims:
            written = None
            try:
                written = _read_patiently(self.checkpoints, claim.trial.number)
                if written is None and _should_have_checkpoint(claim):
                    missing.append(claim.trial)
            except Exception as error:
                self.says(
                    f"warning: the checkpoint of trial {claim.trial.number} could not be read "
                    f"({error}); it starts afresh"
                )
            begun[claim] = self._begin(claim, written)
        if missing:
            self._say_missing(missing)
        self._say_other_code(begun)
        return begun

    def _begin(self, claim: Claim, written: bytes | None) -> TrainState | None:
        """Return the progress in a checkpoint, and have the claim's curve be that of it."""
        number = claim.trial.number
        progress = None
        if written is not None:
            trial_config = to_trial_config(claim.trial.params, self.config)
            try:
                progress = deserialize_checkpoint(
                    trial_config.architecture, self._identity(claim), written, self.vocab_size
                )
            except CheckpointError as error:
                self._set_aside(number, written, error)
        curve = progress.curve if progress else {}
        if claim.trial.intermediate_values != curve or claim.has_reported:
            claim.replace_curve(curve)
        was_paused = progress and progress.step == claim.trial.user_attrs.get(RUNG)
        if progress and progress.step and not was_paused:  # which is nothing to be told of
            self.says(f"trial {number} goes on from step {progress.step:,}")
        return progress

    def _say_missing(self, trials: Sequence[FrozenTrial]) -> None:
        steps = {max(trial.intermediate_values) for trial in trials}
        reached = f"step {min(steps):,}" + (f" to {max(steps):,}" if len(steps) > 1 else "")
        self.says(
            f"warning: no checkpoint of {_named(trials)} in {self.checkpoints.place}, though "
            f"{reached} was recorded: training restarts from step 0; if the database was moved, "
            "move its checkpoint folder along with it, or name the folder or bucket with "
            "--artifacts"
        )

    def _say_other_code(self, begun: Mapping[Claim, TrainState | None]) -> None:
        current = train_checkpoint.source_hash()
        other = {
            claim: progress.source_hashes[-1]
            for claim, progress in begun.items()
            if progress and progress.source_hashes and progress.source_hashes[-1] != current
        }
        if not other:
            return
        trials = [claim.trial for claim in other]
        resume, were = ("resume", "were") if len(trials) > 1 else ("resumes", "was")
        self.says(
            f"warning: {_named(trials)} {resume} with training code {current} and {were} trained "
            f"with {', '.join(sorted(set(other.values())))} so far; to avoid mixing them, stop and "
            "use the earlier code"
        )

    def write(self, claim: Claim, progress: TrainState) -> bool:
        """Write a checkpoint of a trial; tell whether it could be written."""
        number = claim.trial.number
        try:
            self.checkpoints.write(number, serialize_checkpoint(progress, self._identity(claim)))
            return True
        except Exception as error:  # a full disk, a bucket that is away: training is not to suffer
            self.says(
                f"warning: the checkpoint of trial {number} could not be written ({error}); the "
                "one before it stands"
            )
            return False

    def forget(self, number: int) -> None:
        """Remove the checkpoint of a finished trial."""
        try:
            self.checkpoints.remove(number)
        except Exception as error:
            self.says(f"warning: the checkpoint of trial {number} could not be removed ({error})")

    def _set_aside(self, number: int, written: bytes, error: CheckpointError) -> None:
        try:
            place = f"it is set aside as {self.checkpoints.set_aside(number, written)}"
        except Exception as failed:
            place = f"it could not be set aside ({failed})"
        self.says(f"warning: trial {number}: {error}; {place}, the trial starts afresh")

    def _identity(self, claim: Claim) -> str:
        trial_config = to_trial_config(claim.trial.params, self.config)
        return checkpoint_identity(trial_config, self.config, self.settings, self.corpus)


def checkpoint_identity(
    trial_config: TrialConfig, config: StudyConfig, train_config: TrainConfig, corpus: Corpus
) -> str:
    """Return everything that determines a trial's training, as JSON with sorted keys.

    A checkpoint is resumed only under the same identity. Threads, device and the other networks of
    the stack are not part of it.
    """
    fields = {
        "architecture": trial_config.architecture.init_key,
        "replicate": trial_config.replicate,
        "bptt_steps": trial_config.bptt_steps,
        "precision": config.precision,
        "tokenizer": config.tokenizer,
        "training": asdict(train_config),
        "corpus_sha256": corpus.sha256,
        "corpus_split": corpus.split,
    }
    return json.dumps(fields, sort_keys=True)


def _should_have_checkpoint(claim: Claim) -> bool:
    """Tell whether training was recorded that a checkpoint should hold, as seen when claimed.

    A trial that only errors sent back may have none: a worker writes none after an error.
    """
    causes = claim.trial.user_attrs.get(RETRY_COUNTS, {})
    errors = {failure.value for failure in Failure if failure.is_error}
    only_errors = bool(causes) and errors.issuperset(causes)
    return bool(claim.trial.intermediate_values) and not claim.has_reported and not only_errors


def _named(trials: Sequence[FrozenTrial]) -> str:
    numbers = ", ".join(str(trial.number) for trial in trials[:_SHOWN])
    more = f" and {len(trials) - _SHOWN} more" if len(trials) > _SHOWN else ""
    return f"trial{'s' if len(trials) > 1 else ''} {numbers}{more}"


@tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.5), reraise=True)
def _read_patiently(checkpoints: CheckpointStore, number: int) -> bytes | None:
    return checkpoints.read(number)
