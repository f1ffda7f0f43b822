"""Measure how far back networks remember, with one study for each distance.

In the text `recall:D` only the byte exactly D steps before is informative, so the accuracy at these
positions, above a chance of 1/8, is memory over D steps. This example is short: the study `recall`
trains longer and compares optimizers. It takes about half a minute on two cores.
"""

# %% The distance is a setting, so each one is a study of its own.
from rnn_search import run

accuracy = {}
for distance in (1, 2, 4):
    study = run(
        {
            "corpus": f"recall:{distance}",
            "space": {
                "cell": ["elman", "lstm"],
                "layers": [1],
                "state_size": [32],
                "bptt_steps": [1, 4],
            },
            "training": {
                "steps": 300,
                "batch_size": 32,
                "sequence_length": 50,
                "log_every": 50,
                "learning_rate": 0.01,
            },
            "evaluation": {"windows": 64, "window_length": 50},
        },
        name=f"recall-{distance}",
        storage="sqlite:///examples.db",
    )
    accuracy[distance] = study.results.set_index("label")["recall_accuracy"]

# %% One row per network, one column per distance.
import pandas as pd

print(pd.DataFrame(accuracy).round(2))
