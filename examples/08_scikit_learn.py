"""Search over a model of scikit-learn: a training loop of one's own needs no PyTorch.

    pip install scikit-learn

Run it in several terminals: each configuration is trained once. It takes less than a minute.
"""

# %% A study: any parameters in the space, and what its loop logs. Runs differ in the weights that a
# network starts with and in the order of its data, so each configuration has three.
import rnn_search

study = rnn_search.create_study(
    {
        "question": "Which settings of an MLP matter on handwritten digits?",
        "loop": {
            "metric": "accuracy",
            "direction": "maximize",
            "steps": 20,
            "log_every": 1,
        },
        "space": {
            "activation": ["tanh", "relu"],
            "hidden_layer_sizes": [16, 64],
            "learning_rate_init": [0.001, 0.01],
            "replicates": 3,
        },
    },
    name="scikit-learn",
    storage="sqlite:///examples.db",
    load_if_exists=True,
)

# %% The loop: an epoch is a step. `save` takes bytes, such as a pickled model.
import pickle

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

inputs, labels = load_digits(return_X_y=True)
train, test, train_labels, test_labels = train_test_split(inputs / 16, labels, random_state=0)

for trial in study.claim():
    with trial:
        epoch, saved = trial.resume(default=(0, None))
        if saved is None:
            model = MLPClassifier(**trial.params, random_state=trial.seed)
        else:
            model = pickle.loads(saved)
        while epoch < 20:
            model.partial_fit(train, train_labels, classes=np.arange(10))
            epoch += 1
            accuracy = model.score(test, test_labels)
            trial.log(epoch, accuracy=accuracy, training_loss=model.loss_)
            trial.save(epoch, pickle.dumps(model))
        trial.finish(accuracy)

# %% What mattered, and a report.
print(study.effects())
print(study.report("scikit-learn.html"))
