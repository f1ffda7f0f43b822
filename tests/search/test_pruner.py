"""The pruning policy keeps the best trials and stops or pauses the others."""

import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from helpers import ROOT, create_small_study
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from test_predictions import simulate_grid

from benchmarks.audited_pruning import replay_audited
from benchmarks.replay_pruning import read_curves
from search.pruning.design_matrix import DesignMatrix
from search.pruning.pause_resume import PauseResumeScheduler
from search.pruning.policy import PruningPolicy
from search.pruning.pruner import TopFractionPruner
from search.pruning.rungs import compute_rungs, compute_steps_to_next_rung
from search.pruning.study_state import StudyState, TrialStage
from studies.config import StudyConfig
from studies.storage.leases import PendingWrite
from studies.storage.open import open_storage
from tests.simulations.pruned_search import RecordedCurves, Replay

STEPS, LOG_EVERY = 1000, 40

CURVES = ROOT / "tests" / "simulations" / "curves"
"""Curves of small networks on three tasks."""


@settings(deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 500))
def test_rungs_are_log_points_before_the_end(steps, log_every):
    rungs = compute_rungs(steps, log_every)
    last = 0
    for rung in rungs:
        assert rung.step % log_every == 0
        assert last <= rung.after <= rung.step - log_every
        assert last < rung.step < steps
        last = rung.step
    assert bool(rungs) == (log_every < steps)


def make_state(stages, reached=2):
    """Return a state with trials in these stages; trials are ordered by their value."""
    params, losses, values = simulate_grid(3)
    order = np.argsort(values)[: len(stages)]
    losses, values = losses[order].copy(), values[order].copy()
    for i, stage in enumerate(stages):
        if stage is not TrialStage.COMPLETE:
            values[i] = math.nan
            losses[i, 0 if stage is TrialStage.WAITING else reached :] = math.nan
    steps = compute_steps_to_next_rung(compute_rungs(STEPS, LOG_EVERY)[:3], STEPS)
    return StudyState(
        stages, losses, values, DesignMatrix.from_params([params[i] for i in order]), steps
    )


def make_policy(stages, keep=0.1, confidence=0.95, **options):
    return PruningPolicy(make_state(stages, **options), keep, confidence)


def test_every_trial_reaches_the_first_rung_before_any_is_promoted():
    stages = [TrialStage.PAUSED] * 12
    best = int(np.argmax(make_policy(stages, reached=1).keep_probabilities))
    stages[best] = TrialStage.RUNNING
    assert make_policy(stages, reached=1).should_continue(best)
    policy = make_policy([*stages, TrialStage.WAITING], reached=1)
    assert not policy.should_continue(best)
    assert policy.to_resume == policy.to_resume_ignoring_running == []
    assert not policy.is_final


def test_paused_trials_resume_in_order_of_promise():
    policy = make_policy([TrialStage.PAUSED] * 60, reached=1)
    probabilities = policy.keep_probabilities[policy.to_resume]
    assert len(probabilities) == 60
    assert (np.diff(probabilities) <= 0).all()
    assert probabilities[0] == policy.keep_probabilities.max()
    # While others run, at most twice as many as are to be kept.
    assert len(
        make_policy([TrialStage.PAUSED] * 59 + [TrialStage.RUNNING], reached=1).to_resume
    ) in (11, 12)


def test_trial_at_a_rung_pauses_for_a_more_promising_paused_one():
    order = np.argsort(-make_policy([TrialStage.PAUSED] * 60, reached=1).keep_probabilities)
    best, second, worst = order[0], order[1], order[-1]

    def with_one_running(trial):
        stages = [TrialStage.PAUSED] * 60
        stages[trial] = TrialStage.RUNNING
        return make_policy(stages, reached=1)

    assert with_one_running(best).should_continue(best)
    assert not with_one_running(second).should_continue(second)
    assert not with_one_running(worst).should_continue(worst)
    # It is outside the active set of twelve, though no other trial is paused.
    assert not make_policy([TrialStage.RUNNING] * 60, reached=1).should_continue(worst)


STAGES = [TrialStage.COMPLETE] * 12 + [TrialStage.PAUSED] * 50 + [TrialStage.RUNNING] * 10


