"""Simulated sweeps with planted effects, drawn at random or by a sampler that adapts."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from reports.stats.additive_model import AdditiveModel, fit_additive_model

BEST_RATE = 3e-3
"""Learning rate of the least expected loss."""

LEVELS = {"optimizer sgd": 0.10, "norm True": -0.05, "null b": 0.0}
"""Planted differences to the first level of each parameter, momentum being at its average."""

NOISE = 0.04

Row = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep: its parameters, values, and the model that was fitted."""

    rows: list[Row]
    values: list[float]
    model: AdditiveModel


def lose(row: Row, is_skewed: bool = False) -> float:
    """Return the expected loss of a configuration."""
    distance = math.log10(row["learning_rate"] / BEST_RATE)
    steep = 0.12 if is_skewed and distance > 0 else 0.04
    loss = 1 + steep * distance**2
    loss += LEVELS["optimizer sgd"] * (row["optimizer"] == "sgd")
    loss += LEVELS["norm True"] * row["norm"]
    if "momentum" in row:
        loss -= 0.1 * (row["momentum"] - 0.5)
    return loss


def draw_noise(row: Row, generator: np.random.Generator) -> float:
    """Draw noise that is twice as large with sgd and grows with the rate."""
    scale = (2 if row["optimizer"] == "sgd" else 1) * (1 + row["learning_rate"] / 0.05)
    return float(NOISE / 2 * scale * generator.normal())


def suggest(trial: Any) -> Row:
    """Suggest a configuration; momentum belongs to one optimizer."""
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
    """Draw sweeps and fit the model."""
    for seed in range(count):
        generator = np.random.default_rng(seed)
        study = optuna.create_study(sampler=SAMPLERS[sampler](seed))
        rows, values = [], []
        for _ in range(size):
            trial = study.ask()
            row = suggest(trial)
            rows.append(row)
            values.append(lose(row, is_skewed) + draw_noise(row, generator))
            study.tell(trial, values[-1])
        names = ["learning_rate", "optimizer", "norm", "null", "null_rate", "momentum"]
        columns = {name: [row.get(name) for row in rows] for name in names}
        yield Sweep(rows, values, fit_additive_model(columns, values))
