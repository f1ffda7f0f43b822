"""The best of a finished study → the points of the next."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.errors import SourceUnfinished
from studies.accounting import Accounting
from studies.definition import (
    ALL_PARAMETERS,
    GRADIENT_WINDOW,
    REPLICATE,
    Definition,
    Point,
    Refinement,
    quota,
)
from studies.errors import DefinitionError
from studies.planning import PlannedPoint
from studies.records import SOURCE_TRIALS, is_point


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
    wanted = quota(refinement.best, accounting.planned)
    if accounting.finished < accounting.planned and not partial:
        raise SourceUnfinished(
            f"study {source.study_name!r} has finished {accounting.finished} of "
            f"{accounting.planned} points ({accounting.running} running, {accounting.waiting} "
            "waiting); allowed: all; run it to its end, or say --partial"
        )
    if accounting.pruned and wanted > (kept := quota(keep, accounting.planned)):
        raise SourceUnfinished(
            f"study {source.study_name!r} was pruned, and kept the best {kept} of its "
            f"{accounting.planned} points; refinement.best = {refinement.best} asks for {wanted}; "
            "allowed: as many, or fewer; refine fewer, or search anew with a larger pruning.keep"
        )
    ranked = ranking(source)
    if len(ranked) < wanted and not (partial and ranked):
        raise SourceUnfinished(
            f"study {source.study_name!r} has {len(ranked)} complete points; allowed: {wanted} or "
            f"more (refinement.best = {refinement.best}); refine fewer"
        )
    return _derive(ranked[:wanted], refinement, definition.training.gradient_window)


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Return a study's complete trials, the best first; of equals the lower number first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(filter(is_point, complete), key=lambda trial: (trial.value, trial.number))


def _derive(
    best: list[FrozenTrial], refinement: Refinement, gradient_window: int
) -> list[PlannedPoint]:
    sources: dict[tuple[object, ...], list[int]] = {}
    points: dict[tuple[object, ...], Point] = {}
    varies_window = any(GRADIENT_WINDOW in variant for variant in refinement.variants)
    for trial in best:
        own = {name: trial.params[name] for name in ALL_PARAMETERS if name in trial.params}
        own.pop(REPLICATE, None)
        if varies_window:
            own.setdefault(GRADIENT_WINDOW, gradient_window)
        for variant in refinement.variants:
            if foreign := variant.keys() - own.keys():
                raise DefinitionError(
                    f"refinement.variants names {', '.join(sorted(foreign))}; allowed for the "
                    f"points of {refinement.source!r}: {', '.join(own)}; correct it"
                )
            # From 1: replicate 0 is the run that was chosen, and chosen for its luck, too.
            for replicate in range(1, refinement.replicates + 1):
                point: Point = own | variant
                if refinement.replicates > 1:
                    point[REPLICATE] = replicate
                key = tuple(point.values())
                points[key] = point
                numbers = sources.setdefault(key, [])
                if trial.number not in numbers:
                    numbers.append(trial.number)
    return [PlannedPoint(point, {SOURCE_TRIALS: sources[key]}) for key, point in points.items()]
