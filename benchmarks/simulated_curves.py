"""Simulated curves of complete searches, which do what predictions of final values may miss.

The families have 128 curves, or 144. They were defined before any pruner was run on them.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from search.pruning.regression import Floats
from studies.space import REPLICATE
from tests.simulations.pruned_search import RecordedCurves

STEPS = 1000

_LOG_EVERY = 20

_SWITCHES = 7

_COUNT = 2**_SWITCHES

Family = tuple[list[dict[str, Any]], Floats]
"""Parameters of N trials, and their losses at L log points, (N, L)."""


def simulate_curves(name: str, seed: int) -> RecordedCurves:
    """Simulate the curves of a grid, one of :data:`FAMILIES`."""
    random = np.random.default_rng(seed)
    steps = np.arange(_LOG_EVERY, STEPS + 1, _LOG_EVERY)
    params, curves = FAMILIES[name](random, steps / STEPS)
    curves += random.normal(0, 0.01, curves.shape)
    return RecordedCurves(params, steps, curves, curves[:, -5:].mean(axis=1))


def repeat_curves(recorded: RecordedCurves, replicates: int, seed: int) -> RecordedCurves:
    """Return several runs of each architecture of which one is simulated.

    They end around it with a standard deviation of 0.02, and all runs of a replicate are shifted
    together by half as much.
    """
    random = np.random.default_rng(seed)
    times = recorded.steps / recorded.end
    curves, values = [], []
    for _ in range(replicates):
        shift = random.normal(0, 0.01)
        end = random.normal(0, 0.02, len(recorded.values))
        noise = random.normal(0, 0.01, recorded.curves.shape)
        curves.append(
            recorded.curves + end[:, None] * times + shift * np.minimum(1, 5 * times) + noise
        )
        values.append(recorded.values + end + shift)
    params = [
        {**of_one, REPLICATE: number} for number in range(replicates) for of_one in recorded.params
    ]
    return RecordedCurves(params, recorded.steps, np.vstack(curves), np.concatenate(values))


# ------------------------------------------------------------------ families


def _simulate_switches(random: np.random.Generator) -> Family:
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
    is_slow = np.array([switches["switch_3"] for switches in params])
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


def _overfitting(random: np.random.Generator, times: Floats) -> Family:
    """Simulate losses on held-out text that rise late, most for large networks that fell fast."""
    params, values = _simulate_switches(random)
    is_large = np.array([switches["switch_0"] for switches in params])
    speed = np.where(is_large, 12, 7) * random.lognormal(0, 0.15, _COUNT)
    rise = np.where(is_large, random.uniform(0, 0.5, _COUNT), 0)
    curves = (values - 0.15 * is_large)[:, None] + 1.2 * np.exp(-speed[:, None] * times)
    return params, curves + rise[:, None] * np.clip(times - 0.4, 0, None)


def _staircase(random: np.random.Generator, times: Floats) -> Family:
    """Simulate curves that fall when the learning rate does, by an amount of their own."""
    params, values = _simulate_switches(random)
    curves = values[:, None] + 1.2 * np.exp(-15 * times)
    for moment in (0.3, 0.55, 0.8):
        fall = random.normal(0.12, 0.03, (_COUNT, 1))
        curves = curves + fall * (times < moment)
    return params, curves


def _slow_and_good(random: np.random.Generator, times: Floats) -> Family:
    """Simulate exponential falls that are the slower, the better a network ends."""
    params, values = _simulate_switches(random)
    place = (values - values.mean()) / values.std()
    speed = 6 * np.exp(0.3 * place + random.normal(0, 0.15, _COUNT))
    return params, values[:, None] + 1.0 * np.exp(-speed[:, None] * times)


def _wandering(random: np.random.Generator, times: Floats) -> Family:
    """Simulate curves that wander at random around their fall, as with few evaluation windows."""
    params, values = _simulate_switches(random)
    steps = random.normal(0, 0.02, (_COUNT, len(times)))
    curves = values[:, None] + np.cumsum(steps, axis=1) + 1.2 * np.exp(-8 * times)
    return params, curves + random.normal(0, 0.03, curves.shape)


def _close_finish(random: np.random.Generator, times: Floats) -> Family:
    """Simulate slow smooth falls to values of which the best third differ by the noise of a run.

    As a refined study of long trainings: 144 networks near good ones.
    """
    grid = list(itertools.product((1, 2, 3), (128, 192, 256, 384), (False, True), range(6)))
    names = ("layers", "state_size", "residual", "gates")
    params = [dict(zip(names, values, strict=True)) for values in grid]
    effects = [
        dict(zip(levels, random.normal(0, 1, len(levels)), strict=True))
        for levels in (dict.fromkeys(column) for column in zip(*grid, strict=True))
    ]
    quality = np.array(
        [sum(e[v] for e, v in zip(effects, levels, strict=True)) for levels in grid]
    ) + random.normal(0, 0.5, len(grid))
    place = np.argsort(np.argsort(quality)) / len(grid)  # from 0 for the best
    run = random.normal(0, 0.008, len(grid))
    values = 1.2 + 0.25 * place**2.5 + run
    exponent = 0.5 + 0.01 * random.normal(0, 1, (len(grid), 1))
    lead = 0.01 * random.normal(0, 1, (len(grid), 1)) * np.exp(-2 * times)
    return params, values[:, None] + 0.2 * ((times + 0.01) ** -exponent - 1) + lead


def _growing_gaps(random: np.random.Generator, times: Floats) -> Family:
    """Simulate curves that are alike early, with gaps that grow as the logarithm of the steps."""
    params, values = _simulate_switches(random)
    growth = np.log1p(20 * times) / math.log(21)
    private = random.normal(0, 0.03, (_COUNT, 1)) * times
    return params, 2 + (values[:, None] - 2) * growth + private + 1.2 * np.exp(-8 * times)


def _decayed_rate(random: np.random.Generator, times: Floats) -> Family:
    """Simulate a learning rate that falls to 0: noisy networks gain most in the last third."""
    params, values = _simulate_switches(random)
    is_fast = np.array([switches["switch_1"] for switches in params])
    temperature = np.where(is_fast, 0.25, 0.1) * random.lognormal(0, 0.2, _COUNT)
    rate = np.where(times < 0.6, 1, (1 - times) / 0.4)
    curves = values[:, None] + temperature[:, None] * rate
    return params, curves + 0.8 * np.exp(-np.where(is_fast, 14, 8)[:, None] * times)


def _three_way_speed(random: np.random.Generator, times: Floats) -> Family:
    """Simulate falls that are slow where three switches agree, which no pair explains."""
    params, values = _simulate_switches(random)
    agree = np.array(
        [switches["switch_0"] ^ switches["switch_2"] ^ switches["switch_4"] for switches in params]
    )
    speed = np.where(agree, 3, 8) * random.lognormal(0, 0.25, _COUNT)
    return params, values[:, None] + 0.9 * np.exp(-speed[:, None] * times)


def _spikes(random: np.random.Generator, times: Floats) -> Family:
    """Simulate curves of which a third rise suddenly, once, and recover in a tenth of the steps."""
    params, values = _simulate_switches(random)
    has_spike = random.random((_COUNT, 1)) < 1 / 3
    moment = random.uniform(0.02, 0.95, (_COUNT, 1))
    height = random.exponential(0.3, (_COUNT, 1)) * has_spike
    since = np.clip(times - moment, 0, None)
    spike = height * np.exp(-since / 0.04) * (times >= moment)
    return params, values[:, None] + spike + 1.2 * np.exp(-9 * times)


def _solved_by_some(random: np.random.Generator, times: Floats) -> Family:
    """Simulate losses above a floor that the better networks reach, by factors of ten."""
    params, values = _simulate_switches(random)
    place = (values - values.mean()) / values.std()
    speed = 3 * np.exp(-place - 0.7 + random.normal(0, 0.3, _COUNT))
    logarithm = -np.minimum(speed[:, None] * times**1.5, 7)
    jitter = random.normal(0, 0.1, (_COUNT, len(times)))
    return params, 0.05 + np.exp(logarithm + jitter)


def _two_kinds(random: np.random.Generator, times: Floats) -> Family:
    """Simulate two kinds of networks: power laws and exponential falls, with effects of their own.

    The second kind is ahead for most of the training and ends alike.
    """
    params, values = _simulate_switches(random)
    _, others = _simulate_switches(random)
    is_second = np.array([switches["switch_6"] for switches in params])
    power_law = values[:, None] + 0.3 * ((times + 0.01) ** -0.5 - 1)
    speed = 8 * random.lognormal(0, 0.15, (_COUNT, 1))
    return params, np.where(
        is_second[:, None], others[:, None] + 1.2 * np.exp(-speed * times), power_law
    )


def _restarts(random: np.random.Generator, times: Floats) -> Family:
    """Simulate a learning rate that falls to 0 and restarts, four times: losses rise each time."""
    params, values = _simulate_switches(random)
    rate = 0.5 + 0.5 * np.cos(math.pi * np.mod(4 * times, 1))
    rate[-1] = 0  # of the end, which is no restart
    height = 0.12 * random.lognormal(0, 0.4, (_COUNT, 1))
    speed = 7 * random.lognormal(0, 0.2, (_COUNT, 1))
    return params, values[:, None] + height * rate + np.exp(-speed * times)


def _unequal_noise(random: np.random.Generator, times: Floats) -> Family:
    """Simulate networks of which a quarter, by two switches, end anywhere and the others do not."""
    params, values = _simulate_switches(random)
    is_noisy = np.array([switches["switch_0"] and switches["switch_5"] for switches in params])
    private = np.where(is_noisy, 0.15, 0.015) * random.normal(0, 1, _COUNT)
    lead = values[:, None] + private[:, None] * np.minimum(1, 1.5 * times)
    return params, lead + 1.0 * np.exp(-9 * times)


def _late_divergence(random: np.random.Generator, times: Floats) -> Family:
    """Simulate losses of which every third rises for good at a time of its own."""
    params, values = _simulate_switches(random)
    rises = random.random((_COUNT, 1)) < 1 / 3
    moment = random.uniform(0.1, 1.2, (_COUNT, 1))
    rise = 2.0 * rises * np.clip(times - moment, 0, None)
    return params, values[:, None] + rise + 1.2 * np.exp(-8 * times)


def _best_rates(random: np.random.Generator, times: Floats) -> Family:
    """Simulate 16 architectures at eight learning rates; each has a best rate, and a greatest."""
    rates = np.tile(np.arange(8), 16)
    architectures = np.repeat(np.arange(16), 8)
    params = [
        {
            "learning_rate": 0.001 * 2.0**rate,
            **{f"switch_{i}": bool(architecture >> i & 1) for i in range(4)},
        }
        for architecture, rate in zip(architectures.tolist(), rates.tolist(), strict=True)
    ]
    quality = random.normal(0, 0.1, 16)[architectures]
    best = random.uniform(2, 6, 16)[architectures]
    distance = rates - best
    values = 2 + quality + np.where(distance < 0, 0.03, 0.015) * distance**2
    values += random.normal(0, 0.02, len(rates))
    speed = (3 * 1.5 ** (rates - 2.0))[:, None]
    unstable = 0.6 * (distance > 2)[:, None] * np.minimum(1, 6 * times)
    return params, values[:, None] + unstable + 1.2 * np.exp(-speed * times)


def _deep_plateaus(random: np.random.Generator, times: Floats) -> Family:
    """Simulate deep networks, which start with a plateau, a longer one without a residual."""
    grid = list(itertools.product((1, 2, 3, 4), (False, True), range(16)))
    names = ("layers", "residual", "gates")
    params = [dict(zip(names, row, strict=True)) for row in grid]
    layers = np.array([row[0] for row in grid])
    residual = np.array([row[1] for row in grid])
    gates = random.normal(0, 0.06, 16)[[row[2] for row in grid]]
    values = 2 - 0.06 * layers + gates + random.normal(0, 0.03, len(grid))
    start = 0.1 * (layers - 1) * np.where(residual, 0.4, 1) * random.lognormal(0, 0.3, len(grid))
    since = np.clip(times - start[:, None], 0, None)
    return params, values[:, None] + 1.2 * np.exp(-9 * since)


def _cells_in_turn(random: np.random.Generator, times: Floats) -> Family:
    """Simulate four cells of which each leaves the plateau of its own time, the last by the half.

    Which of them ends best is left to chance.
    """
    grid = list(itertools.product(("a", "b", "c", "d"), (64, 128), range(16)))
    params = [dict(zip(("cell", "state_size", "gates"), row, strict=True)) for row in grid]
    cells = np.array(["abcd".index(row[0]) for row in grid])
    wide = np.array([row[1] == 128 for row in grid])
    values = 1.5 + random.normal(0, 0.08, 4)[cells] - 0.05 * wide
    values += random.normal(0, 0.05, 16)[[row[2] for row in grid]]
    values += random.normal(0, 0.02, len(grid))
    moment = np.array([0.02, 0.1, 0.25, 0.5])[cells] * random.lognormal(0, 0.15, len(grid))
    plateau = 1 / (1 + np.exp((times - moment[:, None]) / 0.03))
    return params, values[:, None] + plateau + 0.3 * np.exp(-6 * times)


def _second_falls(random: np.random.Generator, times: Floats) -> Family:
    """Simulate curves that fall at once and a second time, the earlier the better a network is."""
    params, values = _simulate_switches(random)
    place = (values - values.mean()) / values.std()
    moment = 0.35 * np.exp(0.4 * place + random.normal(0, 0.3, _COUNT))
    second = 0.4 / (1 + np.exp((times - moment[:, None]) / 0.05))
    return params, values[:, None] + second + 1.2 * np.exp(-12 * times)


def _late_gains(random: np.random.Generator, times: Floats) -> Family:
    """Simulate falls to a level of one set of switches, then steady gains by another set."""
    params, values = _simulate_switches(random)
    _, gains = _simulate_switches(random)
    curves = values[:, None] + (gains - 2)[:, None] * times
    return params, curves + 1.2 * np.exp(-15 * times)


def _shrinking_noise(random: np.random.Generator, times: Floats) -> Family:
    """Simulate noise of single points that is ten times as large at the start as at the end."""
    params, values = _simulate_switches(random)
    noise = random.normal(0, 0.15, (_COUNT, len(times))) * np.exp(-2.3 * times)
    return params, values[:, None] + noise + 1.2 * np.exp(-7 * times)


FAMILIES: dict[str, Callable[[np.random.Generator, Floats], Family]] = {
    "power laws": _power_laws,
    "fast and slow": _fast_and_slow,
    "sudden falls": _sudden_falls,
    "few late": _few_late,
    "uninformative switches": _uninformative_switches,
    "random numbers": _random_numbers,
    "overfitting": _overfitting,
    "staircase": _staircase,
    "slow and good": _slow_and_good,
    "wandering": _wandering,
    "close finish": _close_finish,
    "growing gaps": _growing_gaps,
    "decayed rate": _decayed_rate,
    "three-way speed": _three_way_speed,
    "spikes": _spikes,
    "solved by some": _solved_by_some,
    "two kinds": _two_kinds,
    "restarts": _restarts,
    "unequal noise": _unequal_noise,
    "late divergence": _late_divergence,
    "best rates": _best_rates,
    "deep plateaus": _deep_plateaus,
    "cells in turn": _cells_in_turn,
    "second falls": _second_falls,
    "late gains": _late_gains,
    "shrinking noise": _shrinking_noise,
}
