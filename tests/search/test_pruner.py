"""The pruner gives up on what is unlikely to be wanted, and on nothing else."""

import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from test_forecast import world

from benchmarks.recorded_curves import Recorded
from benchmarks.replay_pruning import Replay, replay_in_optuna
from search.pruning.policy import PruningPolicy, StudyState, TrialStage, ahead_of, rungs_of
from search.pruning.predictions import DesignMatrix
from search.pruning.pruner import TopFractionPruner

STEPS, LOG_EVERY = 1000, 40


@settings(deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 500))
def test_rungs_are_log_points_before_the_end(steps, log_every):
    rungs = rungs_of(steps, log_every)
    last = 0
    for rung in rungs:
        assert rung.step % log_every == 0
        assert last <= rung.after <= rung.step - log_every
        assert last < rung.step < steps
        last = rung.step
    assert bool(rungs) == (log_every < steps)


def test_a_loss_at_a_rung_is_a_mean_over_what_led_there():
    assert [(rung.after, rung.step) for rung in rungs_of(10_000, 50)] == [
        (320, 400), (640, 800), (1280, 1600), (2560, 3200), (5120, 6400)
    ]  # fmt: skip


def standing(stages, chances=None, reached=2):
    """Points of a world at these stages; its complete ones are the best of it."""
    points, losses, values = world(3)
    order = np.argsort(values)[: len(stages)]
    losses, values = losses[order].copy(), values[order].copy()
    for i, stage in enumerate(stages):
        if stage is not TrialStage.COMPLETE:
            values[i] = math.nan
            losses[i, 0 if stage is TrialStage.FRESH else reached :] = math.nan
    ahead = ahead_of(rungs_of(STEPS, LOG_EVERY)[:3], STEPS)
    return StudyState(stages, losses, values, DesignMatrix.of([points[i] for i in order]), ahead)


def judge(stages, keep=0.1, confidence=0.95, **options):
    return PruningPolicy(standing(stages, **options), keep, confidence)


def test_every_point_comes_to_the_first_rung_before_any_goes_on():
    stages = [TrialStage.PAUSED] * 12
    best = int(np.argmax(judge(stages, reached=1).chances))
    stages[best] = TrialStage.RUNNING
    assert judge(stages, reached=1).goes_on(best)
    judgement = judge([*stages, TrialStage.FRESH], reached=1)
    assert not judgement.goes_on(best)
    assert judgement.wanted == judgement.lacking == []
    assert not judgement.is_settled


def test_the_most_promising_paused_point_is_gone_on_with_first():
    judgement = judge([TrialStage.PAUSED] * 60, reached=1)
    chances = judgement.chances[judgement.wanted]
    assert len(chances) == 60
    assert (np.diff(chances) <= 0).all()
    assert chances[0] == judgement.chances.max()
    # While others run, no more than are in view: twice as many as are to be kept.
    assert len(judge([TrialStage.PAUSED] * 59 + [TrialStage.RUNNING], reached=1).wanted) in (11, 12)


def test_one_that_runs_at_a_rung_yields_to_a_better_one_that_waits():
    order = np.argsort(-judge([TrialStage.PAUSED] * 60, reached=1).chances)
    best, second, worst = order[0], order[1], order[-1]

    def with_one_running(point):
        stages = [TrialStage.PAUSED] * 60
        stages[point] = TrialStage.RUNNING
        return judge(stages, reached=1)

    assert with_one_running(best).goes_on(best)
    assert not with_one_running(second).goes_on(second)
    assert not with_one_running(worst).goes_on(worst)
    # Of sixty that run it is not one of the twelve in view, though none waits.
    assert not judge([TrialStage.RUNNING] * 60, reached=1).goes_on(worst)


def test_it_is_enough_when_little_is_expected_to_be_lost():
    """The best half is complete: of the best tenth nothing is among the others."""
    stages = [TrialStage.COMPLETE] * 30 + [TrialStage.PAUSED] * 30
    judgement = judge(stages)
    assert judgement.chances[30:].sum() <= judgement.allowance
    assert judgement.wanted == []
    assert judgement.is_settled
    # The half that is complete is not the better one: then it is not enough.
    turned = judge(stages[::-1])
    assert turned.wanted
    assert not turned.is_settled


