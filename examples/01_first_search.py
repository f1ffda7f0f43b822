"""Run a first search and see which design choices matter.

Run this file as a script, ``python examples/01_first_search.py``, or cell by cell in an editor or
a notebook that knows ``# %%``. It takes about half a minute on two cores.
"""

# %% Train 40 combinations of switches at two learning rates each, 80 networks. `quick` is a study
# file of the project; a path such as "my-study.toml" works as well. Two worker processes share the
# trials.
from rnn_search import load, run

study = run(
    "quick",
    workers=2,
    storage="sqlite:///examples.db",  # a file in the working directory
    overrides={  # `quick` has an input gate as well, four rates and 1,500 steps
        "space.input_gate": [False],
        "space.training.learning_rate": [0.02, 0.06],
        "training.steps": 100,
    },
)

# %% A row for each trial, the best first. Other columns have its parameters and all measurements.
print(study.results[["label", "value"]].head())

# %% The answer, and the effect of each switch: networks that differ in it alone, each at its best
# learning rate, are compared in pairs. A negative effect lowers the loss.
print(study.effects())

# %% The same as a figure. A notebook displays it as the last expression of a cell.
figure = study.effects().plot()
figure.write_html("effects.html")
figure

# %% The best network is an ordinary module of PyTorch, with its trained weights.
network = study.best.network()
print(study.best.label, sum(weight.numel() for weight in network.parameters()), "weights")
print(study.best.sample("The ", length=200))

# %% The study is stored. Later it is opened by its name; `run` would resume it if it were not
# finished.
study = load("quick", storage="sqlite:///examples.db")
print(study.status.counts)

# %% The networks that no smaller one beats.
print(study.pareto())
