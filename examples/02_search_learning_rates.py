"""Search a training setting, and judge each architecture at its own best value.

A single learning rate penalises architectures that need a different one. Here each one is trained
at three rates. The rate is a nuisance parameter: tuned for each architecture, not studied. It takes
about half a minute on two cores.
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
            "training": {"learning_rate": [0.01, 0.03, 0.1]},
        },
        "nuisance": ["learning_rate"],
        "training": {"steps": 100, "batch_size": 32, "sequence_length": 50, "log_every": 25},
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

# %% The effects of the switches, each architecture at its own best rate. Four pairs each are too
# few for significance; more sizes give more pairs.
print(study.effects())