def test_while_one_runs_nothing_is_settled():
    assert judge(
        [TrialStage.COMPLETE] * 30 + [TrialStage.PAUSED] * 29 + [TrialStage.PRUNED]
    ).is_settled
    assert not judge(
        [TrialStage.COMPLETE] * 30 + [TrialStage.PAUSED] * 29 + [TrialStage.RUNNING]
    ).is_settled


def test_a_point_is_hopeless_only_once_as_many_are_complete_as_are_to_be_kept():
    few = judge([TrialStage.COMPLETE] * 5 + [TrialStage.RUNNING] * 91)
    enough = judge([TrialStage.COMPLETE] * 20 + [TrialStage.RUNNING] * 76)
    worst = int(np.argmin(enough.chances))
    assert enough.is_hopeless(worst)
    # It is as hopeless by what is foretold, but less is known than must be.
    few.__dict__["chances"] = enough.chances
    assert not few.is_hopeless(worst)
    assert not enough.is_hopeless(int(np.argmax(enough.chances[20:])) + 20)


def test_points_that_failed_take_nobodys_place_and_nothing_is_foretold_of_them():
    stages = [TrialStage.COMPLETE] * 20 + [TrialStage.PAUSED] * 20 + [TrialStage.FAILED] * 20
    judgement = judge(stages)
    assert judgement.top_count == 6  # of all points
    assert (judgement.chances[40:] == 0).all()
    assert judgement.chances.sum() == pytest.approx(6, abs=0.5)
    assert judge([TrialStage.FAILED] * 10).is_settled


def test_while_one_runs_for_ever_there_is_still_a_choice():
    """Those not in view wait for what others will tell, but they are there to be taken."""
    judgement = judge([TrialStage.RUNNING] + [TrialStage.PAUSED] * 7, reached=1)
    assert len(judgement.lacking) > 0
    assert len(judgement.wanted) < len(judgement.lacking)


def recorded(seed, sizes=(32,)):
    """Points of a world as if they had been trained, 48 of each size."""
    points, rungs, values = world(seed, sizes=sizes)
    steps = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY)
    random = np.random.default_rng(seed)
    fall = np.exp(-steps / 150)
    lead = (rungs[:, 0] - values - 0.9)[:, None] * np.exp(-steps / 500)
    curves = values[:, None] + lead + 1.2 * fall + random.normal(0, 0.01, (len(values), len(steps)))
    return Recorded(points, steps, curves, curves.min(axis=1))


def check_the_best_tenth(concurrent, sizes):
    found = []
    for seed in range(4):
        known = recorded(seed, sizes)
        order = np.random.default_rng(seed).permutation(len(known.values)).tolist()
        found.append(Replay(known, concurrent, 0.1, 0.95).run(order))
    assert np.mean([outcome.recall for outcome in found]) >= 0.95
    assert np.mean([outcome.cost for outcome in found]) <= 0.45
    assert all(outcome.has_winner for outcome in found)
    assert max(outcome.begun for outcome in found) < 5, "it is not paused again and again"


@pytest.mark.parametrize("concurrent", [1, 24])
def test_the_best_tenth_is_kept_at_a_fraction_of_the_cost(concurrent):
    check_the_best_tenth(concurrent, sizes=(32,))


@pytest.mark.extended
@pytest.mark.parametrize("concurrent", [1, 4, 24])
def test_the_best_tenth_of_more_points_is_kept(concurrent):
    check_the_best_tenth(concurrent, sizes=(32, 64))


