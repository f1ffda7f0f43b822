"""Whoever asks, each point runs once."""

import threading

import optuna
import pytest
from helpers import at_once, meet
from hooks import PATIENT_SECONDS
from optuna.trial import TrialState

from search.errors import GridExhaustedError
from search.grid import SURPLUS, GridSampler
from search.study import StudyOptions, create_or_join
from studies.loader import load_config_file
from studies.space import GATED_PARAMS

OVERRIDES = [
    "space.layers=[1, 2]",
    "space.state_size=[2, 4]",
    "space.state_source=['new', 'both']",
    "space.input_gate=[false]",
    "space.output_gate=[false]",
    "space.state_gate=[false]",
    "space.exclude=[{state_size=2, residual=false}, {layers=2, state_size=4}]",
    "evaluation.window_length=8",
    "training.sequence_length=8",
]
"""Sixteen of 32 combinations."""

SPACE = {"a": [1, 2, 3], "b": [True, False], "c": ["x", "y"]}
EXCLUDE = [{"a": 3, "b": True}]
GRID = {(a, b, c) for a in SPACE["a"] for b in SPACE["b"] for c in SPACE["c"] if not (a == 3 and b)}


def objective(trial: optuna.Trial) -> float:
    a = trial.suggest_categorical("a", SPACE["a"])
    b = trial.suggest_categorical("b", SPACE["b"])
    c = trial.suggest_categorical("c", SPACE["c"])
    return a + b + len(c)


def planned(url: str, text: str) -> optuna.Study:
    return create_or_join(
        load_config_file("stage-one", OVERRIDES), url, StudyOptions(corpus=text)
    ).study


def from_storage(trial: optuna.Trial) -> float:
    """An objective that takes a study's parameters as they come."""
    for name, distribution in trial.distributions.items():
        assert trial.suggest_categorical(name, distribution.choices) == trial.params[name]
    return 1.0 if len(trial.params) == 8 else trial.suggest_categorical("layers", [1, 2])


def after_meeting(objective, meet):
    """Return an objective that waits, the first time in a thread, until all others are there."""
    own = threading.local()

    def run(trial: optuna.Trial) -> float:
        if not hasattr(own, "has_met"):
            own.has_met = True
            meet()
        return objective(trial)

    return run


def four_threads(objective):
    """Return an objective that lets none of four threads run all the points."""
    barrier = threading.Barrier(4)
    return after_meeting(objective, lambda: barrier.wait(PATIENT_SECONDS))


many_processes = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.extended)], indirect=True
)
"""Of what the other test in many processes shows on PostgreSQL."""


def grid_of(text: str) -> set:
    config = load_config_file("stage-one", OVERRIDES).resolve()
    return {tuple(point.values()) for point in config.space.combinations()}


def check_each_once(url: str) -> None:
    study = optuna.load_study(study_name="stage-one", storage=url)
    points = [trial for trial in study.trials if not trial.system_attrs.get(SURPLUS)]
    assert [trial.state for trial in points] == [TrialState.COMPLETE] * 16
    run = [tuple(trial.params[key] for key in GATED_PARAMS) for trial in points]
    assert len(set(run)) == 16
    assert set(run) == grid_of("")


# ------------------------------------------------------------------ a study of ours


def test_a_study_is_opened_with_the_sampler(sqlite_url, text):
    study = planned(sqlite_url, str(text))
    assert isinstance(study.sampler, GridSampler)
    assert len(study.sampler.points) == 16
    assert not study.sampler.is_exhausted(study)


def test_plain_optimize(sqlite_url, text):
    study = planned(sqlite_url, str(text))
    study.optimize(from_storage)
    assert len(study.trials) == 16
    check_each_once(sqlite_url)
    assert study.sampler.is_exhausted(study)


def test_plain_optimize_with_threads(sqlite_url, text):
    planned(sqlite_url, str(text)).optimize(four_threads(from_storage), n_jobs=4)
    check_each_once(sqlite_url)


