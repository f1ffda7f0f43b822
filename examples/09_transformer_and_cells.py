"""Compare a Transformer with a training loop of its own with the built-in cells, in one report.

All read the same kind of sequences, `mqar` with four pairs in 32 tokens, and train 300 updates of
64 sequences. Either study is shared by any number of processes. It takes about a minute on two
cores.
"""

# %% The loop: a model, its data, and the function `train(trial)`.
import runpy
from pathlib import Path

import rnn_search

FILE = Path(rnn_search.__file__).parents[1] / "examples" / "loops" / "transformer.py"
print(FILE.read_text())

# %% Train the Transformers by two processes. `python examples/loops/transformer.py` in several
# terminals does the same.
STORAGE = "sqlite:///examples.db"
settings = runpy.run_path(str(FILE))["SETTINGS"]
transformers = rnn_search.run(settings, name="transformer", storage=STORAGE, workers=2)
print(transformers.effects())

# %% Train the built-in cells on the same task.
cells = rnn_search.run(
    {
        "task": {"source": "mqar", "pairs": 4, "length": 32, "vocabulary": 32},
        "space": {
            "cell": ["gru", "lstm"],
            "layers": [2],
            "state_size": [64],
            "replicates": 2,
            "training": {"bptt_steps": ["sequence"]},
        },
        "training": {"updates": 300, "batch_size": 64, "log_every": 320, "learning_rate": 0.003},
        "evaluation": {"windows": 512},
    },
    name="recall-cells",
    storage=STORAGE,
    workers=2,
)
print(cells.results[["label", "value", "validation_accuracy"]])

# %% Both in one report.
print(transformers.report("transformer-and-cells.html", others=["recall-cells"]))
