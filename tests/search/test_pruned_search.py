"""A search that prunes: real networks, paused with their checkpoints and gone on with."""

import shutil

import optuna
import pytest
from optuna.trial import TrialState
from test_worker import SETTINGS, Quiet, work

from search.checkpoints import Checkpoints
from search.claims import ClaimKeeper
from search.errors import SourceUnfinished
from search.joining import Terms, join
from search.judgement import rungs_of
from search.pausing import Pausing
from search.pruner import BestFractionPruner
from search.stopping import StopRequest
from search.trainer import Trainer
from studies.accounting import accounting_of
from studies.errors import DefinitionError, IdentityError, StudiesError
from studies.reading import find_definition
from studies.records import TrialRecord

STEPS, LOG_EVERY, KEPT = 60, 2, 4

GRID = [
    "precision='fp32'",
    "keep_weights=1",
    f"training.steps={STEPS}",
    f"training.log_every={LOG_EVERY}",
    "training.learning_rate=0.02",
    "training.smoothing=0.9",
    "pruning.confidence=0.7",  # with so little to be learnt from such networks, more keeps all
    "space.layers=[1]",
    "space.input_gate=[false, true]",
    "space.output_gate=[false, true]",
    "space.state_gate=[false, true]",
]
"""Forty-eight networks of a moment each, the best four of which are to be kept."""

RUNGS = {rung.step for rung in rungs_of(STEPS, LOG_EVERY)}


