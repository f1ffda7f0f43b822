"""A study with random instead of trained models."""

import numpy as np
from helpers import study_attributes
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from rnn.config import TrialConfig
from rnn.data.tokenizer import train_tokenizer
from rnn.inference.saved_model import SavedModel, serialize_model
from rnn.models.factory import build_network
from search.worker.trial_artifacts import WeightStore
from studies.artifacts import open_store
from studies.attributes import OBJECTIVE_NAMES
from studies.config import StudyConfig, to_trial_config
from studies.space import GATED_PARAMS
from studies.storage.create_study import PlannedTrial, create_study
from studies.storage.open import open_storage

PROSE = np.frombuffer(b"the cat, the hat, that cat and that hat\n" * 9, np.uint8)
SPACE = {"layers": [1], "state_size": [4, 8, 16], "residual": [False, True]}
SPACE |= {name: [False] for name in GATED_PARAMS[:4]} | {"state_source": ["new"]}

VALUES = (1.5, 1.2, 1.9, 1.2, 1.4)
"""Values of the complete trials; one more is waiting."""


def make_study(url: str, keep: set[int], artifacts: str | None = None, **settings: object):
    """Create a study of six trials, and store the weights of some."""
    config = StudyConfig.model_validate({"space": SPACE, **settings})
    assert config.space is not None
    combinations = list(config.grid.combinations())
    storage = open_storage(url)
    attributes = study_attributes(config)
    create_study(
        storage,
        "made",
        OBJECTIVE_NAMES[config.objective],
        attributes,
        {n: CategoricalDistribution(tuple(v)) for n, v in config.grid.search_space.items()},
        [PlannedTrial(params) for params in combinations],
    )
    study_id = storage.get_study_id_from_name("made")
    weights = WeightStore(open_store(artifacts, url, "weights"), "made-1")
    tokenizer = train_tokenizer(config.tokenizer, PROSE)
    for number, value in enumerate(VALUES[: len(combinations)]):
        trial_id = storage.claim(study_id, "me")
        trial_config = to_trial_config(combinations[number], config)
        config_of_trial = TrialConfig(trial_config.architecture)
        network = build_network([config_of_trial], number, vocab_size=tokenizer.size)
        drawn = network.parameters.extract(0, network.parameters.values)
        scaled = {
            name: weight * (4 if name.endswith(".weight") else 1) for name, weight in drawn.items()
        }
        details = {"trial": str(number), "value": repr(value)}
        model = SavedModel(trial_config.architecture, scaled, tokenizer, "fp32", details)
        if number in keep:
            weights.write(number, serialize_model(model))
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {}, {50: value})
    storage.close()
    return weights
