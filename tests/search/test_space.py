"""Definition ↔ points ↔ architectures: nothing is lost on the way and back."""

from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import create_trial

from rnn.architecture import STATE_SOURCES, Architecture
from rnn.known_cell import KnownCell
from rnn.member import Member
from search.space import distributions, member_of, search_space, search_space_of
from studies.definition import Definition
from studies.space import KNOWN_CELL, PARAMETERS, REPLICATE

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
    Architecture,
    *[st.booleans()] * 5,
    state_source=st.sampled_from(STATE_SOURCES),
    layers=st.integers(1, 9),
    state_size=st.integers(1, 2048),
)


def definition(space: dict) -> Definition:
    return Definition.model_validate({"space": space})


def point_of(member, with_replicate=False):
    """The parameters that stand for a network: the inverse of ``member_of``."""
    names = KNOWN_CELL if isinstance(member.architecture, KnownCell) else PARAMETERS
    point = {name: getattr(member.architecture, name) for name in names}
    return point | ({REPLICATE: member.replicate} if with_replicate else {})


@settings(deadline=None)
@given(SPACES, st.data())
def test_a_grid_is_the_product_less_the_excluded(space, data):
    names = data.draw(st.lists(st.sampled_from(PARAMETERS), min_size=1, max_size=3, unique=True))
    exclusion = {name: data.draw(st.sampled_from(space[name])) for name in names}
    everything = list(definition(space).space.points())
    kept = [p for p in everything if not all(p[n] == v for n, v in exclusion.items())]
    size = 1
    for values in space.values():
        size *= len(values)
    assert len(everything) == size
    if kept:
        assert list(definition(space | {"exclude": [exclusion]}).space.points()) == kept


@settings(deadline=None)
@given(SPACES)
def test_points_survive_optunas_categorical_parameters(space):
    whole = definition(space)
    categorical = distributions(search_space(whole.space))
    for point in list(whole.space.points())[:50]:
        trial = create_trial(value=0.0, params=point, distributions=categorical)
        internal = {n: d.to_internal_repr(trial.params[n]) for n, d in categorical.items()}
        back = {n: d.to_external_repr(internal[n]) for n, d in categorical.items()}
        assert back == point
        assert [type(v) for v in back.values()] == [type(v) for v in point.values()]
        assert point_of(member_of(back, whole)) == point


@settings(deadline=None)
@given(ARCHITECTURES, st.integers(0, 99))
def test_an_architecture_survives_as_a_point(architecture, replicate):
    whole = definition({"layers": [1], "state_size": [1]})
    member = Member(architecture, replicate)
    assert member_of(point_of(member, with_replicate=True), whole) == member


@settings(deadline=None)
@given(st.lists(ARCHITECTURES, min_size=2, unique=True))
def test_labels_tell_architectures_apart(architectures):
    assert len({architecture.label for architecture in architectures}) == len(architectures)
    assert len({architecture.key for architecture in architectures}) == len(architectures)


@settings(deadline=None)
@given(st.lists(ARCHITECTURES, min_size=1))
def test_the_values_of_points_are_those_that_occur(architectures):
    points = [point_of(Member(architecture)) for architecture in architectures]
    space = search_space_of(points)
    assert list(space) == list(PARAMETERS)
    for name, values in space.items():
        assert set(values) == {point[name] for point in points}


def test_points_of_known_cells_have_no_switches():
    whole = definition({"cell": ["lstm", "gru"], "layers": [1, 2], "state_size": [8]})
    points = list(whole.space.points())
    assert points[0] == {"cell": "lstm", "layers": 1, "state_size": 8}
    members = [member_of(point, whole) for point in points]
    assert [member.architecture.label for member in members] == [
        "1×8 LSTM",
        "2×8 LSTM",
        "1×8 GRU",
        "2×8 GRU",
    ]
    assert [point_of(member) for member in members] == points
    assert list(search_space(whole.space)) == ["cell", "layers", "state_size"]


def test_a_gradient_window_is_the_points_or_the_studys():
    space = {"cell": ["gru"], "layers": [1], "state_size": [8]}
    varied = definition(space | {"gradient_window": [1, 16]})
    windows = [member_of(p, varied).gradient_window for p in varied.space.points()]
    assert windows == [1, 16]
    whole = Definition.model_validate({"space": space, "training": {"gradient_window": 4}})
    (point,) = whole.space.points()
    assert member_of(point, whole).gradient_window == 4


def test_the_form_of_the_gates_is_the_studys():
    whole = Definition.model_validate(
        {"space": {"layers": [1], "state_size": [4]}, "gate_inputs": "candidate"}
    )
    point = next(whole.space.points())
    assert member_of(point, whole).architecture.gate_inputs == "candidate"
