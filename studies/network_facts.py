"""What the networks of a study can learn: trained parts, blind networks, and how to say so.

The facts of a built-in cell follow from its options (:mod:`rnn.config`), those of a user's cell are
measured when the study is created and stored with the record of the cell.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.stats.effects import Kinds
from rnn.config import NetworkFacts, TrialConfig, describe_network
from studies.config import StudyConfig
from studies.messages import format_param, join
from studies.records import format_toml
from studies.space import BPTT_STEPS, REPLICATE, Params
from studies.study_settings import OPTIMIZER_PARAMS
from studies.trial_params import to_trial_config

BLIND = "blind"
NOT_TRAINED = "not trained"
"""Why a pair of networks cannot show a change."""

_MAX_CONDITION = 4
"""Parameters that a condition names at most."""

_LONGER_GRADIENT = 4
"""``bptt_steps`` that a notice recommends: enough for three layers that read the old state."""


def find_facts(params: Params, config: StudyConfig) -> NetworkFacts | None:
    """Return what the network of a trial can learn; None if that is not known.

    Nothing is known of a user's training loop, and of options of a user's cell that were not
    measured.
    """
    if not config.has_networks:
        return None
    config = config.of_trial(params)
    return describe_facts(to_trial_config(params, config), config)


def describe_facts(trial: TrialConfig, config: StudyConfig) -> NetworkFacts | None:
    """Return what the network of a trial of one task can learn, as :func:`find_facts` does."""
    network = trial.architecture
    cell = None
    if not network.is_built_in:
        cell = config.cells[network.cell].find_facts(dict(network.options))
        if cell is None:
            return None
    steps = config.task_record.steps if config.task_record else None
    depth = trial.bptt_steps if steps is None else min(trial.bptt_steps, steps)
    return describe_network(network, cell, depth)


def is_misled(facts: NetworkFacts | None, config: StudyConfig) -> bool:
    """Return whether a network does not see its input although its task may need it.

    The config is that of one task.
    """
    task = config.task_record
    needs_input = task is not None and task.needs_input
    return facts is not None and not facts.sees_input and needs_input


def explain_pair(
    first: NetworkFacts | None, second: NetworkFacts | None, config: StudyConfig
) -> str:
    """Say why two networks cannot show what differs between them; "" if they can.

    They cannot if one of them does not see the input that its task may need, and if a gradient
    reaches none of the parts that one of them has and the other lacks.
    """
    if is_misled(first, config) or is_misled(second, config):
        return BLIND
    if first is None or second is None:
        return ""
    parts = first.cell_parts
    others = second.cell_parts
    added = {name: (parts | others)[name] for name in parts.keys() ^ others.keys()}
    return NOT_TRAINED if added and not any(added.values()) else ""


def find_kinds(facts: Sequence[NetworkFacts | None], config: StudyConfig) -> Kinds | None:
    """Return which pairs of networks cannot show a change; None if all can.

    Args:
        facts: what is known of each network.
        config: the study, of one task.
    """
    if config.untrained == "include":
        return None
    places: dict[Any, int] = {}
    distinct: list[NetworkFacts | None] = []
    of_trials = np.empty(len(facts), dtype=np.int64)
    for number, found in enumerate(facts):
        key = found and (found.sees_input, tuple(sorted(found.cell_parts.items())))
        if key not in places:
            places[key] = len(distinct)
            distinct.append(found)
        of_trials[number] = places[key]
    obstacles = [[explain_pair(one, other, config) for other in distinct] for one in distinct]
    return Kinds(of_trials, np.array(obstacles)) if any(map(any, obstacles)) else None


# ------------------------------------------------------------------ in words


@dataclass(frozen=True)
class _Network:
    """A network of a study, by the parameters that distinguish it."""

    params: Params
    untrained: tuple[str, ...]  # parts of its cell
    is_misled: bool


def list_fact_notices(trials: Iterable[Params], config: StudyConfig) -> list[str]:
    """Say which networks of a study never train a part of their cell, or do not see their input.

    A line for each, then one with the ways on; none if there are no such networks.
    """
    networks = _list_networks(trials, config)
    untrained = [network for network in networks if network.untrained]
    parts = list(dict.fromkeys(part for network in untrained for part in network.untrained))
    named = join([format_param(part) for part in parts])
    them = "it" if len(parts) == 1 else "them"
    blind = "do not see their input: the output at a step does not depend on the input of that step"
    lines: list[str] = []
    excluded: list[Params] = []
    for affected, what in (
        (untrained, f"never train their {named}: no gradient reaches {them}"),
        ([network for network in networks if network.is_misled], blind),
    ):
        if not affected:
            continue
        conditions = _find_conditions(networks, affected)
        where = f" ({'; or '.join(map(_format_condition, conditions))})" if conditions else ""
        lines.append(f"{len(affected)} of {len(networks)} networks {what}{where}")
        for condition in conditions:
            if not any(known.items() <= condition.items() for known in excluded):
                excluded.append(condition)
    ways = []
    if excluded:
        tables = ", ".join(f"{{ {_format_condition(condition)} }}" for condition in excluded)
        ways.append(f"leave them out by exclude = [{tables}] in [space]")
    if untrained and _trains_with(untrained, config):
        ways.append(f"train them by training.bptt_steps = {_LONGER_GRADIENT}")
    return [*lines, ", or ".join(ways)] if ways else lines


def _list_networks(trials: Iterable[Params], config: StudyConfig) -> list[_Network]:
    found: dict[tuple[Any, ...], _Network] = {}
    for params in trials:
        trial = to_trial_config(params, config)
        key = trial.architecture, trial.bptt_steps, trial.update_every, trial.task_options
        if key in found:
            continue
        facts = find_facts(params, config)
        parts = facts.cell_parts if facts else {}
        untrained = tuple(name for name, is_trained in parts.items() if not is_trained)
        # The first of several runs stands for all: no fact depends on optimizer and replicate.
        kept = {k: v for k, v in params.items() if k not in (*OPTIMIZER_PARAMS, REPLICATE)}
        found[key] = _Network(kept, untrained, is_misled(facts, config.of_trial(params)))
    return list(found.values())


def _trains_with(networks: Sequence[_Network], config: StudyConfig) -> bool:
    """Return whether a longer gradient may be set, and trains all parts of some networks."""
    training = config.training.model_copy(update={BPTT_STEPS: _LONGER_GRADIENT})
    longer = config.model_copy(update={"training": training})
    for network in networks:
        trial = to_trial_config(network.params, longer)
        if BPTT_STEPS in network.params or trial.update_every > _LONGER_GRADIENT:
            return False
        facts = find_facts(network.params, longer)
        if facts is None or not all(facts.cell_parts.values()):
            return False
    return True


def _find_conditions(networks: Sequence[_Network], affected: Sequence[_Network]) -> list[Params]:
    """Return conditions that together hold for some networks and for no other; the fewest names.

    ``[{"state_source": "old"}]``; empty if none of few parameters do, and for all networks.
    """
    numbers = {id(network) for network in affected}
    is_affected = np.array([id(network) in numbers for network in networks])
    rows = [network.params for network in networks]
    values: dict[str, list[Any]] = {}
    for name in dict.fromkeys(itertools.chain(*rows)):
        found = list(dict.fromkeys(row.get(name) for row in rows))
        if len(found) > 1:
            values[name] = found
    codes = {name: np.array([found.index(row.get(name)) for row in rows])
             for name, found in values.items()}  # fmt: skip
    conditions: list[Params] = []
    uncovered = is_affected.copy()
    for size in range(1, min(_MAX_CONDITION, len(values)) + 1):
        for names in itertools.combinations(values, size):
            shape = [len(values[name]) for name in names]
            keys = np.ravel_multi_index([codes[name] for name in names], shape)
            others = np.bincount(keys, ~is_affected)
            for key in np.unique(keys[uncovered]):
                places = np.unravel_index(key, shape)
                condition = {n: values[n][place] for n, place in zip(names, places, strict=True)}
                # A parameter that a network lacks is no condition.
                if not others[key] and None not in condition.values():
                    conditions.append(condition)
                    uncovered &= keys != key
        if not uncovered.any():
            return [] if is_affected.all() else conditions
    return []


def _format_condition(condition: Params) -> str:
    return ", ".join(f"{name} = {format_toml(value)}" for name, value in condition.items())
