"""Measure how far back networks remember, with one study for each delay.

In the task `copy:D` six symbols are recalled in their order, each 6 + D steps after it was read, so
the accuracy, above a chance of 1/8, is memory over 6 + D steps. This example is short: the study
`recall` trains longer and compares optimizers. It takes about half a minute on two cores.
"""

# %% The delay changes the held-out data, so each one is a study of its own.
from rnn_search import run

accuracy = {}
for delay in (1, 8):
    study = run(
        {
            "task": {"source": f"copy:{delay}", "items": 6},
            "space": {
                "cell": ["elman", "gru"],
                "layers": [1],
                "state_size": [32],
                "training": {"bptt_steps": [1, 16]},
            },
            "training": {
                "steps": 1000,
                "batch_size": 32,
                "log_every": 50,
                "learning_rate": 0.01,
            },
            "evaluation": {"windows": 64},
        },
        name=f"recall-{delay}",
        storage="sqlite:///examples.db",
    )
    accuracy[delay] = study.results.set_index("label")["validation_accuracy"]

# %% One row per network, one column per delay.
import pandas as pd

print(pd.DataFrame(accuracy).round(2))
