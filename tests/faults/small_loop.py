"""A training loop that fault tests disturb: each step depends on all steps before it."""

import json
import math
import os
import time
from pathlib import Path

import rnn_search

STEPS = 400
DELAY = float(os.environ.get("LOOP_DELAY", "0.003"))
"""Seconds that each step waits for what disturbs it."""

SETTINGS = {
    "loop": {"metric": "loss", "steps": STEPS, "log_every": 10},
    "space": {"width": [1, 2, 3], "act": ["relu", "tanh"], "replicates": 2},
}


def train(trial: rnn_search.Trial) -> float:
    """Follow a logistic map, whose differences grow, from the trial's seed; return a loss."""
    start = {"x": (trial.seed % 1000 + 0.5) / 1000, "total": 0.0}
    step, state = trial.resume(default=(0, json.dumps(start)))
    state = json.loads(state)
    while step < STEPS:
        time.sleep(DELAY)
        step += 1
        state["x"] *= 3.9 * (1 - state["x"])
        state["total"] += state["x"]
        loss = 1 / trial.params["width"] + math.exp(-step / 50) + state["x"] / 1000
        trial.log(step, loss=loss, total=state["total"])
        trial.save(step, json.dumps(state).encode())
    return loss


if __name__ == "__main__":
    study = rnn_search.create_study(SETTINGS, name=Path(__file__).stem, load_if_exists=True)
    for trial in study.claim():
        with trial:
            trial.finish(train(trial))