@pytest.mark.parametrize(
    "change",
    [
        lambda losses: 1e-8 * losses,
        lambda losses: 1e30 * losses,
        lambda losses: 3 * losses - 8,
        lambda losses: 1e-3 * losses + 1e3,
        lambda losses: np.exp(7 * losses - 30),  # they span decades
    ],
)
@pytest.mark.parametrize("complete", [0, 12])
def test_decisions_do_not_depend_on_the_unit_of_the_losses(change, complete):
    """Losses of any size and sign, with a trial that has no loss yet."""
    stages = STAGES[:complete] + STAGES[12:]
    state = make_state(stages, reached=1)
    state.losses[-1] = math.nan
    held = np.where(np.arange(len(stages)) < complete // 4, 1, -1)
    policies = [
        PruningPolicy(replace(state, losses=losses, values=values, held_out=held), 0.1, 0.95)
        for losses, values in (
            (state.losses, state.values),
            (change(state.losses), change(state.values)),
        )
    ]
    one, other = policies
    undecided = slice(complete, None)
    expected = pytest.approx(one.keep_probabilities[undecided], abs=1e-6)
    assert other.keep_probabilities[undecided] == expected
    assert other.to_resume_ignoring_running == one.to_resume_ignoring_running
    assert other.look() == one.look()


def make_odd_losses(kind, random):
    """Return losses (96, 3) and values of curves that are degenerate somehow."""
    losses = random.lognormal(0, 1, (96, 4))
    if kind == "constant":
        losses[:] = 0.7
    if kind == "solved":  # most trials have a loss of exactly 0
        losses[:60] = 0.0
    if kind == "decades":
        losses = np.exp(-np.arange(4) * random.uniform(0, 9, (96, 1)))
    if kind == "outliers":
        losses[::7] *= 1e30
    if kind == "plateau":
        losses = np.where(np.arange(4) < random.integers(1, 5, (96, 1)), math.log(2), 1e-6)
    return losses[:, :3], losses[:, 3]


@pytest.mark.parametrize("kind", ["constant", "solved", "decades", "outliers", "plateau"])
@pytest.mark.parametrize("complete", [2, 12])
def test_degenerate_curves_give_probabilities(kind, complete):
    losses, values = make_odd_losses(kind, np.random.default_rng(0))
    state = make_state([TrialStage.COMPLETE] * complete + [TrialStage.PAUSED] * (96 - complete))
    losses = np.where(np.isnan(state.losses), math.nan, losses)
    values = np.where(np.isnan(state.values), math.nan, values)
    held = np.where(np.arange(96) < complete // 4, 1, -1)
    policy = PruningPolicy(replace(state, losses=losses, values=values, held_out=held), 0.1, 0.95)
    assert np.isfinite(policy.prediction.mean).all()
    assert np.isfinite(policy.prediction.scale).all()
    assert ((policy.keep_probabilities >= 0) & (policy.keep_probabilities <= 1)).all()
    policy.look()


def test_trial_is_pruned_early_only_once_enough_trials_are_complete():
    few = make_policy([TrialStage.COMPLETE] * 5 + [TrialStage.RUNNING] * 91)
    enough = make_policy([TrialStage.COMPLETE] * 20 + [TrialStage.RUNNING] * 76)
    worst = int(np.argmin(enough.keep_probabilities))
    assert enough.should_prune_now(worst)
    # Same keep probability, but too few complete trials.
    few.__dict__["keep_probabilities"] = enough.keep_probabilities
    assert not few.should_prune_now(worst)
    assert not enough.should_prune_now(int(np.argmax(enough.keep_probabilities[20:])) + 20)


def test_trial_without_a_loss_continues(sqlite_url):
    """A task whose first target comes after a rung has no loss there."""
    config = StudyConfig.model_validate(
        {
            "space": {"layers": [1], "state_size": [32]},
            "training": {"steps": STEPS, "log_every": LOG_EVERY},
            "pruning": {"enabled": True},
        }
    )
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 12)
    scheduler = PauseResumeScheduler(storage, study_id, config)
    trial_id = storage.claim(study_id, "me/1")
    for curve, stopped in (({}, []), ({80: 1.0}, [trial_id])):
        storage.flush([PendingWrite(trial_id, "me/1", curve)])
        assert list(scheduler.decide(scheduler.read(), [trial_id]).stops) == stopped


def record_curves(seed, sizes=(32,)):
    """Simulate complete curves, 48 of each size."""
    params, rungs, values = simulate_grid(seed, sizes=sizes)
    steps = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY)
    random = np.random.default_rng(seed)
    fall = np.exp(-steps / 150)
    lead = (rungs[:, 0] - values - 0.9)[:, None] * np.exp(-steps / 500)
    curves = values[:, None] + lead + 1.2 * fall + random.normal(0, 0.01, (len(values), len(steps)))
    return RecordedCurves(params, steps, curves, curves.min(axis=1))