def search(url, text, *overrides, prune=True, **options):
    return work(url, text, [*GRID, *overrides], prune=prune, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The trials of the same search without pruning, by their parameters."""
    from helpers import TEXT

    folder = tmp_path_factory.mktemp("whole")
    (folder / "text").write_bytes(TEXT)
    url = f"sqlite:///{folder}/studies.db"
    joined, _ = search(url, folder / "text", prune=False, population=1)
    return {tuple(trial.params.items()): trial for trial in joined.study.trials}


def check(joined, whole, tolerance):
    """Each point is complete or pruned, and as far as it came what it is without pruning."""
    assert len(joined.study.trials) == len(whole)
    for trial in joined.study.trials:
        same = whole[tuple(trial.params.items())]
        TrialRecord.model_validate(trial.user_attrs)
        curve = trial.intermediate_values
        beginning = {step: same.intermediate_values[step] for step in curve}
        assert curve == pytest.approx(beginning, rel=tolerance, abs=0)
        assert list(curve) == list(range(LOG_EVERY, max(curve) + 1, LOG_EVERY))
        if trial.state is TrialState.COMPLETE:
            assert trial.value == pytest.approx(same.value, rel=tolerance, abs=0)
            assert max(curve) == STEPS
            continue
        assert trial.state is TrialState.PRUNED
        assert trial.value is None
        found = trial.user_attrs
        assert found["rung"] == max(curve)
        assert found["rung"] in RUNGS
        assert 0 <= found["chance"] < 1
        assert (
            f"at step {found['rung']} of {STEPS}: foretold {found['forecast']:.3f}"
            in (found["reason"])
        )


def steps_of(joined):
    return sum(max(trial.intermediate_values) for trial in joined.study.trials)


@pytest.mark.parametrize(("population", "tolerance"), [(1, 0), (8, 1e-4)])
def test_the_best_are_complete_and_the_others_are_what_they_were_as_far_as_they_came(
    sqlite_url, text, tmp_path, whole, population, tolerance
):
    joined, outcomes = search(sqlite_url, text, population=population)
    check(joined, whole, tolerance)
    ranked = sorted(whole.values(), key=lambda trial: trial.value)
    states = {tuple(trial.params.items()): trial.state for trial in joined.study.trials}
    kept = [states[tuple(trial.params.items())] is TrialState.COMPLETE for trial in ranked]
    assert kept[0]
    assert sum(kept[:KEPT]) >= KEPT - 1
    assert sum(kept) < 0.7 * len(kept)
    assert steps_of(joined) < 0.8 * STEPS * len(kept)
    # What was paused was gone on with, from its checkpoint, and none of these is left.
    assert any("paused at step" in line for line in outcomes)
    assert "complete" in outcomes
    assert not any("starts afresh" in line for line in outcomes)
    assert list(tmp_path.glob("*.checkpoints/*/*")) == []
    accounting = accounting_of(joined.storage, joined.study_id)
    assert accounting.complete + accounting.pruned == accounting.planned == len(kept)
    assert accounting.paused == accounting.waiting == 0
    assert isinstance(joined.study.pruner, BestFractionPruner)


def test_who_cannot_write_checkpoints_pauses_nothing(sqlite_url, text, whole, monkeypatch):
    """It would lose what was trained: such a point goes on, if there is hope for it."""

    def refuse(self, number, content):
        raise OSError("no room")

    monkeypatch.setattr(Checkpoints, "write", refuse)
    joined, outcomes = search(sqlite_url, text, population=1)
    check(joined, whole, 0)
    assert not any("paused" in line for line in outcomes)
    assert any("could not be written (no room)" in line for line in outcomes)


def test_while_the_storage_does_not_answer_points_go_on(sqlite_url, text, monkeypatch):
    monkeypatch.setattr(ClaimKeeper, "consult", lambda self, query: None)
    joined, outcomes = search(sqlite_url, text, population=8)
    assert set(outcomes) == {"complete"}
    assert steps_of(joined) == STEPS * 48


def test_a_defect_in_deciding_is_no_failure_of_a_point(sqlite_url, text, monkeypatch):
    def fail(self, trial_ids, avoid):
        raise IndexError("no such thing")

    monkeypatch.setattr(Pausing, "verdicts", fail)
    joined, outcomes = search(sqlite_url, text, population=8)
    assert accounting_of(joined.storage, joined.study_id).complete == 48
    assert "warning: nothing could be decided (IndexError: no such thing)" in outcomes
    assert not any("setbacks" in trial.user_attrs for trial in joined.study.trials)


def test_a_point_that_fails_is_run_again_when_the_others_are_done(sqlite_url, text, monkeypatch):
    failing = []

    def record(self, member, *rest, **found):
        if member.architecture.forget_gate and not failing and "validation" in str(found):
            failing.append(member)
            raise RuntimeError("once")
        return plain(self, member, *rest, **found)

    plain = Trainer._record
    monkeypatch.setattr(Trainer, "_record", record)
    joined, outcomes = search(sqlite_url, text, population=1)
    failed = outcomes.index("failed, and waits to be run again")
    assert sum("paused" in line or line == "complete" for line in outcomes[failed:]) > 5
    accounting = accounting_of(joined.storage, joined.study_id)
    assert accounting.complete + accounting.pruned == 48
    again = [t for t in joined.study.trials if t.user_attrs.get("setbacks") == {"exception": 1}]
    assert [trial.state for trial in again] == [TrialState.COMPLETE]


def test_a_study_that_is_extended_meanwhile_is_judged_as_it_is_then(sqlite_url, text):
    file = find_definition("quick", [*SETTINGS, *GRID])
    joined = join(file, sqlite_url, Terms(corpus=str(text), prune=True))
    pausing = Pausing(joined.storage, joined.study_id, joined.definition)

    def pause_all():
        while (trial_id := joined.storage.claim(joined.study_id, "me/1")) is not None:
            loss = 3.0 - trial_id / 100
            curve = dict.fromkeys(range(LOG_EVERY, 5, LOG_EVERY), loss)
            joined.storage.pause(trial_id, "me/1", {}, curve)

    pause_all()
    assert len(pausing.choose(0.0)) == 48
    wider = find_definition("quick", [*SETTINGS, *GRID, "space.layers=[1, 2]"])
    join(wider, sqlite_url, Terms(corpus=str(text), prune=True, extend=True))
    assert pausing.choose(0.0) == [], "new ones come first"
    pause_all()
    assert len(pausing.choose(0.0)) == 96


def test_who_runs_for_ever_holds_nobody_up_for_ever(sqlite_url, text, monkeypatch):
    """Another worker hangs with the last point; this one waits for it, and then does not."""
    file = find_definition("quick", [*SETTINGS, *GRID])
    joined = join(file, sqlite_url, Terms(corpus=str(text), prune=True))
    assert joined.storage.claim(joined.study_id, "hangs/1") is not None
    waits = []
    monkeypatch.setattr("search.worker.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("search.worker.POLL_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(Quiet, "waits", lambda self: waits.append(len(self.outcomes)))
    monkeypatch.setattr(StopRequest, "requested", property(lambda self: len(waits) > 100))
    joined, _ = search(sqlite_url, text, population=1)
    accounting = accounting_of(joined.storage, joined.study_id)
    assert accounting.running == 1
    assert accounting.complete >= KEPT
    assert Pausing(joined.storage, joined.study_id, joined.definition).choose(0, (), True) == []


def test_points_whose_checkpoints_are_lost_come_to_their_ends_all_the_same(
    sqlite_url, text, tmp_path, whole, monkeypatch
):
    """They start afresh, and are not put off again before they are where they were."""
    paused = []

    def ended(self, ended):
        self.outcomes.append(ended.outcome)
        paused.extend(["x"] * ended.is_paused)

    with monkeypatch.context() as patch:
        patch.setattr(Quiet, "ended", ended)
        patch.setattr(StopRequest, "requested", property(lambda self: len(paused) > 60))
        joined, _ = search(sqlite_url, text, population=1)
    assert accounting_of(joined.storage, joined.study_id).paused > 20
    (folder,) = tmp_path.glob("*.checkpoints")
    shutil.rmtree(folder)
    put_off = []

    def ended_again(self, ended):
        if ended.is_paused:
            before = max(ended.trial.intermediate_values, default=0)
            put_off.append((before, int(ended.outcome.removeprefix("paused at step "))))

    monkeypatch.setattr(Quiet, "ended", ended_again)
    joined, outcomes = search(sqlite_url, text, population=1)
    check(joined, whole, 0)
    assert not any("goes on from" in line for line in outcomes)
    assert any(before for before, _ in put_off)
    assert all(before < step for before, step in put_off)


def test_a_pruned_study_is_joined_on_the_same_terms_alone(sqlite_url, text):
    search(sqlite_url, text, "training.steps=10")
    with pytest.raises(IdentityError, match=r"pruning\.enabled: True in the study, False here"):
        search(sqlite_url, text, "training.steps=10", prune=False)
    with pytest.raises(IdentityError, match=r"pruning\.keep: 0\.1 in the study, 0\.2 here"):
        search(sqlite_url, text, "training.steps=10", "pruning.keep=0.2")
    with pytest.raises(StudiesError, match=r"^\d+ points are pruned.*begin the wider one under"):
        search(sqlite_url, text, "training.steps=10", "space.layers=[1, 2]", extend=True)


def refine(url, *overrides):
    file = find_definition("quick-refined", overrides)
    return join(file, url, Terms())


def test_a_pruned_study_is_refined_by_what_it_was_to_keep(sqlite_url, text):
    """The best of all planned points, never of those that happened to be complete."""
    joined, _ = search(sqlite_url, text, population=8)
    values = sorted(
        (trial.value, trial.number)
        for trial in joined.study.trials
        if trial.state is TrialState.COMPLETE
    )
    with pytest.raises(SourceUnfinished, match=r"kept the best 4 .*allowed: as many, or fewer"):
        refine(sqlite_url, "refinement.best=0.2")
    derived = refine(sqlite_url, "refinement.variants=[{}]")
    origins = [trial.user_attrs["source_trials"] for trial in derived.study.trials]
    assert origins == [[number] for _, number in values[:KEPT]]
    assert not derived.definition.pruning.enabled, "it is the source's alone"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pruning.keep=1.5", "pruning.keep is 1.5; input should be less than 1"),
        ("pruning.confidence=0.2", "pruning.confidence is 0.2; input should be greater than"),
        ("pruning.kept=0.5", "pruning.kept is no known key; allowed here: enabled, keep"),
        ("training.log_every=60", "no log point before the last: log_every is 60, steps 60"),
    ],
)
def test_settings_of_pruning_that_make_no_sense_are_refused(sqlite_url, text, override, told):
    with pytest.raises(DefinitionError, match=told):
        search(sqlite_url, text, override)


def test_replicates_are_not_pruned(sqlite_url, text):
    search(sqlite_url, text, "training.steps=10", "training.log_every=10", prune=False)
    overrides = ["refinement.replicates=3", "pruning.enabled=true"]
    with pytest.raises(DefinitionError, match=r"has pruning\.enabled and 3 replicates"):
        refine(sqlite_url, *overrides)


def test_plain_optuna_drives_a_pruned_study(sqlite_url, text):
    """With the study's own pruner, which then stops what it would have paused."""
    file = find_definition("quick", [*SETTINGS, *GRID])
    joined = join(file, sqlite_url, Terms(corpus=str(text), prune=True))

    def objective(trial):
        worth = sum(trial.params[name] for name in ("input_gate", "forget_gate", "state_gate"))
        for step in range(LOG_EVERY, STEPS + 1, LOG_EVERY):
            trial.report(3.0 - worth * step / STEPS + trial.number / 1e4, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 3.0 - worth + trial.number / 1e4

    joined.study.optimize(objective)
    states = {trial.state for trial in joined.study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in joined.study.trials:
        if all(trial.params[name] for name in ("input_gate", "forget_gate", "state_gate")):
            assert trial.state is TrialState.COMPLETE
