"""Families of simulated curves on which no setting of the pruner was chosen.

Each family draws 128 complete curves that do something that predictions may miss. The definitions
were fixed before any pruner was run on them.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.recorded_curves import RecordedCurves
from search.pruning.regression import Floats

STEPS, LOG_EVERY = 1000, 20

_SWITCHES = 7

_COUNT = 2**_SWITCHES


def simulate_family(name: str, seed: int) -> RecordedCurves:
    """Simulate the curves of one of :data:`FAMILIES`."""
    random = np.random.default_rng(seed)
    params, curves = FAMILIES[name](random, _TIMES)
    curves += random.normal(0, 0.01, curves.shape)
    steps = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY)
    return RecordedCurves(params, steps, curves, curves[:, -5:].mean(axis=1))


_TIMES: Floats = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY) / STEPS

Family = tuple[list[dict[str, Any]], Floats]


def _simulate_switches(random: np.random.Generator) -> tuple[list[dict[str, Any]], Floats]:
    """Return a grid of switches and values with effects of one, two and three of them."""
    grid = np.array(list(itertools.product([-1, 1], repeat=_SWITCHES)))
    values = 2 + random.normal(0, 0.02, _COUNT)
    for order, scale in ((1, 0.08), (2, 0.03), (3, 0.015)):
        for chosen in itertools.combinations(range(_SWITCHES), order):
            values += random.normal(0, scale) * grid[:, chosen].prod(axis=1)
    params = [{f"switch_{i}": bool(on > 0) for i, on in enumerate(row)} for row in grid]
    return params, values


def _power_laws(random: np.random.Generator, times: Floats) -> Family:
    """Simulate power laws whose exponents differ, so that curves cross early and late."""
    params, values = _simulate_switches(random)
    exponent = random.uniform(0.4, 0.9, (_COUNT, 1))
    return params, values[:, None] + 0.25 * ((times + 0.01) ** -exponent - 1)


def _fast_and_slow(random: np.random.Generator, times: Floats) -> Family:
    """Simulate networks that fall fast and end high, or slowly and end low, by one switch."""
    params, values = _simulate_switches(random)
    is_slow = np.array([each["switch_3"] for each in params])
    speed = np.where(is_slow, 2.5, 10) * random.lognormal(0, 0.2, _COUNT)
    return params, (values - 0.1 * is_slow)[:, None] + 1.2 * np.exp(-speed[:, None] * times)


def _sudden_falls(random: np.random.Generator, times: Floats) -> Family:
    """Simulate curves that stay on a plateau and fall suddenly, each at a time of its own."""
    params, values = _simulate_switches(random)
    moment = random.uniform(0.05, 0.9, (_COUNT, 1))
    plateau = 0.5 / (1 + np.exp((times - moment) / 0.015))
    return params, values[:, None] + plateau + 0.8 * np.exp(-8 * times)


def _few_late(random: np.random.Generator, times: Floats) -> Family:
    """Simulate curves of which one in twenty falls late and ends among the best."""
    params, values = _simulate_switches(random)
    is_late = random.random(_COUNT) < 0.05
    values = np.where(is_late, np.quantile(values, 0.05) + random.normal(0, 0.03, _COUNT), values)
    moment = random.uniform(0.7, 0.9, (_COUNT, 1))
    late = 0.4 * is_late[:, None] / (1 + np.exp((times - moment) / 0.02))
    lead = random.normal(0, 0.05, (_COUNT, 1)) * np.exp(-2 * times)
    return params, values[:, None] + late + lead * ~is_late[:, None] + 1.2 * np.exp(-8 * times)


def _uninformative_switches(random: np.random.Generator, times: Floats) -> Family:
    """Simulate values with heavy tails that no switch explains, and leads that vanish."""
    params, values = _simulate_switches(random)
    values = 2 + 0.08 * random.standard_t(3, _COUNT)
    lead = random.normal(0, 0.12, (_COUNT, 1)) * np.exp(-3 * times)
    return params, values[:, None] + lead + 1.2 * np.exp(-8 * times)


def _random_numbers(random: np.random.Generator, times: Floats) -> Family:
    """Simulate a random search over numbers: a best learning rate, and divergence above it."""
    rate, width, decay = random.uniform(-1, 1, (3, _COUNT))
    params = [
        {"rate": float(a), "width": float(b), "decay": float(c)}
        for a, b, c in zip(rate, width, decay, strict=True)
    ]
    offset = rate - 0.3 + 0.3 * width
    values = 2 + 0.2 * offset**2 - 0.1 * width + 0.05 * decay**2 + random.normal(0, 0.02, _COUNT)
    curves = values[:, None] + 1.2 * np.exp(-times * (5 + 3 * rate[:, None]))
    rise = random.uniform(0, 1.5, _COUNT) * (offset > 0.5)
    return params, curves + rise[:, None] * np.clip(times - 0.1, 0, None)


FAMILIES: dict[str, Callable[[np.random.Generator, Floats], Family]] = {
    "power laws": _power_laws,
    "fast and slow": _fast_and_slow,
    "sudden falls": _sudden_falls,
    "few late": _few_late,
    "uninformative switches": _uninformative_switches,
    "random numbers": _random_numbers,
}
