"""Search spaces, options of users' cells, and a trial's parameters as a trial config."""

import json
import math
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import create_trial

from rnn.config import GATED_OPTIONS, NetworkConfig
from studies.config import StudyConfig, training_settings
from studies.records import read_options
from studies.space import SWITCHES, distributions
from studies.trial_params import to_trial_config


def values_of(choices):
    return st.lists(choices, min_size=1, max_size=3, unique=True)


SPACES = st.fixed_dictionaries(
    {name: values_of(st.sampled_from(GATED_OPTIONS[name])) for name in SWITCHES}
    | {"layers": values_of(st.integers(1, 100)), "state_size": values_of(st.integers(1, 512))}
)


def study_config(space: dict) -> StudyConfig:
    return StudyConfig.model_validate({"space": space})


@settings(deadline=None, max_examples=30)
@given(SPACES, st.data())
def test_params_survive_optunas_categorical_distributions(space, data):
    product = math.prod(map(len, space.values()))
    names = data.draw(values_of(st.sampled_from(sorted(space))))
    excluded = {name: data.draw(st.sampled_from(space[name])) for name in names}
    config = study_config(space)
    kept = [each for each in config.grid.combinations() if not excluded.items() <= each.items()]
    if kept:
        product -= math.prod(len(values) for name, values in space.items() if name not in names)
        config = study_config(space | {"exclude": [excluded]})
        assert list(config.grid.combinations()) == kept
    assert config.grid.count() == product
    categorical, architectures = distributions(config.grid.search_space), []
    for params in list(config.grid.combinations())[:50]:
        trial = create_trial(value=0.0, params=params, distributions=categorical)
        internal = {n: d.to_internal_repr(trial.params[n]) for n, d in categorical.items()}
        external = {n: d.to_external_repr(internal[n]) for n, d in categorical.items()}
        assert repr(external) == repr(params)
        architecture = to_trial_config(external, config).architecture
        sizes = {"layers": architecture.layers, "state_size": architecture.state_size}
        assert dict(architecture.options) | sizes == params | {"gate_inputs": "state"}
        architectures.append(architecture)
    assert len({each.label for each in architectures}) == len(architectures)
    assert len({each.init_key for each in architectures}) == len(architectures)


def test_bptt_steps_and_gate_inputs_come_from_the_trial_or_else_from_the_study():
    space = {"cell": ["gru"], "layers": [1], "state_size": [8]}
    varied = study_config(space | {"training": {"bptt_steps": [1, 16]}})
    configs = [to_trial_config(params, varied) for params in varied.grid.combinations()]
    assert [config.label[9:] for config in configs] == ["bptt steps 1", "bptt steps 16"]
    settings = {"training": {"bptt_steps": 4}, "gate_inputs": "candidate"}
    fixed = StudyConfig.model_validate({"space": space | {"cell": ["gated"]}} | settings)
    config = to_trial_config(next(fixed.grid.combinations()), fixed)
    assert (config.bptt_steps, config.architecture.gated.gate_inputs) == (4, "candidate")
    assert config.label == config.architecture.label, "no setting varies"


# ------------------------------------------------------------------ unions, cells and settings

CELL = {"spec": "cells.py:MinGRU", "sha256": "0" * 64}
OPTIONS = {
    "norm": {"type": "bool", "default": False},
    "decay": {"type": "float", "default": 0.5},
    "mode": {"type": "str", "choices": ["a", "b"], "default": "a"},
    "values": {"type": "int", "default": 1},
}
SMALL = {"layers": [1], "state_size": [8]}
FIXED = {name: [False] for name in SWITCHES if name != "state_source"} | {"state_source": ["new"]}
MIN_GRU = {"cell": ["cells.py:MinGRU"], **SMALL}


def cell_config(*tables: dict, **others) -> StudyConfig:
    """Config of a study whose tables may name the cell MinGRU."""
    cells = {"MinGRU": {**CELL, "options": OPTIONS}}
    raw = {"space": list(tables), "cells": cells, **others}
    return StudyConfig.model_validate(json.loads(json.dumps(raw)))


