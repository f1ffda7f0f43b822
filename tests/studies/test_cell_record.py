"""Options of users' own cells: read from constructors, and checked."""

from typing import Literal

import pytest

from studies.cell_record import CellRecord, read_options


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


STORED = """{
    "spec": "cells.py:Cell", "sha256": "%s", "options": {
    "tanh": {"type": "bool", "choices": null, "default": false},
    "depth": {"type": "int", "choices": null, "default": 1},
    "radius": {"type": "float", "choices": null, "default": 1.0},
    "name": {"type": "str", "choices": null, "default": "a"},
    "norm": {"type": "str", "choices": ["none", "all"], "default": "none"},
    "order": {"type": "int", "choices": [1, 2], "default": 2}}}
"""


def test_options_of_a_constructor_are_those_that_earlier_versions_have_stored():
    stored = CellRecord.model_validate_json(STORED % ("0" * 64))
    assert read_options(Cell) == stored.options
    assert type(read_options(Cell)["radius"].default) is float


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
