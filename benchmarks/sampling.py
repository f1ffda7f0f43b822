"""A few points of stage one that stand for all of them."""

import random

from studies.loader import load_config_file
from studies.space import Params


def strata(count: int, seed: int = 0) -> list[Params]:
    """Draw points of stage one, of each number of layers and state size its share.

    Args:
        count: how many.
        seed: of the draw.

    Returns:
        The points, in an order drawn at random.
    """
    space = load_config_file("stage-one", []).resolve().space
    assert space is not None
    shapes: dict[tuple[object, object], list[Params]] = {}
    for point in space.combinations():
        shapes.setdefault((point["layers"], point["state_size"]), []).append(point)
    whole = sum(map(len, shapes.values()))
    draw = random.Random(seed)
    chosen: list[Params] = []
    for points in shapes.values():
        chosen += draw.sample(points, round(count * len(points) / whole))
    draw.shuffle(chosen)
    assert len(chosen) == count, "take a number that the shapes divide"
    return chosen
