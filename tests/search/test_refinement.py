"""Trials derived from the best of a source study."""

import pytest
from helpers import TINY
from optuna.trial import TrialState, create_trial
from sqlalchemy import Engine, event

from search.errors import UnfinishedSourceError
from search.new_study import StudyOptions
from search.refinement import derive_trials, rank_trials
from search.study import create_or_join
from studies.config import StudyConfig, top_count
from studies.errors import ConfigError
from studies.loader import load_config_file
from studies.storage.counts import TrialCounts
from studies.storage.queries import TrialRow

SPACE = StudyConfig(space={"layers": [1, 2, 3], "state_size": [32, 256]}).grid
VARIANTS = [
    {},
    {"state_size": 512},
    {"layers": 3, "state_size": 256},
    {"layers": 3, "state_size": 512},
]


def complete(number: int, value: float, params: dict | None = None) -> TrialRow:
    return TrialRow(number, TrialState.COMPLETE, params or {}, {}, value)


def source(count: int = 40, failed: int = 0) -> list[TrialRow]:
    """Return trials that get worse with their number; the last ones failed."""
    combinations = list(SPACE.combinations())[:count]
    return [
        complete(i, float(i), params)
        if i < count - failed
        else TrialRow(i, TrialState.FAIL, params, {})
        for i, params in enumerate(combinations)
    ]


def config(**refinement) -> StudyConfig:
    return StudyConfig.model_validate({"refinement": {"source": "s"} | refinement})


def counts(complete: int, **others: int) -> TrialCounts:
    return TrialCounts(complete=complete, **others)


@pytest.mark.parametrize(
    ("best", "planned", "expected"),
    [
        (0.1, 432, 43),
        (0.1, 96, 9),
        (0.1, 9, 1),
        (0.1, 1, 1),
        (10, 130, 10),
        (0.5, 3, 1),
        (0.29, 100, 29),
        (0.57, 100, 57),
    ],
)
def test_top_count_is_a_fraction_rounded_down_but_at_least_one(best, planned, expected):
    assert top_count(best, planned) == expected


def test_variants_are_applied_to_the_best_and_equal_trials_merged():
    trials = derive_trials(source(), counts(40), config(top=2, variants=VARIANTS))
    # The first two source trials differ only in their state size (32 and 256, one layer).
    seen = [(trial.params["layers"], trial.params["state_size"]) for trial in trials]
    assert seen == [(1, 32), (1, 512), (3, 256), (3, 512), (1, 256)]
    assert [trial.attributes["source_trials"] for trial in trials] == [
        [0],
        [0, 1],
        [0, 1],
        [0, 1],
        [1],
    ]
    switches = [list(trial.params.items())[:6] for trial in trials]
    assert all(s == switches[0] for s in switches)


def test_replicates_are_numbered_from_one():
    trials = derive_trials(source(), counts(40), config(top=2, replicates=3))
    assert [trial.params["replicate"] for trial in trials] == [1, 2, 3, 1, 2, 3]
    assert [trial.attributes["source_trials"] for trial in trials] == [[0]] * 3 + [[1]] * 3


def test_bptt_steps_is_a_parameter_of_every_trial_if_it_varies():
    variants = [{}, {"bptt_steps": 4}, {"bptt_steps": 16, "layers": 3}]
    trials = derive_trials(source(), counts(40), config(top=1, variants=variants))
    assert [(trial.params["bptt_steps"], trial.params["layers"]) for trial in trials] == [
        (1, 1),
        (4, 1),
        (16, 3),
    ]
    unchanged = derive_trials(source(), counts(40), config(top=1))
    assert "bptt_steps" not in unchanged[0].params


def test_variant_of_a_parameter_that_a_baseline_cell_lacks_is_rejected():
    gru = StudyConfig(space={"cell": ["gru"], "layers": [1], "state_size": [8]})
    (params,) = gru.grid.combinations()
    trials = [complete(0, 1.0, params)]
    wider = config(top=1, variants=[{"state_size": 16, "bptt_steps": 4}])
    (derived,) = derive_trials(trials, counts(1), wider)
    assert derived.params == params | {"state_size": 16, "bptt_steps": 4}
    with pytest.raises(
        ConfigError, match=r"unknown parameter .* forget_gate; .* have cell, layers"
    ):
        derive_trials(trials, counts(1), config(top=1, variants=[{"forget_gate": True}]))


