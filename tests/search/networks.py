"""A study whose networks are made, not trained, and the weights that are kept of them."""

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from rnn.member import Member
from rnn.network import initial_weights
from rnn.vocabulary import train_vocabulary
from rnn.weights import TrainedNetwork, write_weights
from search.space import member_of
from search.weights import BestWeights
from studies.definition import Definition
from studies.opening import open_storage
from studies.planning import PlannedPoint, create_study
from studies.records import CHECKPOINTS, DEFINITION, METRICS
from studies.space import PARAMETERS
from studies.stores import open_store

PROSE = np.frombuffer(b"the cat, the hat, that cat and that hat\n" * 9, np.uint8)
SPACE = {"layers": [1], "state_size": [4, 8, 16], "residual": [False, True]}
SPACE |= {name: [False] for name in PARAMETERS[:4]} | {"state_source": ["new"]}

VALUES = (1.5, 1.2, 1.9, 1.2, 1.4)
"""Of the complete trials; one more is waiting."""


def make_networks(url: str, keep: set[int], artifacts: str | None = None, **settings: object):
    """A study of six points, and the weights of some."""
    definition = Definition.model_validate({"space": SPACE, **settings})
    assert definition.space is not None
    points = list(definition.space.points())
    storage = open_storage(url)
    attributes = {DEFINITION: definition.model_dump(mode="json"), CHECKPOINTS: "made-1"}
    create_study(
        storage,
        "made",
        METRICS[definition.objective],
        attributes,
        {n: CategoricalDistribution(tuple(definition.space.values(n))) for n in PARAMETERS},
        [PlannedPoint(point) for point in points],
    )
    study_id = storage.get_study_id_from_name("made")
    weights = BestWeights(open_store(artifacts, url, "weights"), "made-1")
    vocabulary = train_vocabulary(definition.vocabulary, PROSE)
    for number, value in enumerate(VALUES):
        trial_id = storage.claim(study_id, "me")
        member = member_of(points[number], definition)
        drawn = initial_weights(Member(member.architecture), number, vocabulary.size)
        own = {name: (4 * weight.float(), bias.float()) for name, (weight, bias) in drawn.items()}
        details = {"trial": str(number), "value": repr(value)}
        network = TrainedNetwork(member.architecture, own, vocabulary, "fp32", details)
        if number in keep:
            weights.write(number, write_weights(network))
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {}, {50: value})
    storage.close()
    return weights