def combinations(*tables: dict, **others) -> list[dict]:
    return list(cell_config(*tables, **others).grid.combinations())


def test_coinciding_trials_of_a_union_are_one():
    narrow, wide = {**SMALL, "cell": ["gru"]}, {**SMALL, "cell": ["gru", "lstm"]}
    assert [params["cell"] for params in combinations(narrow, wide)] == ["gru", "lstm"]
    # A setting that another table varies has the study's value.
    varied = {**narrow, "training": {"learning_rate": [0.001, 0.003]}}
    rates = [params["learning_rate"] for params in combinations(narrow, varied)]
    assert rates == [0.001, 0.003]
    faster = combinations(narrow, varied, training={"learning_rate": 0.1})
    assert [params["learning_rate"] for params in faster] == [0.1, 0.001, 0.003]
    # So does an option: its default.
    assert len(combinations(MIN_GRU, {**MIN_GRU, "norm": [False, True]})) == 2
    assert len(combinations(MIN_GRU, {**MIN_GRU, "values": [1, 2]})) == 2


def test_trials_lack_the_parameters_that_do_not_apply():
    table = {**MIN_GRU, "cell": ["gated", "gru", "cells.py:MinGRU"], "norm": [True, False]}
    gated, gru, *own = combinations({**table, **FIXED})
    assert list(gated) == ["cell", *SWITCHES, "layers", "state_size"]
    assert gru == {"cell": "gru", "layers": 1, "state_size": 8}
    assert own == [
        {"cell": "MinGRU", "norm": norm, "layers": 1, "state_size": 8} for norm in (True, False)
    ]
    config = cell_config({**table, **FIXED})
    architecture = to_trial_config(own[0], config).architecture
    assert architecture == NetworkConfig("MinGRU", 1, 8, (("norm", True),), "0" * 64)
    # Every trial of a union has `cell` as soon as one table names it.
    assert combinations({**SMALL, **FIXED}, MIN_GRU)[0]["cell"] == "gated"


def test_trials_of_every_cell_have_the_block_as_soon_as_one_table_states_it():
    blocks = {"block": ["residual", "plain"]}
    tables = {**MIN_GRU, "cell": ["gru", "cells.py:MinGRU"], "norm": [True]}, {**SMALL, **FIXED}
    trials = combinations({**tables[0], **blocks}, tables[1])
    assert [(params["cell"], params["block"]) for params in trials] == [
        *(("gru", block) for block in blocks["block"]),
        *(("MinGRU", block) for block in blocks["block"]),
        ("gated", "plain"),
    ]
    assert list(trials[2]) == ["cell", "norm", "block", "layers", "state_size"]
    config = cell_config({**tables[0], **blocks}, tables[1])
    networks = [to_trial_config(params, config).architecture for params in trials]
    assert networks[2] == NetworkConfig("MinGRU", 1, 8, (("norm", True),), "0" * 64, "residual")
    assert [network.label for network in networks[:2]] == ["1×8 GRU, residual blocks", "1×8 GRU"]
    assert len({network.init_key for network in networks}) == 5
    assert not any("block" in params for params in combinations(*tables))
    plain = [to_trial_config(params, config).architecture for params in combinations(*tables)]
    assert plain == networks[1::2] + networks[4:]


def test_setting_that_an_optimizer_does_not_use_is_absent():
    settings = {"optimizer": ["adam", "sgd"], "momentum": [0.0, 0.9], "learning_rate": [1, 0.1]}
    trials = combinations({**SMALL, "cell": ["gru"], "training": settings})
    assert len(trials) == 2 + 4
    assert all(("momentum" in params) == (params["optimizer"] == "sgd") for params in trials)
    rates = {repr(params["learning_rate"]) for params in trials}
    assert rates == {"1.0", "0.1"}, "integers are floats where floats are expected"
    assert repr(combinations({**MIN_GRU, "decay": [1]})[0]["decay"]) == "1.0", "as of an option"
    config = cell_config({**SMALL, "cell": ["gru"], "training": settings})
    trial = to_trial_config(trials[-1], config)
    assert (trial.optimizer.name, trial.optimizer.momentum) == ("sgd", 0.9)
    assert trial.varied == (("optimizer", "sgd"), ("learning_rate", 0.1), ("momentum", 0.9))
    assert training_settings(trials[0], config).learning_rate == 1


