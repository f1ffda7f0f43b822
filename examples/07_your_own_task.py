"""Search on a task of your own: one class that returns inputs, targets and a mask.

The task: two sensors fire once in each sequence; which one was first? It takes about half a
minute on two cores.
"""

# %% The task. For yours, name its file, relative to the working directory: "my_task.py:MyTask".
from pathlib import Path

import rnn_search

FILE = Path(rnn_search.__file__).parents[1] / "examples" / "tasks" / "pulse_order.py"
print(FILE.read_text())

# %% Search on it. Before the first trial the task is checked, and its floors are measured: what a
# constant and a small network reach, with and without memory.
study = rnn_search.run(
    {
        "task": {"source": f"{FILE}:PulseOrder"},
        "space": {
            "cell": ["elman", "gru"],
            "layers": [1],
            "state_size": [8],
            "training": {"bptt_steps": [10, "sequence"]},
        },
        "training": {
            "update_every": 10,
            "steps": 900,
            "log_every": 300,
            "batch_size": 32,
            "learning_rate": 0.01,
        },
    },
    name="own-task",
    storage="sqlite:///examples.db",
)
print(study.results[["label", "value", "validation_accuracy", "updates"]])

# %% The effects, and the best network's classes for three new sequences.
import numpy as np

print(study.effects())
sequences = np.zeros((3, 30, 2))
sequences[:, 4, 0] = sequences[:, 20, 1] = 1
print(study.best.predict(sequences)[:, -1])  # the probabilities at the last step
