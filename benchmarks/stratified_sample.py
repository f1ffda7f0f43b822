"""Stratified samples of the grid of stage one."""

import random

from studies.loader import load_config_file
from studies.space import Params


def sample_stratified(count: int, seed: int = 0) -> list[Params]:
    """Sample parameter sets of stage one, proportionally by number of layers and state size.

    Args:
        count: number of parameter sets; must be divisible among the shapes.
        seed: random seed.

    Returns:
        Parameter sets in random order.
    """
    grid = load_config_file("stage-one", []).resolve().grid
    assert grid is not None
    shapes: dict[tuple[object, object], list[Params]] = {}
    for params in grid.combinations():
        shapes.setdefault((params["layers"], params["state_size"]), []).append(params)
    total = sum(map(len, shapes.values()))
    rng = random.Random(seed)
    chosen: list[Params] = []
    for stratum in shapes.values():
        chosen += rng.sample(stratum, round(count * len(stratum) / total))
    rng.shuffle(chosen)
    assert len(chosen) == count, f"cannot divide {count} among the shapes"
    return chosen
