"""Simulated sweeps with planted effects, drawn at random or by a sampler that adapts."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from reports.stats.additive_model import AdditiveModel, fit_additive_model

NAMES = ("learning_rate", "optimizer", "norm", "null", "null_rate", "momentum")

BEST_RATE = 3e-3
"""Learning rate of the least expected loss."""

SGD, NORM, MOMENTUM = 0.10, -0.05, -0.1
"""Planted differences to Adam and to no norm, and slope of the momentum, which SGD alone has."""

NOISE = 0.02
"""Standard deviation of a run with Adam and a small learning rate."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep: its parameters, and the model that was fitted to their losses."""

    rows: list[Row]
    model: AdditiveModel

    @property
    def differences(self) -> dict[str, float]:
        """Planted differences of the levels; that of SGD is at the average momentum tried."""
        momentum = np.mean([row["momentum"] for row in self.rows if "momentum" in row])
        return {"optimizer": SGD + MOMENTUM * float(momentum - 0.5), "norm": NORM, "null": 0.0}


@dataclass(frozen=True)
class Rates:
    """What was found in simulated sweeps.

    Attributes:
        covered: share of differences between levels whose interval has the planted one.
        covered_best: share of sweeps whose interval has the best rate, or is unknown.
        decades: mean width of this interval, of the range tried where it is unknown.
        false: share of null parameters that are significant without correction.
        false_corrected: share of sweeps with a null parameter that is significant after it.
    """

    covered: float
    covered_best: float
    decades: float
    false: float
    false_corrected: float


def compute_loss(row: Row, is_skewed: bool = False) -> float:
    """Return the expected loss of a configuration."""
    distance = math.log10(row["learning_rate"] / BEST_RATE)
    steepness = 0.12 if is_skewed and distance > 0 else 0.04
    loss = 1 + steepness * distance**2 + SGD * (row["optimizer"] == "sgd") + NORM * row["norm"]
    return float(loss + MOMENTUM * (row.get("momentum", 0.5) - 0.5))


def draw_noise(row: Row, generator: np.random.Generator) -> float:
    """Draw noise that is twice as large with SGD and grows with the rate."""
    scale = (2 if row["optimizer"] == "sgd" else 1) * (1 + row["learning_rate"] / 0.05)
    return float(NOISE * scale * generator.normal())


def suggest(trial: optuna.Trial) -> Row:
    """Suggest a configuration."""
    row: Row = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["adam", "sgd"]),
        "norm": trial.suggest_categorical("norm", [False, True]),
        "null": trial.suggest_categorical("null", ["a", "b"]),
        "null_rate": trial.suggest_float("null_rate", 0.0, 1.0),
    }
    if row["optimizer"] == "sgd":
        row["momentum"] = trial.suggest_float("momentum", 0.0, 1.0)
    return row


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
}


def simulate_sweeps(
    sampler: str, size: int, count: int, is_skewed: bool = False
) -> Iterator[Sweep]:
    """Draw sweeps of some runs each and fit the model."""
    for seed in range(count):
        generator = np.random.default_rng([seed, size])
        study = optuna.create_study(sampler=SAMPLERS[sampler](seed))
        rows, values = [], []
        for _ in range(size):
            trial = study.ask()
            row = suggest(trial)
            value = compute_loss(row, is_skewed) + draw_noise(row, generator)
            study.tell(trial, value)
            rows.append(row)
            values.append(value)
        columns = {name: [row.get(name) for row in rows] for name in NAMES}
        yield Sweep(rows, fit_additive_model(columns, values))


def measure_rates(sweeps: Iterable[Sweep]) -> Rates:
    """Compare the models of some sweeps with what was planted."""
    covered, covered_best, decades, false, false_corrected = [], [], [], [], []
    for sweep in sweeps:
        trends = {each.parameter: each for each in sweep.model.trends}
        for each in sweep.model.levels:
            truth = sweep.differences[each.parameter]
            covered.append(each.effect.low <= truth <= each.effect.high)
        rate = trends["learning_rate"]
        low, high = rate.low, rate.high
        if not rate.optimum.reason:
            low, high = rate.optimum.low, rate.optimum.high
        decades.append(math.log10(high / low))
        is_above = low <= BEST_RATE or rate.optimum.is_open_below or bool(rate.optimum.reason)
        is_below = high >= BEST_RATE or rate.optimum.is_open_above or bool(rate.optimum.reason)
        covered_best.append(is_above and is_below)
        null = [each for each in sweep.model.levels if each.parameter == "null"]
        false += [trends["null_rate"].p < 0.05, *(each.effect.p < 0.05 for each in null)]
        adjusted = [trends["null_rate"].p_adjusted, *(each.p_adjusted for each in null)]
        false_corrected.append(min(adjusted) < 0.05)
    return Rates(
        *(float(np.mean(e)) for e in (covered, covered_best, decades, false, false_corrected))
    )
