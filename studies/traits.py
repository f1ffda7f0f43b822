"""What is known of parameters besides their values: their order, and which trials have them."""

from collections.abc import Iterable, Mapping, Sequence

from reports.stats.design import ParameterTraits
from rnn.config import BUILT_IN_CELLS, OPTIMIZERS, ParamValue
from studies.config import StudyConfig
from studies.space import BPTT_STEPS, BUILT_IN_PARAMS, CELL, SWITCHES, LoopSpace
from studies.study_settings import UPDATE_EVERY, uses_setting

_ORDERS = {CELL: sorted(BUILT_IN_CELLS), "state_source": ("old", "new", "both")}
"""Order of the values of parameters that are texts: users' cells come after the built-in ones."""

_NAMES = {"state_source": {("old", "both"): "new state", ("new", "both"): "old state"}}
"""Contrasts with names: reading both states is compared with reading either, as a switch would."""


def find_traits(names: Iterable[str], config: StudyConfig | None = None) -> ParameterTraits:
    """Return what is known of some parameters: orders, and which only some trials have.

    Switches and options belong to cells, some training settings to optimizers, and ``update_every``
    to gradients that do not go back a whole sequence. Of a training loop, texts have the order of
    the study file, and its tables say which trials have a parameter. Nothing is known of imported
    parameters.
    """
    if config is not None and not config.has_networks:
        tables = [table.choices for table in config.space or () if isinstance(table, LoopSpace)]
        space = config.grid.search_space if config.grid else {}
        orders = {name: values for name, values in space.items() if str in map(type, values)}
        return ParameterTraits(orders, {name: _list_owned(name, tables) for name in space})
    names = set(names)
    owned = {
        CELL: {name for name in names if name in SWITCHES or name not in BUILT_IN_PARAMS},
        "optimizer": {
            name
            for name in names
            if not all(uses_setting(optimizer, name) for optimizer in OPTIMIZERS)
        },
        BPTT_STEPS: names & {UPDATE_EVERY},
    }
    return ParameterTraits(_ORDERS, owned, _NAMES)


def _list_owned(owner: str, tables: Sequence[Mapping[str, Sequence[ParamValue]]]) -> set[str]:
    """Return the parameters that trials have or lack by the value of another one alone."""
    found = [(value, {*table}) for table in tables for value in table.get(owner, ())]
    values = {value for value, _ in found}
    owned = set()
    for name in {name for table in tables for name in table}:
        cases = {(value, name in names) for value, names in found}
        if len(cases) == len(values) and len({has_name for _, has_name in cases}) == 2:
            owned.add(name)
    return owned
