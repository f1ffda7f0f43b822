"""A study's grid that grows: new values at the end of a list, and the points that they bring."""

import optuna

from search.grid import GridSampler
from search.space import distributions, search_space
from studies.definition import Definition
from studies.errors import IdentityError
from studies.planning import PlannedPoint, extend_study
from studies.records import COMMANDS, DEFINITION
from studies.space import Space
from studies.storage import Storage


def extend(
    study: optuna.Study, storage: Storage, stored: Definition, wider: Definition, command: str
) -> Definition | None:
    """Add the points that a definition's space has more than the study's.

    Returns:
        The wider definition as stored; None if the study is no longer as it was.
    """
    assert wider.space is not None
    if stored.space is None:
        raise IdentityError(
            f"study {study.study_name!r} was derived, and has no grid; allowed with --extend: "
            "studies with a [space]; extend its source and refine that"
        )
    if stored.space.parameters != wider.space.parameters:
        raise IdentityError(
            f"study {study.study_name!r} has the parameters {', '.join(stored.space.parameters)}; "
            "allowed with --extend: the same; make another study"
        )
    for name in stored.space.parameters:
        old, new = list(stored.space.values(name)), list(wider.space.values(name))
        if new[: len(old)] != old:
            raise IdentityError(
                f"study {study.study_name!r}: space.{name} is {old} in the study and {new} here; "
                "allowed with --extend: the same values in the same order, new ones after them"
            )
    old_points = list(stored.space.points())
    new_points = grid_of(wider).points
    if lost := [point for point in old_points if point not in new_points]:
        raise IdentityError(
            f"study {study.study_name!r} has {len(lost)} points that space.exclude leaves out "
            "here; allowed with --extend: to exclude new points only"
        )
    extended = stored.model_copy(update={"space": wider.space})
    done = extend_study(
        storage,
        study._study_id,
        {DEFINITION: stored.model_dump(mode="json")},
        {
            DEFINITION: extended.model_dump(mode="json"),
            COMMANDS: [*study.user_attrs.get(COMMANDS, []), command],
        },
        distributions(search_space(wider.space)),
        [PlannedPoint(point) for point in new_points if point not in old_points],
    )
    return extended if done else None


def is_beginning(own: Space, stored: Space) -> bool:
    """Tell whether a grid can have been extended to the stored one."""
    if own.parameters != stored.parameters:
        return False
    for name in own.parameters:
        values = list(own.values(name))
        if list(stored.values(name))[: len(values)] != values:
            return False
    points = {tuple(point.values()) for point in stored.points()}
    return all(tuple(point.values()) in points for point in own.points())


def grid_of(definition: Definition) -> GridSampler:
    """Return the sampler of a definition's grid."""
    assert definition.space is not None
    return GridSampler(
        search_space(definition.space), definition.seed, exclude=definition.space.exclude
    )
