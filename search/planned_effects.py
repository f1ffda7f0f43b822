"""What the trials of a study can find, before they have run: pairs, seeds, smallest effects."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from reports.stats.design import Contrast, has_levels
from reports.stats.effects import FactorialTable
from reports.stats.power import MIN_DIFFERENCES, find_smallest_effect, find_smallest_share
from reports.stats.shares import count_needed_pairs
from rnn.config import ParamValue
from studies.config import StudyConfig
from studies.messages import format_pairs
from studies.network_facts import find_facts, find_kinds
from studies.space import CELL, REPLICATE, TASK, Params, param_order
from studies.traits import find_traits


@dataclass(frozen=True)
class PlannedEffect:
    """A contrast of one parameter, and what its estimate can show.

    Attributes:
        contrast: the change.
        pairs: number of pairs of architectures that differ in it alone.
        seeds: number of runs of each that are compared; the mean number if it varies.
        excluded: number of other pairs, which cannot show it.
    """

    contrast: Contrast
    pairs: int
    seeds: float
    excluded: int = 0

    @property
    def runs(self) -> int:
        """Number of pairs of runs."""
        return round(self.pairs * self.seeds)

    @property
    def smallest_effect(self) -> float:
        """Smallest effect that is found, see :func:`reports.stats.power.find_smallest_effect`."""
        return find_smallest_effect(self.pairs, self.seeds)

    @property
    def smallest_share(self) -> float:
        """Smallest difference of shares that is found, of 1."""
        return find_smallest_share(self.runs)

    @property
    def size(self) -> str:
        """The pairs and seeds, as in ``8 pairs × 3 seeds``."""
        return format_pairs(self.pairs, self.seeds)


def plan_effects(trials: Iterable[Params], config: StudyConfig) -> dict[str, list[PlannedEffect]]:
    """Plan the effects of the parameters of some trials, within each task.

    Each architecture is judged at one value of a nuisance parameter.

    Returns:
        The contrasts of each task by its name, or of the only one by "".
    """
    by_task: dict[str, list[Params]] = {}
    for params in trials:
        by_task.setdefault(config.task_of(params), []).append(params)
    left_out = [*config.nuisance, *([TASK] if config.task_names else [])]
    return {task: _plan_task(by_task[task], config, left_out) for task in by_task}


def _plan_task(
    trials: Sequence[Params], config: StudyConfig, left_out: Sequence[str]
) -> list[PlannedEffect]:
    present = list(dict.fromkeys(chain.from_iterable(trials)))
    ordered = param_order(present) if config.has_networks else present
    names = [name for name in ordered if name not in (*left_out, REPLICATE)]
    replicates: dict[tuple[ParamValue | None, ...], set[ParamValue]] = {}
    first: dict[tuple[ParamValue | None, ...], Params] = {}
    for params in trials:
        architecture = tuple(map(params.get, names))
        replicates.setdefault(architecture, set()).add(params.get(REPLICATE, 0))
        first.setdefault(architecture, params)
    facts = [find_facts(params, config) for params in first.values()]
    kinds = find_kinds(facts, config.of_trial(trials[0]))
    table = replace(_arrange(list(first), names, config), kinds=kinds)
    seeds = np.array([len(found) for found in replicates.values()])
    effects = []
    for contrast in table.list_contrasts():
        matches = table.match_contrast(contrast)
        pairs = matches.trials  # (2, pairs)
        count = pairs.shape[1]
        common = seeds[pairs].min(0).mean() if count else 1.0
        effects.append(PlannedEffect(contrast, count, float(common), matches.excluded.shape[1]))
    return effects


def _arrange(
    architectures: Sequence[tuple[ParamValue | None, ...]],
    names: Sequence[str],
    config: StudyConfig,
) -> FactorialTable:
    """Arrange architectures, which have no values yet, by their parameters; None for a lack."""
    traits = find_traits(names, config)
    axes = {}
    codes = np.empty((len(architectures), len(names)), dtype=np.int64)
    for column, name in enumerate(names):
        values = [architecture[column] for architecture in architectures]
        axes[name] = traits.sort_values(name, {*values} - {None})
        places = {value: place for place, value in enumerate(axes[name])} | {None: -1}
        codes[:, column] = [places[value] for value in values]
    many = frozenset(name for name in names if name != CELL and not has_levels(axes[name]))
    return FactorialTable(axes, codes, traits, np.zeros(len(codes)), uncontrasted=many)


def describe_weakest(effects: Mapping[str, Sequence[PlannedEffect]], config: StudyConfig) -> str:
    """Return what is known of the weakest effect of a study, in a clause; "" without an effect."""
    if shortages := list_shortages(effects, config):
        return shortages[0]
    found = [effect for task in effects for effect in effects[task] if effect.pairs]
    if not found:
        return ""
    weakest = min(found, key=lambda effect: effect.runs)
    return f"{weakest.contrast.parameter} has the fewest pairs, {weakest.size} (more: --dry-run)"


def list_shortages(
    effects: Mapping[str, Sequence[PlannedEffect]], config: StudyConfig
) -> list[str]:
    """Return sentences on the parameters of which no effect can be significant."""
    parameters: dict[str, dict[str, None]] = {}  # by what is to be said of them
    setting = "refinement.replicates" if config.refinement else "replicates"
    for task, planned in effects.items():
        has_shares = shows_shares(task, config)
        least = MIN_DIFFERENCES
        if has_shares:
            least = count_needed_pairs(max(1, sum(effect.pairs > 0 for effect in planned)))
        for name, effect in _find_strongest(planned).items():
            if not effect.pairs:
                noun = "architectures" if config.has_networks else "configurations"
                reason = f"can be found: no two {noun} differ in it alone"
                if effect.excluded:
                    reason = "can be found: no pair of networks can show it"
            elif effect.runs < least:
                reason = (
                    f"{'on solved runs ' * has_shares}can be significant with {effect.size}: "
                    f"{least} in all are needed; vary another parameter as well, or set {setting} "
                    f"= {math.ceil(least / effect.pairs)}"
                )
            else:
                continue
            parameters.setdefault(reason, {})[name] = None
    return [f"no effect of {', '.join(names)} {reason}" for reason, names in parameters.items()]


def _find_strongest(effects: Sequence[PlannedEffect]) -> dict[str, PlannedEffect]:
    strongest: dict[str, PlannedEffect] = {}
    for effect in effects:
        name = effect.contrast.parameter
        if name not in strongest or effect.runs > strongest[name].runs:
            strongest[name] = effect
    return strongest


def shows_shares(task: str, config: StudyConfig) -> bool:
    """Return whether effects on a task are those on shares of solved networks.

    A pruned run has no outcome.
    """
    record = config.list_tasks().get(task)  # None of a loop
    return record is not None and bool(record.solved) and not config.pruning.enabled
