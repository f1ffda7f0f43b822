"""Train the best architectures of a study longer and several times, and compare them.

A ranking of single runs is partly luck: seeds differ as much as the leaders do. Replicates show
which differences are significant. It takes about half a minute on two cores.
"""

# %% A first study of 12 architectures.
from rnn_search import run

STORAGE = "sqlite:///examples.db"

first = run(
    {
        "space": {
            "layers": [1],
            "state_size": [16],
            "input_gate": [False],
            "state_gate": [False],
            "forget_gate": [False],
        },
        "training": {"steps": 100, "batch_size": 32, "sequence_length": 50, "log_every": 25},
    },
    name="first",
    storage=STORAGE,
)

# %% A second study derives from it: its three best architectures, four runs each, twice as long.
# Other settings are inherited from the first study.
second = run(
    {
        "refinement": {"source": "first", "top": 3, "replicates": 4},
        "training": {"steps": 200},
    },
    name="second",
    storage=STORAGE,
)

# %% Mean and standard deviation over the runs of each architecture, on held-out text.
runs = second.results.groupby("architecture")["validation_bits_per_byte"]
print(runs.agg(["mean", "std", "count"]).sort_values("mean"))

# %% The report compares them in pairs, with intervals and a correction for multiple testing. It
# is one HTML file with all figures.
print(second.report("refined.html"))
