"""Where a trial goes on from: its checkpoint, read, written, set aside and thrown away."""

from collections.abc import Callable

import tenacity

from rnn.checkpoint import read_checkpoint, write_checkpoint
from rnn.errors import CheckpointError
from rnn.training import Progress, Training
from search.checkpoints import Checkpoints
from search.claim import Claim
from search.joining import Joined
from search.space import member_of
from studies.records import RUNG


class Resumption:
    """What becomes of training that was broken off, for the trials of one study.

    Nothing that goes wrong with a checkpoint ends a training.

    Args:
        joined: the study.
        checkpoints: of its trials.
        says: told of what a person should know.
    """

    def __init__(
        self, joined: Joined, checkpoints: Checkpoints, says: Callable[[str], None]
    ) -> None:
        self.definition = joined.definition
        self.corpus = joined.corpus
        self.vocabulary_size = joined.text.vocabulary.size
        self.checkpoints = checkpoints
        self.says = says
        self.settings = Training(
            **self.definition.training.model_dump(exclude={"gradient_window"}),
            seed=self.definition.seed,
            average=self.definition.evaluation.average,
        )

    def progress(self, claim: Claim) -> Progress | None:
        """Return where the trial's last worker left it, if that is known.

        The claim begins with the curve that belongs to it.
        """
        number = claim.trial.number
        written = progress = None
        try:
            written = _read_patiently(self.checkpoints, number)
        except Exception as error:
            self.says(
                f"warning: the checkpoint of trial {number} could not be read ({error}); it starts "
                "afresh"
            )
        if written is not None:
            member = member_of(claim.trial.params, self.definition)
            try:
                progress = read_checkpoint(
                    member.architecture, self._identity(claim), written, self.vocabulary_size
                )
            except CheckpointError as error:
                self._set_aside(number, written, error)
        curve = progress.curve if progress else {}
        if claim.trial.intermediate_values != curve or claim.has_reported:
            claim.begin_with(curve)
        was_paused = progress and progress.step == claim.trial.user_attrs.get(RUNG)
        if progress and progress.step and not was_paused:  # which is nothing to be told of
            self.says(f"trial {number} goes on from step {progress.step:,}")
        return progress

    def write(self, claim: Claim, progress: Progress) -> bool:
        """Write a checkpoint of a trial; tell whether it could be written."""
        number = claim.trial.number
        try:
            self.checkpoints.write(number, write_checkpoint(progress, self._identity(claim)))
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
        """Return all that a trial's numbers follow from, threads, device and company apart."""
        member = member_of(claim.trial.params, self.definition)
        parts = (
            member.architecture.key,
            member.replicate,
            member.gradient_window,
            self.definition.precision,
            self.definition.vocabulary,
            self.settings,
            self.corpus.sha256,
            self.corpus.split,
        )
        return " ".join(map(str, parts))


@tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.5), reraise=True)
def _read_patiently(checkpoints: Checkpoints, number: int) -> bytes | None:
    return checkpoints.read(number)