@pytest.mark.parametrize(
    ("concurrent", "sizes"),
    [
        (24, (32,)),
        pytest.param(1, (32,), marks=pytest.mark.extended),
        pytest.param(4, (32, 64), marks=pytest.mark.extended),
    ],
)
def test_policy_keeps_the_best_tenth_at_a_fraction_of_the_cost(concurrent, sizes):
    results = []
    for seed in range(4):
        recorded = record_curves(seed, sizes)
        order = np.random.default_rng(seed).permutation(len(recorded.values)).tolist()
        results.append(Replay(recorded, concurrent, 0.1, 0.95).run(order))
    assert np.mean([result.recall for result in results]) >= 0.95
    assert np.mean([result.cost for result in results]) <= 0.45
    assert all(result.has_winner for result in results)
    assert max(result.starts for result in results) < 5, "trials pause too often"


@pytest.mark.extended
@pytest.mark.parametrize("task", ["adding", "parity", "series"])
def test_policy_keeps_the_best_tenth_of_recorded_networks(task):
    """Squared errors and cross-entropies that fall over decades, and log-likelihoods."""
    recorded = read_curves(CURVES / f"{task}.csv.gz")
    results = [replay_audited(recorded, 20, seed=0)]
    assert np.mean([result.recall for result in results]) >= 0.95
    assert np.mean([result.cost for result in results]) <= 0.5


# ------------------------------------------------------------------ in plain Optuna


def make_pruner(**options):
    return TopFractionPruner(STEPS, LOG_EVERY, **options)


def make_distributions(recorded):
    choices = {name: dict.fromkeys(p[name] for p in recorded.params) for name in recorded.params[0]}
    return {name: CategoricalDistribution(tuple(values)) for name, values in choices.items()}


def make_finished_study(pruner, sign=1):
    """Return a study of 48 trials: the worst four pruned at the first rung, the rest complete."""
    recorded = record_curves(4)
    direction = "minimize" if sign > 0 else "maximize"
    study = optuna.create_study(direction=direction, pruner=pruner)
    worst = np.argsort(recorded.values)[-4:]
    for i, params in enumerate(recorded.params):
        losses = sign * recorded.curves[i]
        curve = dict(zip(recorded.steps.tolist(), losses.tolist(), strict=True))
        end = {"value": sign * recorded.values[i], "intermediate_values": curve}
        if i in worst:
            first = {LOG_EVERY: curve[LOG_EVERY]}
            end = {"state": TrialState.PRUNED, "intermediate_values": first}
        study.add_trial(
            create_trial(params=params, distributions=make_distributions(recorded), **end)
        )
    return study


@pytest.mark.parametrize("sign", [1, -1], ids=["minimized", "maximized"])
def test_pruner_decides_only_at_rungs(sign):
    study = make_finished_study(make_pruner(), sign)
    trial = study.ask()
    assert study.pruner.prune(study, study._storage.get_trial(trial._trial_id)) is False
    trial.report(sign * 100.0, 5)
    assert not trial.should_prune(), "before the first rung"
    trial.report(sign * 100.0, 50)
    assert trial.should_prune(), "past the first rung, at step 40, with a bad loss"
    late = study.ask()
    late.report(sign * 100.0, 50)
    assert not late.should_prune(), "its first loss is after the rung"
    late.report(sign * 100.0, 80)
    assert late.should_prune(), "at the second rung"


def test_pruner_tolerates_trials_added_by_hand():
    """Trials that wait, have an infinite value, no curve or no parameters."""
    study = make_finished_study(make_pruner(confidence=0.8))
    distributions = study.trials[0].distributions
    params = study.trials[0].params
    for value in (math.inf, 1.0):
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    study.add_trial(create_trial(state=TrialState.FAIL))
    for number in range(20):
        study.enqueue_trial({"rate": number / 7})
    trial = study.ask({"input": distributions["input"]}).number
    running = study.ask()
    running.report(math.nan, 40)
    assert running.should_prune(), "as by Optuna's pruners"
    other = study.ask()
    other.report(100.0, 40)
    assert other.should_prune()
    assert study.trials[trial].state is TrialState.RUNNING


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep is 0.0: expected a value above 0 and below 1"),
        ({"keep": 10}, "keep is 10: expected a value above 0 and below 1"),
        ({"confidence": 1.0}, "confidence is 1.0: expected at least 0.5 and less than 1"),
    ],
)
def test_settings_out_of_range_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        make_pruner(**options)
    with pytest.raises(ValueError, match="log_every is 20 and steps is 10"):
        TopFractionPruner(10, 20)
