"""Definition ↔ points ↔ architectures: nothing is lost on the way and back."""

from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import create_trial

from rnn.config import STATE_SOURCES, BaselineConfig, GatedConfig, TrialConfig
from search.parameters import distributions, observed_search_space, search_space, to_trial_config
from studies.config import StudyConfig
from studies.space import BASELINE_PARAMS, GATED_PARAMS, REPLICATE

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


def config(space: dict) -> StudyConfig:
    return StudyConfig.model_validate({"space": space})


def point_of(trial_config, with_replicate=False):
    """The parameters that stand for a network: the inverse of ``trial_config``."""
    names = (
        BASELINE_PARAMS if isinstance(trial_config.architecture, BaselineConfig) else GATED_PARAMS
    )
    point = {name: getattr(trial_config.architecture, name) for name in names}
    return point | ({REPLICATE: trial_config.replicate} if with_replicate else {})


@settings(deadline=None)
@given(SPACES, st.data())
def test_a_grid_is_the_product_less_the_excluded(space, data):
    names = data.draw(st.lists(st.sampled_from(GATED_PARAMS), min_size=1, max_size=3, unique=True))
    exclusion = {name: data.draw(st.sampled_from(space[name])) for name in names}
    everything = list(config(space).space.combinations())
    kept = [p for p in everything if not all(p[n] == v for n, v in exclusion.items())]
    size = 1
    for values in space.values():
        size *= len(values)
    assert len(everything) == size
    if kept:
        assert list(config(space | {"exclude": [exclusion]}).space.combinations()) == kept


@settings(deadline=None)
@given(SPACES)
def test_points_survive_optunas_categorical_parameters(space):
    whole = config(space)
    categorical = distributions(search_space(whole.space))
    for point in list(whole.space.combinations())[:50]:
        trial = create_trial(value=0.0, params=point, distributions=categorical)
        internal = {n: d.to_internal_repr(trial.params[n]) for n, d in categorical.items()}
        back = {n: d.to_external_repr(internal[n]) for n, d in categorical.items()}
        assert back == point
        assert [type(v) for v in back.values()] == [type(v) for v in point.values()]
        assert point_of(to_trial_config(back, whole)) == point


@settings(deadline=None)
@given(ARCHITECTURES, st.integers(0, 99))
def test_an_architecture_survives_as_a_point(architecture, replicate):
    whole = config({"layers": [1], "state_size": [1]})
    trial_config = TrialConfig(architecture, replicate)
    assert to_trial_config(point_of(trial_config, with_replicate=True), whole) == trial_config


@settings(deadline=None)
@given(st.lists(ARCHITECTURES, min_size=2, unique=True))
def test_labels_tell_architectures_apart(architectures):
    assert len({architecture.label for architecture in architectures}) == len(architectures)
    assert len({architecture.key for architecture in architectures}) == len(architectures)


@settings(deadline=None)
@given(st.lists(ARCHITECTURES, min_size=1))
def test_the_values_of_points_are_those_that_occur(architectures):
    points = [point_of(TrialConfig(architecture)) for architecture in architectures]
    space = observed_search_space(points)
    assert list(space) == list(GATED_PARAMS)
    for name, values in space.items():
        assert set(values) == {point[name] for point in points}


def test_points_of_known_cells_have_no_switches():
    whole = config({"cell": ["lstm", "gru"], "layers": [1, 2], "state_size": [8]})
    points = list(whole.space.combinations())
    assert points[0] == {"cell": "lstm", "layers": 1, "state_size": 8}
    trial_configs = [to_trial_config(point, whole) for point in points]
    assert [trial_config.architecture.label for trial_config in trial_configs] == [
        "1×8 LSTM",
        "2×8 LSTM",
        "1×8 GRU",
        "2×8 GRU",
    ]
    assert [point_of(trial_config) for trial_config in trial_configs] == points
    assert list(search_space(whole.space)) == ["cell", "layers", "state_size"]


def test_a_bptt_steps_is_the_points_or_the_studys():
    space = {"cell": ["gru"], "layers": [1], "state_size": [8]}
    varied = config(space | {"bptt_steps": [1, 16]})
    windows = [to_trial_config(p, varied).bptt_steps for p in varied.space.combinations()]
    assert windows == [1, 16]
    whole = StudyConfig.model_validate({"space": space, "training": {"bptt_steps": 4}})
    (point,) = whole.space.combinations()
    assert to_trial_config(point, whole).bptt_steps == 4


def test_the_form_of_the_gates_is_the_studys():
    whole = StudyConfig.model_validate(
        {"space": {"layers": [1], "state_size": [4]}, "gate_inputs": "candidate"}
    )
    point = next(whole.space.combinations())
    assert to_trial_config(point, whole).architecture.gate_inputs == "candidate"
