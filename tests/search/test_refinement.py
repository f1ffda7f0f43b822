"""The best of a study → the points of the next."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from search.errors import UnfinishedSourceError
from search.refinement import derive_trials, rank_trials
from studies.attributes import IS_GRID_TRIAL
from studies.config import StudyConfig, top_count
from studies.errors import ConfigError
from studies.space import GATED_PARAMS, Space
from studies.storage.counts import TrialCounts

SPACE = Space(layers=[1, 2, 3], state_size=[32, 256])
VARIANTS = [
    {},
    {"state_size": 512},
    {"layers": 3, "state_size": 256},
    {"layers": 3, "state_size": 512},
]


def source(count: int = 40, failed: int = 0) -> optuna.Study:
    """A study in which a later point is worse."""
    study = optuna.create_study()
    distributions = {n: CategoricalDistribution(tuple(SPACE.values(n))) for n in GATED_PARAMS}
    points = list(SPACE.combinations())[:count]
    study.add_trials(
        [
            create_trial(
                system_attrs={IS_GRID_TRIAL: True},
                state=TrialState.FAIL if i >= count - failed else TrialState.COMPLETE,
                value=None if i >= count - failed else float(i),
                params=point,
                distributions=distributions,
            )
            for i, point in enumerate(points)
        ]
    )
    return study


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
def test_the_best_are_a_fraction_rounded_down_but_at_least_one(best, planned, expected):
    assert top_count(best, planned) == expected


def test_variants_are_laid_over_the_best_and_coinciding_points_are_one():
    points = derive_trials(source(), counts(40), config(top=2, variants=VARIANTS))
    # By hand: the first two points differ in their state size alone (32 and 256, one layer).
    seen = [(p.params["layers"], p.params["state_size"]) for p in points]
    assert seen == [(1, 32), (1, 512), (3, 256), (3, 512), (1, 256)]
    assert [p.attributes["source_trials"] for p in points] == [[0], [0, 1], [0, 1], [0, 1], [1]]
    switches = [list(p.params.items())[:6] for p in points]
    assert all(s == switches[0] for s in switches)


def test_replicates_are_numbered_by_a_parameter_from_one():
    points = derive_trials(source(), counts(40), config(top=2, replicates=3))
    assert [p.params["replicate"] for p in points] == [1, 2, 3, 1, 2, 3]
    assert [p.attributes["source_trials"] for p in points] == [[0]] * 3 + [[1]] * 3


def test_a_bptt_steps_that_varies_is_a_parameter_of_every_point():
    variants = [{}, {"bptt_steps": 4}, {"bptt_steps": 16, "layers": 3}]
    points = derive_trials(source(), counts(40), config(top=1, variants=variants))
    assert [(p.params["bptt_steps"], p.params["layers"]) for p in points] == [
        (1, 1),
        (4, 1),
        (16, 3),
    ]
    as_it_is = derive_trials(source(), counts(40), config(top=1))
    assert "bptt_steps" not in as_it_is[0].params


def test_a_variant_of_what_a_known_cell_does_not_have_is_refused():
    cells = Space(cell=["gru"], layers=[1], state_size=[8])
    study = optuna.create_study()
    categorical = {n: CategoricalDistribution(tuple(cells.values(n))) for n in cells.parameters}
    (point,) = cells.combinations()
    study.add_trial(
        create_trial(
            value=1.0, params=point, distributions=categorical, system_attrs={IS_GRID_TRIAL: True}
        )
    )
    wider = config(top=1, variants=[{"state_size": 16, "bptt_steps": 4}])
    (derived,) = derive_trials(study, counts(1), wider)
    assert derived.params == point | {"state_size": 16, "bptt_steps": 4}
    with pytest.raises(ConfigError, match=r"names forget_gate; allowed .* cell, layers"):
        derive_trials(study, counts(1), config(top=1, variants=[{"forget_gate": True}]))


def test_of_a_source_with_replicates_the_best_on_average_are_run_again_anew():
    """The first architecture has the luckiest run, the second is better on average."""
    study = optuna.create_study()
    points = list(SPACE.combinations())[:3]
    values = ([0.1, 0.9], [0.3, 0.4], [0.8, 0.8])
    distributions = {n: CategoricalDistribution(tuple(SPACE.values(n))) for n in GATED_PARAMS}
    distributions["replicate"] = CategoricalDistribution((1, 2))
    for point, runs in zip(points, values, strict=True):
        for replicate, value in enumerate(runs, 1):
            study.add_trial(
                create_trial(
                    value=value,
                    params=point | {"replicate": replicate},
                    distributions=distributions,
                    system_attrs={IS_GRID_TRIAL: True},
                )
            )
    derived = derive_trials(study, counts(6), config(top=2, replicates=2))
    assert [p.params for p in derived] == [
        points[i] | {"replicate": replicate} for i in (1, 0) for replicate in (3, 4)
    ]
    assert [sorted(p.attributes["source_trials"]) for p in derived[::2]] == [[2, 3], [0, 1]]
    (tenth,) = derive_trials(study, counts(6), config(top=0.4))
    assert tenth.params == points[1], "a fraction of the architectures"


def test_the_decile_is_of_all_planned_points_diverged_ones_included():
    study = source(count=40, failed=15)
    points = derive_trials(study, counts(25, diverged=15), config(top=0.1))
    assert len(points) == 4


def test_an_unfinished_source_is_refused_unless_partial_will_do():
    study, unfinished = source(25), counts(25, running=2, waiting=13)
    with pytest.raises(UnfinishedSourceError, match=r"finished 25 of 40.*2 running, 13 waiting"):
        derive_trials(study, unfinished, config())
    assert len(derive_trials(study, unfinished, config(), partial=True)) == 4


def test_fewer_complete_than_wanted_are_refused():
    study = source(count=10, failed=8)
    with pytest.raises(UnfinishedSourceError, match=r"2 complete points; allowed: 5 or more"):
        derive_trials(study, counts(2, diverged=8), config(top=0.5))


def test_of_equals_the_lower_number_is_the_better():
    study = source(3)
    study.add_trial(create_trial(value=1.0, system_attrs={IS_GRID_TRIAL: True}))
    study.add_trial(create_trial(value=0.5))  # which is no point
    assert [trial.number for trial in rank_trials(study)] == [0, 1, 3, 2]
