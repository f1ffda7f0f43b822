"""A few points of stage one that stand for all of them."""

import random

from studies.reading import find_definition
from studies.space import Point


def strata(count: int, seed: int = 0) -> list[Point]:
    """Draw points of stage one, of each number of layers and state size its share.

    Args:
        count: how many.
        seed: of the draw.

    Returns:
        The points, in an order drawn at random.
    """
    space = find_definition("stage-one", []).validate_alone().space
    assert space is not None
    shapes: dict[tuple[object, object], list[Point]] = {}
    for point in space.points():
        shapes.setdefault((point["layers"], point["state_size"]), []).append(point)
    whole = sum(map(len, shapes.values()))
    draw = random.Random(seed)
    chosen: list[Point] = []
    for points in shapes.values():
        chosen += draw.sample(points, round(count * len(points) / whole))
    draw.shuffle(chosen)
    assert len(chosen) == count, "take a number that the shapes divide"
    return chosen
