"""``python -m benchmarks pruning-families``: pruners on curves for which none was tuned.

Each family draws 128 complete curves, or 144, that do something that predictions may miss. The
definitions were fixed before any pruner was run on them; the last six were added before other
widths of predictions were tried.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.audited_pruning import (
    AUDIT,
    CONCURRENT,
    FORECAST_SHARES,
    AuditedReplay,
    replay_audited,
)
from benchmarks.replay_pruning import (
    keep_best_at_first_rung,
    optuna_pruners,
    replay_in_optuna,
)
from search.pruning.regression import Floats
from tests.simulations.pruned_search import RecordedCurves

STEPS = 1000

LOG_EVERY = 20

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
}

BASELINES = ("Percentile(25)", "conformal")


def measure(searches: int = 16) -> Iterator[str]:
    """Yield a table of the cost and the recall of pruners on each family.

    Args:
        searches: number of simulated searches of each family.
    """
    yield f"{searches} searches of {_COUNT} trials or 144 of each family, best tenth to be kept"
    yield "steps left after a quarter, a half and three quarters of a search: forecast / truth"
    yield "(range), and how many ranges contain the truth"
    yield f"  {'curves':24} {'pruner':26} {'cost':>6} {'recall':>7} {'error':>6} {'stated':>7}"
    for family in FAMILIES:
        found: dict[str, list[tuple[float, float, float]]] = {}
        audited = []
        for seed in range(searches):
            recorded = simulate_family(family, seed)
            ours = replay_audited(recorded, AUDIT, seed)
            audited.append(ours)
            found.setdefault("ours", []).append((ours.cost, ours.recall, ours.stated))
            for pruner, result in _replay_others(recorded, seed):
                found.setdefault(pruner, []).append(result)
        for pruner, results in found.items():
            yield _format(family, pruner, results)
        yield f"  {family:24} left: {', '.join(_format_forecasts(audited))}"


def _replay_others(
    recorded: RecordedCurves, seed: int
) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Yield each other pruner with its cost, its recall and NaN: it states no recall."""
    ours = replay_audited(recorded, 0, seed)
    yield "ours, none audited", (ours.cost, ours.recall, math.nan)
    look = keep_best_at_first_rung(recorded)
    yield "best after a look", (look.cost, look.recall, math.nan)
    order = np.random.default_rng(seed).permutation(len(recorded.values)).tolist()
    for name in BASELINES:
        pruner = optuna_pruners(recorded.end)[name]()
        other = replay_in_optuna(recorded, pruner, order, CONCURRENT)
        yield name, (other.cost, other.recall, math.nan)


def _format_forecasts(replays: Sequence[AuditedReplay]) -> Iterator[str]:
    """Yield the geometric means of forecasts, relative to the truth, after each share."""
    for share in FORECAST_SHARES:
        rows = [replay.forecasts[share] for replay in replays if share in replay.forecasts]
        if rows:
            found = np.array(rows)
            low, likely, high = np.exp(np.log(found).mean(axis=0))
            inside = int(((found[:, 0] <= 1) & (found[:, 2] >= 1)).sum())
            yield f"{likely:.2f} ({low:.2f} to {high:.2f}) {inside}/{len(found)}"


def _format(family: str, pruner: str, results: Sequence[tuple[float, float, float]]) -> str:
    cost, recall, stated = np.mean(results, axis=0)
    error = np.std(results, axis=0, ddof=1)[1] / math.sqrt(len(results))
    promise = "" if math.isnan(stated) else f"{stated:7.3f}"
    return f"  {family:24} {pruner:26} {cost:6.3f} {recall:7.3f} {error:6.3f} {promise}"
