"""A point of the grid ↔ Optuna's categorical parameters ↔ an architecture."""
# TODO-MERGE What the workers and readers of a study take from its attributes.

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from rnn.config import STATE_SOURCES, BaselineConfig, GatedConfig, TrialConfig
from rnn.data.corpus import Corpus
from rnn.data.tokenizer import TokenCorpus, load_tokenizer
from studies.attributes import ARTIFACT_FOLDER
from studies.config import StudyConfig
from studies.loader import stored_tokenizer
from studies.space import (
    BASELINE_PARAMS,
    BPTT_STEPS,
    PARAM_ORDER,
    REPLICATE,
    Params,
    ParamValue,
    Space,
)

SearchSpace = dict[str, list[ParamValue]]
"""Each parameter's values, in the order of Optuna's choices."""


def search_space(space: Space) -> SearchSpace:
    """Return the values of a grid's parameters, in the definition's order."""
    return {name: list(space.values(name)) for name in space.parameters}


def observed_search_space(points: Iterable[Params]) -> SearchSpace:
    """Return the values that occur in points: switches and numbers sorted, sources as named."""
    values: dict[str, set[ParamValue]] = {}
    for point in points:
        for name, value in point.items():
            values.setdefault(name, set()).add(value)
    names = [name for name in PARAM_ORDER if name in values]
    return {name: sorted(values[name], key=_order) for name in names}


def distributions(space: Mapping[str, Sequence[ParamValue]]) -> dict[str, CategoricalDistribution]:
    """Return the parameters as Optuna's distributions."""
    return {name: CategoricalDistribution(tuple(values)) for name, values in space.items()}


def to_trial_config(params: Mapping[str, Any], config: StudyConfig) -> TrialConfig:
    """Return the network that a trial's parameters stand for.

    Args:
        params: a value for each searched parameter, and the replicate's number if there are any.
        config: of the study, for what is not searched.
    """
    architecture = (
        BaselineConfig(*(params[name] for name in BASELINE_PARAMS))
        if "cell" in params
        else GatedConfig.of(params, config.gate_inputs)
    )
    window = params.get(BPTT_STEPS, config.training.bptt_steps)
    return TrialConfig(architecture, params.get(REPLICATE, 0), window)


def _order(value: ParamValue) -> tuple[int, ParamValue]:
    return (0, STATE_SOURCES.index(value)) if value in STATE_SOURCES else (1, value)


def artifact_folder(study: optuna.Study) -> str:
    """Return the name of the folder that a study's files lie in, and no other's."""
    return str(study.user_attrs.get(ARTIFACT_FOLDER, f"study-{study._study_id}"))


def token_corpus(study: optuna.Study, corpus: Corpus) -> TokenCorpus:
    """Return a study's text in the symbols that it was made with, whoever reads it now."""
    record = stored_tokenizer(study)  # without one, it was made for bytes alone
    return TokenCorpus(corpus, load_tokenizer(record.serialized if record else None))