def test_source_with_replicates_is_ranked_by_mean_and_run_with_new_replicates():
    """The first architecture has the best run, the second the best mean."""
    combinations = list(SPACE.combinations())[:3]
    values = ([0.1, 0.9], [0.3, 0.4], [0.8, 0.8])
    runs = [
        (value, params | {"replicate": replicate})
        for params, pair in zip(combinations, values, strict=True)
        for replicate, value in enumerate(pair, 1)
    ]
    trials = [complete(number, *run) for number, run in enumerate(runs)]
    derived = derive_trials(trials, counts(6), config(top=2, replicates=2))
    assert [trial.params for trial in derived] == [
        combinations[i] | {"replicate": replicate} for i in (1, 0) for replicate in (3, 4)
    ]
    assert [sorted(trial.attributes["source_trials"]) for trial in derived[::2]] == [[2, 3], [0, 1]]
    (tenth,) = derive_trials(trials, counts(6), config(top=0.4))
    assert tenth.params == combinations[1], "a fraction of the architectures"


def test_fraction_counts_all_planned_trials_including_diverged_ones():
    study = source(count=40, failed=15)
    trials = derive_trials(study, counts(25, diverged=15), config(top=0.1))
    assert len(trials) == 4


def test_unfinished_source_is_rejected_unless_partial_is_set():
    study, unfinished = source(25), counts(25, running=2, waiting=13)
    with pytest.raises(UnfinishedSourceError, match=r"finished 25 of 40.*2 running, 13 waiting"):
        derive_trials(study, unfinished, config())
    assert len(derive_trials(study, unfinished, config(), partial=True)) == 4


def test_too_few_complete_trials_are_rejected():
    study = source(count=10, failed=8)
    with pytest.raises(
        UnfinishedSourceError, match=r"2 complete trials, but refinement.top = 0.5 needs 5"
    ):
        derive_trials(study, counts(2, diverged=8), config(top=0.5))


def test_ties_are_ranked_by_number():
    infinite = TrialRow(4, TrialState.COMPLETE, {}, {})  # has no finite value
    trials = [infinite, complete(3, 1.0), *reversed(source(3))]
    assert [trial.number for trial in rank_trials(trials)] == [0, 1, 3, 2, 4]


def test_source_trials_are_ranked_without_reading_curves(url, text):
    """Curves are almost all of a large study; trials outside of the grid are not ranked."""
    options = StudyOptions(corpus=str(text))
    settings = [word.removeprefix("--set=") for word in TINY]
    space = ["space.layers=[1]", "space.state_size=[3]"]
    first = create_or_join(load_config_file("quick", [*settings, *space]), url, options)
    count = len(first.study.sampler.combinations)
    for value in range(count):
        trial_id = first.storage.claim(first.study_id, "me")
        first.storage.finish(trial_id, "me", TrialState.COMPLETE, value, {}, {2: 0.5, 4: 0.25})
    first.study.add_trial(create_trial(value=-1.0))
    best = first.study.trials[0].params
    first.storage.close()

    statements = []

    def record(connection, cursor, statement, *arguments):
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", record)
    try:
        file = load_config_file("quick-refined", [*settings, "refinement.top=2"])
        for _ in ("derive", "join"):
            derived = create_or_join(file, url, options)
            derived.storage.close()
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    assert any("trial_params" in statement for statement in statements)
    assert not [statement for statement in statements if "trial_intermediate_values" in statement]
    assert best in derived.study.sampler.combinations
    origins = [trial.user_attrs["source_trials"] for trial in derived.study.trials]
    assert {number for numbers in origins for number in numbers} == {0, 1}


def test_many_derived_trials_need_confirmation_before_they_are_listed():
    many = config(top=2, replicates=10_001)
    with pytest.raises(ConfigError, match=r"20,002 new trials, .* confirm with --yes"):
        derive_trials(source(), counts(40), many)
    assert len(derive_trials(source(), counts(40), many, confirmed=True)) == 20_002
    with pytest.raises(ConfigError, match="20,000,000,000 new trials are too many"):
        derive_trials(source(), counts(40), config(top=2, replicates=10**10), confirmed=True)
