"""Search spaces and the resolution of a trial's parameters into a trial config."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import create_trial

from rnn.config import STATE_SOURCES, GatedConfig, TrialConfig
from studies.config import StudyConfig, to_trial_config
from studies.grid import Grid
from studies.space import GATED_PARAMS, REPLICATE, distributions, observed_search_space

BOOLEANS = st.lists(st.booleans(), min_size=1, max_size=2, unique=True)
SIZES = st.lists(st.integers(1, 512), min_size=1, max_size=3, unique=True)

SPACES = st.fixed_dictionaries(
    {
        **dict.fromkeys(
            ("input_gate", "forget_gate", "output_gate", "state_gate", "residual"), BOOLEANS
        ),
        "state_source": st.lists(st.sampled_from(STATE_SOURCES), min_size=1, unique=True),
        "layers": st.lists(st.integers(1, 100), min_size=1, max_size=3, unique=True),
        "state_size": SIZES,
    }
)

ARCHITECTURES = st.builds(
    GatedConfig,
    *[st.booleans()] * 5,
    state_source=st.sampled_from(STATE_SOURCES),
    layers=st.integers(1, 9),
    state_size=st.integers(1, 2048),
)


def study_config(space: dict) -> StudyConfig:
    return StudyConfig.model_validate({"space": space})


def params_of(trial_config: TrialConfig, with_replicate: bool = False) -> dict:
    """The inverse of ``to_trial_config``."""
    architecture = trial_config.architecture
    names = [field.name for field in fields(architecture) if field.name != "gate_inputs"]
    params = {name: getattr(architecture, name) for name in names}
    return params | ({REPLICATE: trial_config.replicate} if with_replicate else {})


@settings(deadline=None)
@given(SPACES, st.data())
def test_grid_is_the_product_of_the_values_less_the_excluded(space, data):
    names = data.draw(st.lists(st.sampled_from(GATED_PARAMS), min_size=1, max_size=3, unique=True))
    exclusion = {name: data.draw(st.sampled_from(space[name])) for name in names}
    product = list(study_config(space).grid.combinations())
    kept = [params for params in product if not exclusion.items() <= params.items()]
    size = 1
    for values in space.values():
        size *= len(values)
    assert len(product) == size
    if kept:
        config = study_config(space | {"exclude": [exclusion]})
        assert list(config.grid.combinations()) == kept


@settings(deadline=None)
@given(SPACES)
def test_params_survive_optunas_categorical_distributions(space):
    config = study_config(space)
    categorical = distributions(config.grid.search_space)
    for params in list(config.grid.combinations())[:50]:
        trial = create_trial(value=0.0, params=params, distributions=categorical)
        internal = {n: d.to_internal_repr(trial.params[n]) for n, d in categorical.items()}
        external = {n: d.to_external_repr(internal[n]) for n, d in categorical.items()}
        assert external == params
        assert [type(v) for v in external.values()] == [type(v) for v in params.values()]
        assert params_of(to_trial_config(external, config)) == params


@settings(deadline=None)
@given(ARCHITECTURES, st.integers(0, 99))
def test_trial_config_survives_as_params(architecture, replicate):
    config = study_config({"layers": [1], "state_size": [1]})
    trial_config = TrialConfig(architecture, replicate)
    assert to_trial_config(params_of(trial_config, with_replicate=True), config) == trial_config


@settings(deadline=None)
@given(st.lists(ARCHITECTURES, min_size=2, unique=True))
def test_architectures_have_distinct_labels_and_keys(architectures):
    assert len({architecture.label for architecture in architectures}) == len(architectures)
    assert len({architecture.init_key for architecture in architectures}) == len(architectures)


@settings(deadline=None)
@given(st.lists(ARCHITECTURES, min_size=1))
def test_observed_search_space_has_the_values_that_occur(architectures):
    trials = [params_of(TrialConfig(architecture)) for architecture in architectures]
    space = observed_search_space(trials)
    assert list(space) == list(GATED_PARAMS)
    for name, values in space.items():
        assert set(values) == {params[name] for params in trials}


def test_baseline_cells_have_no_switches():
    config = study_config({"cell": ["lstm", "gru"], "layers": [1, 2], "state_size": [8]})
    combinations = list(config.grid.combinations())
    assert combinations[0] == {"cell": "lstm", "layers": 1, "state_size": 8}
    trial_configs = [to_trial_config(params, config) for params in combinations]
    labels = [trial_config.architecture.label for trial_config in trial_configs]
    assert labels == ["1×8 LSTM", "2×8 LSTM", "1×8 GRU", "2×8 GRU"]
    assert [params_of(trial_config) for trial_config in trial_configs] == combinations
    assert list(config.grid.search_space) == ["cell", "layers", "state_size"]


def test_bptt_steps_comes_from_the_trial_or_else_from_the_study():
    space = {"cell": ["gru"], "layers": [1], "state_size": [8]}
    varied = study_config(space | {"bptt_steps": [1, 16]})
    bptt_steps = [
        to_trial_config(params, varied).bptt_steps for params in varied.grid.combinations()
    ]
    assert bptt_steps == [1, 16]
    fixed = StudyConfig.model_validate({"space": space, "training": {"bptt_steps": 4}})
    (params,) = fixed.grid.combinations()
    assert to_trial_config(params, fixed).bptt_steps == 4


def test_gate_inputs_come_from_the_study():
    config = StudyConfig.model_validate(
        {"space": {"layers": [1], "state_size": [4]}, "gate_inputs": "candidate"}
    )
    params = next(config.grid.combinations())
    assert to_trial_config(params, config).architecture.gate_inputs == "candidate"


def test_grid_that_is_too_large_to_list_is_refused_before_it_is():
    values = {"layers": [*range(1, 101)], "state_size": [*range(1, 50_001)]}
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(Grid, "_space_combinations", lambda *_: pytest.fail("listed"))
        with pytest.raises(ValueError, match="has 480,000,000 combinations: expected at most"):
            study_config({**values, "exclude": [{"layers": 1}]})
