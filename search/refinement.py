"""The best of a finished study → the points of the next."""

from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.errors import SourceUnfinished
from studies.accounting import Accounting
from studies.definition import Definition, Refinement, quota
from studies.errors import DefinitionError
from studies.planning import PlannedPoint
from studies.records import SOURCE_TRIALS, is_point
from studies.space import ALL_PARAMETERS, GRADIENT_WINDOW, REPLICATE, Point


def derive_points(
    source: optuna.Study,
    accounting: Accounting,
    definition: Definition,
    partial: bool = False,
    keep: float = 1,
) -> list[PlannedPoint]:
    """Take the best points of a source study through a definition's variants and replicates.

    Points that coincide are one point, which carries the numbers of all the source's trials that
    led to it. The best come first.

    Args:
        source: the study to derive from.
        accounting: of its points.
        definition: with a refinement.
        partial: whether an unfinished source will do.
        keep: the fraction of its points that pruning has kept, if it was pruned.

    Raises:
        SourceUnfinished: if points of the source are not finished, or fewer complete than wanted,
            or fewer were kept.
        DefinitionError: if a variant names what the source's points do not have.
    """
    refinement = definition.refinement
    assert refinement is not None
    points = list(filter(is_point, source.get_trials(deepcopy=False)))
    # Where a source has replicates, it is architectures that are ranked and counted.
    repeated = len({_architecture(trial) for trial in points}) < len(points)
    planned = len({_architecture(trial) for trial in points}) if repeated else accounting.planned
    wanted = quota(refinement.best, planned)
    if accounting.finished < accounting.planned and not partial:
        raise SourceUnfinished(
            f"study {source.study_name!r} has finished {accounting.finished} of "
            f"{accounting.planned} points ({accounting.running} running, {accounting.waiting} "
            "waiting); allowed: all; run it to its end, or say --partial"
        )
    if accounting.pruned and wanted > (kept := quota(keep, planned)):
        raise SourceUnfinished(
            f"study {source.study_name!r} was pruned, and kept the best {kept} of its "
            f"{accounting.planned} points; refinement.best = {refinement.best} asks for {wanted}; "
            "allowed: as many, or fewer; refine fewer, or search anew with a larger pruning.keep"
        )
    ranked = _by_architecture(ranking(source))
    if len(ranked) < wanted and not (partial and ranked):
        raise SourceUnfinished(
            f"study {source.study_name!r} has {len(ranked)} complete points; allowed: {wanted} or "
            f"more (refinement.best = {refinement.best}); "
            + ("refine fewer" if ranked else "make another source: every point of this one failed")
        )
    return _derive(ranked[:wanted], refinement, definition.training.gradient_window)


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Return a study's complete trials, the best first; of equals the lower number first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(filter(is_point, complete), key=lambda trial: (trial.value, trial.number))


def _architecture(trial: FrozenTrial) -> tuple[tuple[str, Any], ...]:
    """Return a trial's parameters without the replicate's number."""
    names = [name for name in ALL_PARAMETERS if name in trial.params and name != REPLICATE]
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
    best: list[list[FrozenTrial]], refinement: Refinement, gradient_window: int
) -> list[PlannedPoint]:
    sources: dict[tuple[object, ...], list[int]] = {}
    points: dict[tuple[object, ...], Point] = {}
    varies_window = any(GRADIENT_WINDOW in variant for variant in refinement.variants)
    # After those that were chosen, and chosen for their luck, too; a single run is replicate 0.
    first = 1 + max(int(trial.params.get(REPLICATE, 0)) for runs in best for trial in runs)
    for runs in best:
        own = dict(_architecture(runs[0]))
        if varies_window:
            own.setdefault(GRADIENT_WINDOW, gradient_window)
        for variant in refinement.variants:
            if foreign := variant.keys() - own.keys():
                raise DefinitionError(
                    f"refinement.variants names {', '.join(sorted(foreign))}; allowed for the "
                    f"points of {refinement.source!r}: {', '.join(own)}; correct it"
                )
            for replicate in range(first, first + refinement.replicates):
                point: Point = own | variant
                if refinement.replicates > 1:
                    point[REPLICATE] = replicate
                key = tuple(point.values())
                points[key] = point
                numbers = sources.setdefault(key, [])
                numbers += [run.number for run in runs if run.number not in numbers]
    return [PlannedPoint(point, {SOURCE_TRIALS: sources[key]}) for key, point in points.items()]