LR = {"learning_rate": [0.1, 0.2]}
TWO = {"layers": [1, 2]}
CROSSED = [{"layers": 1, "learning_rate": 0.1}, {"layers": 2, "learning_rate": 0.2}]
OPTIMIZERS = {"optimizer": ["adam", "sgd"], "momentum": [0.0, 0.9]}

REFUSED = [
    ([], {}, "space has no table: expected at least one"),
    ([{**MIN_GRU, "norm": [1]}], {}, "space: MinGRU has norm = 1: expected true or false"),
    ([{**MIN_GRU, "decay": [10**400]}], {}, "MinGRU has decay = 1000.*expected a number"),
    ([{**MIN_GRU, "decay": [1, 1.0]}], {}, r"has decay = \[1, 1.0\]: expected distinct values"),
    ([MIN_GRU, {**MIN_GRU, "nrom": [True]}], {}, "space 2 has the unknown key nrom: .*, norm"),
    ([{**SMALL, "block": ["deep"]}], {}, "should be 'plain' or 'residual'"),
    ([{**SMALL, "block": []}], {}, "expected at least one value"),
    ([{**SMALL, "training": {"block": ["plain"]}}], {}, "training.block"),
    ([{**SMALL, **LR}], {}, r"space has learning_rate: expected it in \[space.training\]"),
    ([{**MIN_GRU, "cell": ["a.py:Other"]}], {}, "'a.py:Other', which is not loaded"),
    ([{**MIN_GRU, "input_gate": [True]}], {}, "space has input_gate and no gated cell"),
    ([{**SMALL, "training": {"momentum": [0.5, 0.9]}}], {}, "adam does not use: .* optimizer sgd"),
    ([SMALL], {"training": {"momentum": 0.5}}, "training.momentum is 0.5, which adam does not use"),
    ([{**SMALL, "bptt_steps": [1]}], {}, r"has bptt_steps: expected it in \[space.training\]"),
    ([SMALL, {**SMALL, "exclude": [{"layers": 1}]}], {}, "space 2 has no combination"),
    ([{**SMALL, "training": LR}], {"nuisance": ["rate"]}, "'rate': expected one of .* learning_r"),
    (
        [{**MIN_GRU, **TWO, "training": LR, "exclude": CROSSED}],
        {"nuisance": ["learning_rate"]},
        "'learning_rate', which has one value for each architecture",
    ),
    (
        [{**MIN_GRU, **TWO, "training": OPTIMIZERS}],
        {"nuisance": ["optimizer"]},
        "'optimizer', which has one value for each architecture",
    ),
    (
        [
            {**SMALL, "cell": ["gru"], "training": {"learning_rate": [0.01]}},
            {**SMALL, "cell": ["lstm"], "training": {"learning_rate": [0.001]}},
        ],
        {"nuisance": ["learning_rate"]},
        "'learning_rate', which has one value for each .* for the same other parameters ",
    ),
]


def test_optimizer_is_a_nuisance_together_with_its_settings():
    table = {**MIN_GRU, **TWO, "training": OPTIMIZERS}
    cell_config(table, nuisance=["optimizer", "momentum"])
    # Without it, if several optimizers have the same settings.
    three = {**OPTIMIZERS, "optimizer": ["adam", "sgd", "rmsprop"]}
    cell_config({**table, "training": three}, nuisance=["optimizer"])
    # And a rate of which one value is excluded, and whatever has one value.
    cell_config({**table, "training": LR, "exclude": CROSSED[:1]}, nuisance=["learning_rate"])
    cell_config(MIN_GRU, nuisance=["layers", "optimizer", "norm"])


