"""Points of the grid: their networks trained and measured, together, from wherever they are."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from optuna.trial import FrozenTrial, TrialState

from rnn import fingerprint
from rnn.architecture import Architecture
from rnn.device import is_out_of_memory
from rnn.known_cell import KnownCell
from rnn.member import Member
from rnn.networks import network_of, trains_in_lockstep
from rnn.precision import Precision
from rnn.training import Progress, Run
from rnn.weights import TrainedNetwork
from search.checkpoints import Checkpoints
from search.claim import Claim
from search.collaborators import Judge, Outcome
from search.errors import in_one_line
from search.joining import Joined
from search.judgement import rungs_of
from search.keeping import Keeping
from search.measuring import Measuring
from search.populations import useful_chance, useful_population
from search.recording import Recording
from search.resumption import Resumption
from search.space import member_of
from search.status import Running
from search.threads import ThreadBudget
from studies.records import EARLIER_CODE, Failure


class Audience(Protocol):
    """Whom a trainer tells of itself."""

    def advanced(self, running: Sequence[Running]) -> None:
        """The trials in hand have come to a log point."""

    def says(self, line: str) -> None:
        """Something that a person should know."""


class Trainer:
    """Trains the points of a study, those of one shape in lockstep.

    Args:
        joined: the study.
        device: on which to train.
        budget: of threads, entered.
        checkpoints: of the study's trials.
        audience: told of every log point.
        worker: this worker's name.
        population: the most networks to train together; None for what is of use on the device.
        keeping: of the best networks' weights; None to keep none.

    Attributes:
        has_trained: whether a step was trained since this trainer was made.
    """

    def __init__(
        self,
        joined: Joined,
        device: torch.device,
        budget: ThreadBudget,
        checkpoints: Checkpoints,
        audience: Audience,
        worker: str,
        population: int | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        definition = joined.definition
        assert definition.precision != "auto", "resolved when the study was made"
        self.study = joined.study.study_name
        self.definition = definition
        self.text = joined.text
        self.vocabulary_size = joined.text.vocabulary.size
        self.measuring = Measuring(definition, joined.text)
        self.keeping = keeping
        self.precision: Precision = definition.precision
        self.device = device
        self.budget = budget
        self.recording = Recording(definition, self.vocabulary_size, device, worker)
        self.resumption = Resumption(joined, checkpoints, audience.says)
        self.audience = audience
        self.population = population
        self.settings = self.resumption.settings
        self.has_trained = False
        self._run: Run | None = None
        self._together = 0
        self._earlier_code: dict[Member, list[str] | None] = {}
        self._most: dict[tuple[int, int], int] = {}  # of a shape, after memory was too small
        self.least_chance = useful_chance(device)
        rungs = rungs_of(self.settings.steps, self.settings.log_every)
        self._rungs = {rung.step for rung in rungs} if definition.pruning.enabled else set()

    def limit(self, trial: FrozenTrial) -> int:
        """Return how many trials like this one, itself among them, to train together."""
        member = member_of(trial.params, self.definition)
        if not trains_in_lockstep(member):
            return 1
        lanes = max(self.settings.batch_size, self.definition.evaluation.lanes)
        limit = self.population or useful_population(
            member, lanes, self.precision, self.device, self.vocabulary_size
        )
        return min(limit, self._most.get(_shape(member.architecture), limit))

    def train(
        self, claims: Sequence[Claim], look: Callable[[], bool], judge: Judge
    ) -> Iterator[tuple[Claim, Outcome]]:
        """Run trials to their ends; see :class:`search.collaborators.Trainer`."""
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
            member = member_of(claim.trial.params, self.definition)
            if member in run.members:
                self.resumption.write(claim, run.progress(member))

    def forget(self, number: int) -> None:
        """Remove the checkpoint of a finished trial, and weights that are not wanted any more."""
        self.resumption.forget(number)
        if self.keeping is not None:
            self.keeping.settle(number)

    def failure(self, error: Exception, claim: Claim) -> tuple[Failure, Mapping[str, Any]]:
        """Return the cause of an error, and what to record of a trial that it ends for good."""
        cause = Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.EXCEPTION
        member = member_of(claim.trial.params, self.definition)
        return cause, self._record(member, 0.0, 0.0, failure=cause, error=in_one_line(error))

    # ------------------------------------------------------------------ one population

    def _train(
        self, begun: Mapping[Claim, Progress | None], look: Callable[[], bool], judge: Judge
    ) -> Iterator[tuple[Claim, Outcome]]:
        """Train networks that have come equally far, together to their ends."""
        self._run = None
        self._together = len(begun)
        claims = {member_of(claim.trial.params, self.definition): claim for claim in begun}
        progress = {member: begun[claim] for member, claim in claims.items()}
        known = {member: own for member, own in progress.items() if own is not None}
        self._earlier_code = {
            member: _earlier_code(claim.trial, progress[member]) for member, claim in claims.items()
        }
        try:
            network = network_of(
                list(claims),
                self.definition.seed,
                self.precision,
                self.vocabulary_size,
                self.device,
                {member: own.weights for member, own in known.items()},
            )
            self._run = run = Run(network, self.text.train, self.settings, known)
            yield from self._train_and_measure(run, claims, look, judge)
        except Exception as error:
            if is_out_of_memory(error):
                shape = _shape(next(iter(claims)).architecture)
                self._most[shape] = max(1, len(claims) // 2)
            raise

    def _train_and_measure(
        self,
        run: Run,
        claims: Mapping[Member, Claim],
        look: Callable[[], bool],
        judge: Judge,
    ) -> Iterator[tuple[Claim, Outcome]]:
        written = time.monotonic()

        def held() -> list[Claim]:
            return [claims[member] for member in run.members]

        def between_steps() -> None:
            nonlocal written
            if not look():
                return
            self.budget.apply()
            if any(claim.lost for claim in held()):
                run.drop([member for member in run.members if claims[member].lost])
            if time.monotonic() - written >= self.definition.checkpoint.seconds:
                self.keep(held())
                written = time.monotonic()

        def after_step() -> None:
            self.has_trained = True
            between_steps()

        # Whom the last worker saw diverge, and could not record, is not trained again.
        yield from self._diverged(run, claims)
        for point in run.train(after_step):
            running = []
            for member, smoothed in zip(run.members, point.smoothed_losses, strict=True):
                claims[member].report(point.step, smoothed)
                number = claims[member].trial.number
                running.append(Running(number, member, point.step, self.settings.steps, smoothed))
            self.audience.advanced(running)
            yield from self._diverged(run, claims)
            if run.step in self._rungs:
                yield from self._put_off(run, claims, judge)
        if run.members:
            yield from self._measure(run, claims, between_steps)

    def _measure(
        self, run: Run, claims: Mapping[Member, Claim], between_steps: Callable[[], None]
    ) -> Iterator[tuple[Claim, Outcome]]:
        """Measure on held-out text what is trained to the end."""
        began = time.monotonic()
        # As they are now: whoever is lost meanwhile is measured with the others, and not told of.
        members, seconds = run.members, list(run.seconds)
        measured = self.measuring.measure(run, between_steps)
        found = {
            claims[member].trial.number: each.value
            for member, each in zip(members, measured, strict=True)
            if each.value is not None and not claims[member].lost
        }
        wanted = self.keeping.wanted(found) if self.keeping else set()
        share = (time.monotonic() - began) / len(members)
        for k, (member, each) in enumerate(zip(members, measured, strict=True)):
            claim, rate = claims[member], self.settings.steps / seconds[k]
            if claim.lost:
                continue
            if each.value is None:  # after the last log point, or on other text
                yield claim, self._divergence(member, rate, seconds[k])
                continue
            kept = {}
            if claim.trial.number in wanted:
                kept["sample"] = self._keep(claim, run, member, each.value)
            attributes = self._record(member, rate, seconds[k] + share, **each.attributes, **kept)
            yield claim, Outcome(TrialState.COMPLETE, each.value, attributes, "complete")

    def _keep(self, claim: Claim, run: Run, member: Member, value: float) -> str | None:
        """Keep a trial's weights; return what its network writes."""
        assert self.keeping is not None
        parameters = run.population.parameters
        network = TrainedNetwork(
            member.architecture,
            parameters.of(run.members.index(member), parameters.values),
            self.text.vocabulary,
            self.precision,
            {"study": self.study, "trial": str(claim.trial.number), "value": repr(value)},
        )
        return self.keeping.keep(claim.trial.number, network)

    def _diverged(
        self, run: Run, claims: Mapping[Member, Claim]
    ) -> Iterator[tuple[Claim, Outcome]]:
        """Go on without those that have diverged."""
        gone = {
            member: seconds
            for member, curve, seconds in zip(run.members, run.curves, run.seconds, strict=True)
            if not all(map(math.isfinite, curve.values()))
        }
        # They leave when it is recorded: until then they can be written down.
        for member, seconds in gone.items():
            yield claims[member], self._divergence(member, run.step / seconds, seconds)
        if gone:
            run.drop(gone)

    def _put_off(
        self, run: Run, claims: Mapping[Member, Claim], judge: Judge
    ) -> Iterator[tuple[Claim, Outcome]]:
        """Go on without those that are not wanted at this rung, for now or at all."""
        # Who was further before, and lost its checkpoint, is not put off again until it is there.
        asked = {
            claims[member]: k
            for k, member in enumerate(run.members)
            if max(claims[member].trial.intermediate_values, default=0) < run.step
        }
        members, seconds, leaving = run.members, list(run.seconds), []
        for claim, verdict in judge(list(asked)).items():
            k = asked[claim]
            found = self._record(members[k], run.step / seconds[k], seconds[k])
            attributes = {**found, **verdict.attributes}
            if verdict.is_final:
                words = f"pruned at step {run.step:,}"
                yield claim, Outcome(TrialState.PRUNED, None, attributes, words)
            elif self.resumption.write(claim, run.progress(members[k])):
                words = f"paused at step {run.step:,}"
                yield claim, Outcome(TrialState.WAITING, None, attributes, words)
            else:
                continue  # nobody could go on with it
            leaving.append(members[k])
        if leaving:
            run.drop(leaving)

    def _divergence(self, member: Member, steps_per_second: float, seconds: float) -> Outcome:
        attributes = self._record(member, steps_per_second, seconds, failure=Failure.DIVERGED)
        return Outcome(TrialState.FAIL, None, attributes, "diverged")

    def _record(
        self, member: Member, steps_per_second: float, seconds: float, **found: object
    ) -> Mapping[str, Any]:
        found[EARLIER_CODE] = self._earlier_code.get(member)
        return self.recording.attributes(member, self._together, steps_per_second, seconds, **found)


def _earlier_code(trial: FrozenTrial, progress: Progress | None) -> list[str] | None:
    """Return the other code that trained what a trial resumes; None if there is none to record."""
    code = progress.code if progress else ()
    earlier = [each for each in code if each != fingerprint.code_fingerprint()]
    # An empty list replaces what was recorded before a trial restarted from step 0.
    return earlier if earlier or EARLIER_CODE in trial.user_attrs else None


def _shape(architecture: Architecture | KnownCell) -> tuple[int, int]:
    return architecture.layers, architecture.state_size
