"""Search a training setting, and judge each architecture at its own best value.

An architecture that needs another learning rate than the rest looks bad at theirs. Here each one
is trained at three rates, which are a nuisance: a parameter to tune, not to draw conclusions from.
It takes about half a minute on two cores.
"""

# %% A study may be given as a dict, with the keys of a study file. Any setting of `training` can be
# listed in `space.training`, except `steps` and `log_every`.
from rnn_search import run

study = run(
    {
        "space": {
            "layers": [1],
            "state_size": [16],
            "state_gate": [False],
            "input_gate": [False],
            "state_source": ["new"],  # the other switches take all of their values
            "training": {"learning_rate": [0.001, 0.003, 0.01]},
        },
        "nuisance": ["learning_rate"],
        "training": {"steps": 100, "batch_size": 32, "sequence_length": 50, "log_every": 25},
        "objective": "validation",
    },
    name="learning-rates",
    storage="sqlite:///examples.db",
)

# %% Every architecture at every rate.
table = study.results.pivot_table(
    "value", ["forget_gate", "output_gate", "residual"], "learning_rate"
)
print(table)

# %% The best rate of each. If it is the first or the last of the list, try rates beyond it.
print(table.idxmin(axis="columns"))

# %% The effects of the switches, each architecture at its own best rate.
print(study.effects().table)