def test_more_confidence_costs_more():
    costs = [
        Replay(recorded(1), 4, 0.1, confidence).run(list(range(48))).cost
        for confidence in (0.6, 0.95, 0.999)
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_what_is_decided_follows_from_what_is_known():
    first, second = (Replay(recorded(2), 4, 0.1, 0.95) for _ in range(2))
    assert first.run(list(range(48))) == second.run(list(range(48)))
    assert first.stages == second.stages


# ------------------------------------------------------------------ in plain Optuna


def pruner(**options):
    return TopFractionPruner(STEPS, LOG_EVERY, **options)


def optimize(study, known):
    """Have Optuna run the points of a world; return which of the best tenth are complete."""
    better = -1 if study.direction is optuna.study.StudyDirection.MAXIMIZE else 1

    def objective(trial):
        point = {
            name: trial.suggest_categorical(name, distribution.choices)
            for name, distribution in distributions_of(known).items()
        }
        place = known.points.index(point)
        for step, loss in zip(known.steps.tolist(), known.curves[place], strict=True):
            trial.report(better * loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return better * known.values[place]

    count = len(known.points)
    for i in np.random.default_rng(0).permutation(count):
        study.enqueue_trial(known.points[i])
    study.optimize(objective, n_trials=count)
    best = [known.points[i] for i in np.argsort(known.values)[: count // 10]]
    complete = [t.params for t in study.trials if t.state is TrialState.COMPLETE]
    return [point in complete for point in best]


def distributions_of(known):
    values = {name: dict.fromkeys(p[name] for p in known.points) for name in known.points[0]}
    return {name: CategoricalDistribution(tuple(found)) for name, found in values.items()}


def check_plain_optuna(known, least_kept, least_pruned):
    study = optuna.create_study(direction="maximize", pruner=pruner())
    kept = optimize(study, known)
    pruned = [trial for trial in study.trials if trial.state is TrialState.PRUNED]
    assert sum(kept) >= least_kept
    assert len(pruned) >= least_pruned
    rungs = {rung.step for rung in rungs_of(STEPS, LOG_EVERY)}
    assert {trial.last_step for trial in pruned} <= rungs
    # Not before as many are complete as are to be kept.
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials[: len(kept)])


def test_plain_optuna_keeps_the_best_tenth_too():
    check_plain_optuna(recorded(1), least_kept=3, least_pruned=10)


@pytest.mark.extended
def test_plain_optuna_keeps_the_best_tenth_of_more_points_too():
    check_plain_optuna(recorded(4, sizes=(32, 64)), least_kept=7, least_pruned=20)


def study_of_finished_trials(pruner):
    """A study of 48 trials; the worst four were pruned at the first rung, the rest is complete."""
    known = recorded(4)
    study = optuna.create_study(pruner=pruner)
    worst = np.argsort(known.values)[-4:]
    for i, point in enumerate(known.points):
        curve = dict(zip(known.steps.tolist(), known.curves[i].tolist(), strict=True))
        end = {"value": known.values[i], "intermediate_values": curve}
        if i in worst:
            first = {LOG_EVERY: curve[LOG_EVERY]}
            end = {"state": TrialState.PRUNED, "intermediate_values": first}
        study.add_trial(create_trial(params=point, distributions=distributions_of(known), **end))
    return study


def test_it_is_asked_between_rungs_and_answers_at_once():
    study = study_of_finished_trials(pruner())
    trial = study.ask()
    assert study.pruner.prune(study, study._storage.get_trial(trial._trial_id)) is False
    trial.report(100.0, 5)
    assert not trial.should_prune(), "not at a rung"
    trial.report(100.0, 50)
    assert trial.should_prune(), "past the first rung, at 40, and far off"


def test_trials_of_other_kinds_do_not_disturb_it():
    """Some wait, one has no value to speak of, one no curve, one no parameters."""
    study = study_of_finished_trials(pruner(confidence=0.8))
    distributions = study.trials[0].distributions
    point = study.trials[0].params
    for value in (math.inf, 1.0):
        study.add_trial(create_trial(params=point, distributions=distributions, value=value))
    study.add_trial(create_trial(state=TrialState.FAIL))
    for number in range(20):
        study.enqueue_trial({"rate": number / 7})
    trial = study.ask({"input": distributions["input"]}).number
    running = study.ask()
    running.report(math.nan, 40)
    assert running.should_prune(), "as by Optuna's own"
    other = study.ask()
    other.report(100.0, 40)
    assert other.should_prune()
    assert study.trials[trial].state is TrialState.RUNNING


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep": 0.0}, "keep is 0.0; allowed: above 0 and below 1"),
        ({"keep": 10}, "keep is 10; allowed: above 0 and below 1"),
        ({"confidence": 1.0}, "confidence is 1.0; allowed: 0.5 and more, below 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        pruner(**options)
    with pytest.raises(ValueError, match="log_every is 20 and steps 10"):
        TopFractionPruner(10, 20)


def test_optunas_own_pruners_are_replayed_on_the_same_points():
    known = recorded(5)
    found = replay_in_optuna(
        known, optuna.pruners.MedianPruner(), [5, 12, 20], list(range(48)), 4, 0.1
    )
    nothing = replay_in_optuna(
        known, optuna.pruners.NopPruner(), [5, 12, 20], list(range(48)), 4, 0.1
    )
    assert 0.2 < found.cost < 1
    assert (nothing.cost, nothing.recall, nothing.complete) == (1, 1, 1)