def optimize(url: str, text: str) -> None:
    planned(url, text).optimize(after_meeting(from_storage, meet))


@many_processes
def test_plain_optimize_in_many_processes(url, text):
    planned(url, str(text))
    at_once(optimize, [(url, str(text))] * 4)
    check_each_once(url)


def ask_and_tell(url: str, text: str) -> int:
    study, told = planned(url, text), 0
    while True:
        try:
            trial = study.ask()
        except GridExhaustedError:
            return told
        if not told:
            meet()  # each has one, and there are others left for all
        study.tell(trial, from_storage(trial))
        told += 1


def test_ask_and_tell_in_many_processes(url, text):
    planned(url, str(text))
    told = at_once(ask_and_tell, [(url, str(text))] * 4)
    assert sum(told) == 16
    assert min(told) >= 1
    check_each_once(url)


def test_a_failed_point_is_a_failed_point_and_no_other_is_left_out(sqlite_url, text):
    study = planned(sqlite_url, str(text))

    def fails_once(trial: optuna.Trial) -> float:
        if trial.number == 5:
            raise RuntimeError("as it may")
        return 1.0

    study.optimize(fails_once, catch=(RuntimeError,))
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 15
    assert states[5] is TrialState.FAIL


def test_a_finished_study_turns_plain_optuna_away(sqlite_url, text):
    study = planned(sqlite_url, str(text))
    study.optimize(from_storage)
    calls = []
    study.optimize(lambda trial: calls.append(trial) or from_storage(trial))
    with pytest.raises(GridExhaustedError, match="no point of study 'stage-one' is left"):
        study.ask()
    check_each_once(sqlite_url)


# ------------------------------------------------------------------ any study


def run_points(study: optuna.Study) -> list[tuple]:
    return [
        tuple(trial.params[name] for name in SPACE)
        for trial in study.trials
        if trial.state is TrialState.COMPLETE
    ]


def test_a_study_that_nobody_planned_runs_the_whole_grid():
    study = optuna.create_study(sampler=GridSampler(SPACE, exclude=EXCLUDE))
    study.optimize(objective)
    assert len(study.trials) == len(GRID)
    assert set(run_points(study)) == GRID


def test_threads_in_memory():
    study = optuna.create_study(sampler=GridSampler(SPACE, exclude=EXCLUDE))
    study.optimize(objective, n_trials=1)
    study.optimize(four_threads(objective), n_jobs=4)
    assert sorted(run_points(study), key=repr) == sorted(GRID, key=repr)


def test_a_point_that_was_enqueued_counts_as_that_point():
    study = optuna.create_study(sampler=GridSampler(SPACE, exclude=EXCLUDE))
    study.enqueue_trial({"a": 1, "b": True, "c": "x"})
    study.optimize(objective, n_trials=1)
    study.optimize(objective)
    assert sorted(run_points(study), key=repr) == sorted(GRID, key=repr)


def test_the_order_follows_from_the_seed():
    one, again, other = (GridSampler(SPACE, seed).points for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert sorted(one, key=repr) == sorted(other, key=repr)


def test_points_given_are_run_in_their_order():
    points = [{"a": 2, "b": True, "c": "y"}, {"a": 1, "b": False, "c": "x"}]
    study = optuna.create_study(sampler=GridSampler(SPACE, points=points))
    study.optimize(objective)
    assert [trial.params for trial in study.trials] == points


def test_threads_share_one_sampler(sqlite_url, text):
    study = planned(sqlite_url, str(text))
    numbers, lock, barrier = [], threading.Lock(), threading.Barrier(4)

    def work() -> None:
        has_met = False
        while True:
            try:
                trial = study.ask()
            except GridExhaustedError:
                return
            if not has_met:
                has_met = True
                barrier.wait(PATIENT_SECONDS)
            with lock:
                numbers.append(trial.number)
            study.tell(trial, 0.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(16))
