"""The best of a finished study → the points of the next."""

from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.errors import UnfinishedSourceError
from studies.attributes import SOURCE_TRIALS, is_grid_trial
from studies.config import Refinement, StudyConfig, top_count
from studies.errors import ConfigError
from studies.space import BPTT_STEPS, PARAM_ORDER, REPLICATE, Params
from studies.storage.counts import TrialCounts
from studies.storage.create import PlannedTrial


def derive_trials(
    source: optuna.Study,
    counts: TrialCounts,
    config: StudyConfig,
    partial: bool = False,
    keep: float = 1,
) -> list[PlannedTrial]:
    """Take the best points of a source study through a definition's variants and replicates.

    Points that coincide are one point, which carries the numbers of all the source's trials that
    led to it. The best come first.

    Args:
        source: the study to derive from.
        counts: of its points.
        config: with a refinement.
        partial: whether an unfinished source will do.
        keep: the fraction of its points that pruning has kept, if it was pruned.

    Raises:
        UnfinishedSourceError: if points of the source are not finished, or fewer complete
            than wanted,
            or fewer were kept.
        ConfigError: if a variant names what the source's points do not have.
    """
    refinement = config.refinement
    assert refinement is not None
    points = list(filter(is_grid_trial, source.get_trials(deepcopy=False)))
    # Where a source has replicates, it is architectures that are ranked and counted.
    repeated = len({_architecture(trial) for trial in points}) < len(points)
    planned = len({_architecture(trial) for trial in points}) if repeated else counts.planned
    wanted = top_count(refinement.top, planned)
    if counts.finished < counts.planned and not partial:
        raise UnfinishedSourceError(
            f"study {source.study_name!r} has finished {counts.finished} of "
            f"{counts.planned} points ({counts.running} running, {counts.waiting} "
            "waiting); allowed: all; run it to its end, or say --partial"
        )
    if counts.pruned and wanted > (kept := top_count(keep, planned)):
        raise UnfinishedSourceError(
            f"study {source.study_name!r} was pruned, and kept the best {kept} of its "
            f"{counts.planned} points; refinement.top = {refinement.top} asks for {wanted}; "
            "allowed: as many, or fewer; refine fewer, or search anew with a larger pruning.keep"
        )
    ranked = _by_architecture(rank_trials(source))
    if len(ranked) < wanted and not (partial and ranked):
        raise UnfinishedSourceError(
            f"study {source.study_name!r} has {len(ranked)} complete points; allowed: {wanted} or "
            f"more (refinement.top = {refinement.top}); "
            + ("refine fewer" if ranked else "make another source: every point of this one failed")
        )
    return _derive(ranked[:wanted], refinement, config.training.bptt_steps)


def rank_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return a study's complete trials, the best first; of equals the lower number first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(filter(is_grid_trial, complete), key=lambda trial: (trial.value, trial.number))


def _architecture(trial: FrozenTrial) -> tuple[tuple[str, Any], ...]:
    """Return a trial's parameters without the replicate's number."""
    names = [name for name in PARAM_ORDER if name in trial.params and name != REPLICATE]
    return tuple((name, trial.params[name]) for name in names)


def _by_architecture(ranked: list[FrozenTrial]) -> list[list[FrozenTrial]]:
    """Gather replicates; the best by their mean come first, of equals the lower number."""
    found: dict[tuple[tuple[str, Any], ...], list[FrozenTrial]] = {}
    for trial in ranked:
        found.setdefault(_architecture(trial), []).append(trial)

    def mean(runs: list[FrozenTrial]) -> tuple[float, int]:
        return fmean(run.value or 0.0 for run in runs), runs[0].number

    return sorted(found.values(), key=mean)


def _derive(
    best: list[list[FrozenTrial]], refinement: Refinement, bptt_steps: int
) -> list[PlannedTrial]:
    sources: dict[tuple[object, ...], list[int]] = {}
    points: dict[tuple[object, ...], Params] = {}
    varies_window = any(BPTT_STEPS in variant for variant in refinement.variants)
    # After those that were chosen, and chosen for their luck, too; a single run is replicate 0.
    first = 1 + max(int(trial.params.get(REPLICATE, 0)) for runs in best for trial in runs)
    for runs in best:
        own = dict(_architecture(runs[0]))
        if varies_window:
            own.setdefault(BPTT_STEPS, bptt_steps)
        for variant in refinement.variants:
            if foreign := variant.keys() - own.keys():
                raise ConfigError(
                    f"refinement.variants names {', '.join(sorted(foreign))}; allowed for the "
                    f"points of {refinement.source!r}: {', '.join(own)}; correct it"
                )
            for replicate in range(first, first + refinement.replicates):
                point: Params = own | variant
                if refinement.replicates > 1:
                    point[REPLICATE] = replicate
                key = tuple(point.values())
                points[key] = point
                numbers = sources.setdefault(key, [])
                numbers += [run.number for run in runs if run.number not in numbers]
    return [PlannedTrial(point, {SOURCE_TRIALS: sources[key]}) for key, point in points.items()]
