"""What is known of parameters besides their values: their order, and which trials have them."""

from collections.abc import Iterable

from reports.stats.design import ParameterTraits
from rnn.config import BUILT_IN_CELLS, OPTIMIZERS
from studies.space import BPTT_STEPS, BUILT_IN_PARAMS, CELL, SWITCHES
from studies.study_settings import UPDATE_EVERY, uses_setting

_ORDERS = {CELL: sorted(BUILT_IN_CELLS), "state_source": ("old", "new", "both")}
"""Order of the values of parameters that are texts: users' cells come after the built-in ones."""

_NAMES = {"state_source": {("old", "both"): "new state", ("new", "both"): "old state"}}
"""Contrasts with names: reading both states is compared with reading either, as a switch would."""


def find_traits(names: Iterable[str]) -> ParameterTraits:
    """Return what is known of some parameters: orders, and which only some trials have.

    Switches and options belong to cells, some training settings to optimizers, and ``update_every``
    to gradients that do not go back a whole sequence.
    """
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
