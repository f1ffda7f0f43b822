"""What the networks of a study can learn: trained parts, blind networks, and how to say so.

The facts of a built-in cell follow from its options (:mod:`rnn.config`), those of a user's cell are
measured when the study is created and stored with the record of the cell.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.stats.effects import Kinds
from rnn.config import NetworkFacts, ParamValue, TrialConfig, describe_network
from studies.config import StudyConfig
from studies.messages import format_param, join
from studies.records import format_toml
from studies.space import BPTT_STEPS, CELL, REPLICATE, Params
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
    """A network of a study, whatever its optimizer and its replicate.

    Attributes:
        params: parameters that distinguish it.
        untrained: parts of its cell that are never trained.
        is_misled: see :func:`is_misled`.
    """

    params: Params
    untrained: tuple[str, ...]
    is_misled: bool


def list_fact_notices(trials: Iterable[Params], config: StudyConfig) -> list[str]:
    """Say which networks of a study never train a part of their cell, or do not see their input.

    A line for each, then one with the two ways on; none if there are no such networks.
    """
    networks = _list_networks(trials, config)
    untrained = [network for network in networks if network.untrained]
    misled = [network for network in networks if network.is_misled]
    lines = []
    excluded = []
    if untrained:
        found = (part for network in untrained for part in network.untrained)
        parts = join([format_param(part) for part in dict.fromkeys(found)])
        conditions = _find_conditions(networks, untrained)
        excluded += conditions
        lines.append(
            f"{len(untrained)} of {len(networks)} networks never train their {parts}: no gradient "
            f"reaches them ({_describe_conditions(conditions)})"
        )
    if misled:
        conditions = _find_conditions(networks, misled)
        excluded += [found for found in conditions if not _is_covered(found, excluded)]
        lines.append(
            f"{len(misled)} of {len(networks)} networks do not see their input: the output at a "
            f"step does not depend on the input of that step ({_describe_conditions(conditions)})"
        )
    if not lines:
        return []
    tables = ", ".join(f"{{ {_format_condition(condition)} }}" for condition in excluded)
    ways = [f"leave them out by exclude = [{tables}] in [space]"] if excluded else []
    if untrained and _trains_with(untrained, config):
        ways.append(f"train them by training.bptt_steps = {_LONGER_GRADIENT}")
    if ways:
        lines.append(", or ".join(ways))
    return lines


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
    """Return whether a longer gradient trains all parts of some networks."""
    training = config.training.model_copy(update={BPTT_STEPS: _LONGER_GRADIENT})
    longer = config.model_copy(update={"training": training})
    if any(BPTT_STEPS in network.params for network in networks):
        return False
    found = (find_facts(network.params, longer) for network in networks)
    return all(facts is not None and all(facts.cell_parts.values()) for facts in found)


def _find_conditions(
    networks: Sequence[_Network], chosen: Sequence[_Network]
) -> list[dict[str, ParamValue]]:
    """Return conditions that together hold for some networks and for no other; the fewest names.

    ``[{"state_source": "old"}]``; empty if no condition of few parameters does.
    """
    numbers = {id(network): number for number, network in enumerate(networks)}
    wanted = {numbers[id(network)] for network in chosen}
    names = [name for name in _list_names(networks) if name != CELL]
    conditions: list[dict[str, ParamValue]] = []
    covered: set[int] = set()
    for size in range(1, min(_MAX_CONDITION, len(names)) + 1):
        for combination in itertools.combinations(names, size):
            matching: dict[tuple[Any, ...], set[int]] = {}
            for number, network in enumerate(networks):
                if all(name in network.params for name in combination):
                    key = tuple(network.params[name] for name in combination)
                    matching.setdefault(key, set()).add(number)
            for key, found in matching.items():
                if found <= wanted and not found <= covered:
                    conditions.append(dict(zip(combination, key, strict=True)))
                    covered |= found
        if covered == wanted:
            return conditions
    return []


def _list_names(networks: Sequence[_Network]) -> list[str]:
    """List the parameters that have several values in some networks."""
    values: dict[str, set[Any]] = {}
    for network in networks:
        for name, value in network.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1]


def _is_covered(
    condition: Mapping[str, ParamValue], others: Sequence[Mapping[str, ParamValue]]
) -> bool:
    return any(other.items() <= condition.items() for other in others)


def _describe_conditions(conditions: Sequence[Mapping[str, ParamValue]]) -> str:
    return "; or ".join(map(_format_condition, conditions)) or "all of them"


def _format_condition(condition: Mapping[str, ParamValue]) -> str:
    return ", ".join(f"{name} = {format_toml(value)}" for name, value in condition.items())