def test_grid_that_is_too_large_is_refused_before_it_is_listed():
    sizes = {"layers": [*range(1, 101)], "state_size": [*range(1, 50_001)]}
    with pytest.raises(ValueError, match="has 480,000,000 combinations: expected at most"):
        study_config({**sizes, "exclude": [{"layers": 1}]})


@pytest.mark.parametrize(("tables", "others", "message"), REFUSED, ids=lambda each: str(each)[:60])
def test_contradictory_union_is_refused(tables, others, message):
    with pytest.raises(ValueError, match=message):
        cell_config(*tables, **others)


def test_option_has_one_type_in_all_cells():
    """Optuna takes equal values for one choice: 1 of one cell would be read as True or as 1.0."""
    other = CELL | {"spec": "b.py:B", "options": {"norm": {"type": "int", "default": 0}}}
    cells = {"MinGRU": {**CELL, "options": OPTIONS}, "B": other}
    tables = [{**MIN_GRU, "norm": [True]}, {**MIN_GRU, "cell": ["b.py:B"], "norm": [1]}]
    with pytest.raises(ValueError, match="norm, of type bool in MinGRU and int in B"):
        StudyConfig.model_validate({"space": tables, "cells": cells})


# ------------------------------------------------------------------ options of users' cells


class Cell:
    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        tanh: bool = False,
        depth: int = 1,
        radius: float = 1,
        name: str = "a",
        norm: "Literal['none', 'all']" = "none",  # as with annotations of __future__
        order: Literal[1, 2] = 2,
    ) -> None: ...


def test_options_of_a_constructor_have_types_choices_and_defaults():
    found = [(name, *vars(option).values()) for name, option in read_options(Cell).items()]
    assert repr(found) == repr([
        ("tanh", "bool", None, False), ("depth", "int", None, 1), ("radius", "float", None, 1.0),
        ("name", "str", None, "a"), ("norm", "str", ["none", "all"], "none"),
        ("order", "int", [1, 2], 2),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("self", "no argument input_size: expected __init__(self, input_size, "),
        ("self, *input_size, state_size", "an argument *input_size"),
        ("norm=True", "option norm of cell Cell has no annotation"),
        ("norm: bool", "option norm of cell Cell has no default"),
        ("norm: list[int] = ()", "is annotated list[int]: expected bool, int, float, str or L"),
        ("norm: 'Unknown' = 1", "name 'Unknown' is not defined"),
        ("norm: int = 2**63", "Cell = 9223372036854775808: expected an integer of 64 bits"),
        ("norm: Literal['a', 'b'] = 'c'", "= 'c': expected one of 'a', 'b'"),
    ],
)
def test_constructor_that_breaks_the_contract_is_refused(arguments, expected):
    if not arguments.startswith("self"):
        arguments = f"self, input_size, state_size, {arguments}"
    file = {"Literal": Literal}
    exec(f"class Cell:\n    def __init__({arguments}): ...", file)
    with pytest.raises(ValueError, match="cell Cell") as refused:
        read_options(file["Cell"])
    assert expected in str(refused.value)


def test_values_of_options_are_checked_and_integers_become_floats():
    options = read_options(Cell)
    for name, value in {"radius": 2, "norm": "all", "depth": 3}.items():
        options[name].check(name, [value])
    assert type(options["radius"].convert(2)) is float
    for name, value, expected in (
        ("depth", True, "True: expected an integer of 64 bits"),
        ("tanh", 1, "1: expected true or false"),
        ("radius", float("inf"), "inf: expected a number"),
        ("order", 3, "3: expected one of 1, 2"),
    ):
        with pytest.raises(ValueError, match=f"^here: {name} = {expected}$"):
            options[name].check(f"here: {name}", [value])
