"""Search a cell of your own: any nn.Module in a file.

A cell maps an input and a state to an output and a new state. The keyword options of its
constructor are parameters that can be searched. It takes about half a minute on two cores.
"""

# %% The cell: minGRU (Feng et al., 2024). For yours, name its file, relative to the
# working directory: "my_cells.py:MyCell".
import tempfile
from pathlib import Path

import rnn_search

FILE = Path(rnn_search.__file__).parents[1] / "examples" / "cells" / "min_gru.py"
print(FILE.read_text())

# %% Search it next to a GRU. Before the first trial the cell is checked: shapes, gradients,
# determinism, checkpoints, export. `candidate_tanh` is an option of its constructor.
study = rnn_search.run(
    {
        "space": [
            {
                "cell": [f"{FILE}:MinGRU"],
                "candidate_tanh": [False, True],
                "layers": [1, 2],
                "state_size": [16],
            },
            {"cell": ["gru"], "layers": [1, 2], "state_size": [16]},
        ],
        "training": {"steps": 100, "batch_size": 32, "sequence_length": 50, "log_every": 25},
    },
    name="own-cell",
    storage="sqlite:///examples.db",
)
print(study.results[["label", "value", "parameter_count"]])

# %% The effect of its option, and of the number of layers.
print(study.effects())

# %% Its trained network as a module, and as a folder that needs PyTorch, NumPy and this cell.
best = next(study.trial(number) for number, row in study.results.iterrows() if row.cell == "MinGRU")
print(best.network())
print(best.export(Path(tempfile.mkdtemp()) / "min-gru"))
