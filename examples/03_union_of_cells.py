"""Compare cells that have different parameters in one study.

The trials of a study are a union of grids. A parameter that a cell does not have is absent from
its trials. It takes about half a minute on two cores.
"""

# %% `space` is a list of grids: the gated cell with its switches, and two baselines, which have
# none. Trials that are in several grids are trained once.
from rnn_search import run

study = run(
    {
        "space": [
            {
                "cell": ["gated"],
                "layers": [1],
                "state_size": [16],
                "input_gate": [False],
                "output_gate": [False],
                "state_gate": [False],
                "state_source": ["new"],
            },
            {"cell": ["gru", "lstm"], "layers": [1], "state_size": [16, 24]},
        ],
        "training": {"steps": 100, "batch_size": 32, "sequence_length": 50, "log_every": 25},
    },
    name="union",
    storage="sqlite:///examples.db",
)

# %% All of them in one table. Switch columns are NaN for the baselines.
print(study.results[["value", "cell", "residual", "forget_gate"]])

# %% The best network of each cell.
print(study.results.groupby("cell")["value"].min().sort_values())

# %% The effects: switches among the gated networks, cells at the best of their switches.
print(study.effects())
