"""A trial's trained network, for the commands that do something with one."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from optuna.trial import FrozenTrial, TrialState

from rnn.inference.saved_model import SavedModel, deserialize_model
from search.errors import WeightsNotFoundError
from search.parameters import artifact_folder
from search.refinement import rank_trials
from search.worker.trial_artifacts import WeightStore
from studies.artifacts import open_store
from studies.cli import artifacts_option, storage_options
from studies.config import StudyConfig
from studies.loader import stored_config
from studies.storage.open import load_study, read_storage

_F = TypeVar("_F", bound=Callable[..., Any])

_DIGITS = 18
"""Of a trial's number, at most."""

_SHOWN = 20
"""How many trials a line of refusal lists."""


@dataclass(frozen=True)
class LoadedModel:
    """A trained network, and whose it is.

    Attributes:
        network: with its weights.
        trial: that it was trained in.
        study: the name of the study.
        config: of the study.
    """

    network: SavedModel
    trial: FrozenTrial
    study: str
    config: StudyConfig


def _number(context: click.Context, option: click.Parameter, text: str) -> int | None:
    if text == "best":
        return None
    if not text.isdecimal() or len(text) > _DIGITS:
        raise click.BadParameter(
            f"{text!r} is no trial; allowed: best, or a trial's number; correct it"
        )
    return int(text)


def network_options(command: _F) -> _F:
    """Give a command the options of :func:`load_trial_model`."""
    command = artifacts_option(storage_options(command))
    return click.option(
        "--trial",
        callback=_number,
        metavar="N|best",
        default="best",
        show_default=True,
        help="Whose network; best: the one of least loss whose weights are kept.",
    )(command)


def load_trial_model(
    study: str, trial: int | None, storage: str, artifacts: str | None
) -> LoadedModel:
    """Read the network of a trial.

    Args:
        study: its name.
        trial: number of a complete trial; None for the best of those whose weights are kept.
        storage: the storage's URL; nothing is changed there.
        artifacts: where files lie, as :func:`studies.artifacts.open_store` takes it.

    Raises:
        StorageError, StudyNotFound, ArtifactsError: if there is no such place or study.
        WeightsNotFoundError: if the trial is not there, not complete, or its weights are not kept.
        WeightsError, VocabularyError: if they are damaged.
    """
    with closing(read_storage(storage)) as opened:
        loaded = load_study(opened, study)
        config = stored_config(loaded)
        weights = WeightStore(
            open_store(artifacts, storage, "weights", read_only=True), artifact_folder(loaded)
        )
        trials, ranked = loaded.get_trials(deepcopy=False), rank_trials(loaded)
    kept = weights.kept()
    best = [t for t in ranked if t.number in kept]
    wanted = [t for t in best if trial is None or t.number == trial][:1]
    content = weights.read(wanted[0].number) if wanted else None
    if content is None:
        raise WeightsNotFoundError(_refusal(study, trial, trials, best, config))
    network, chosen = deserialize_model(content), wanted[0]
    if (network.metadata.get("trial"), network.metadata.get("value")) != _told_by(chosen):
        raise WeightsNotFoundError(
            f"the weights that lie under trial {chosen.number} of study {study!r} are of another "
            "run; allowed: those that the trial was recorded with; remove them, or name another"
        )
    ahead = [t.number for t in ranked[: ranked.index(chosen)]]
    if trial is None and ahead:
        named = ", ".join(map(str, ahead[:_SHOWN]))
        click.echo(
            f"trial {chosen.number}, for weights of better ones ({named}) are not there", err=True
        )
    return LoadedModel(network, chosen, study, config)


def _told_by(trial: FrozenTrial) -> tuple[str, str]:
    """Return how a trial's weights say whose they are."""
    return str(trial.number), repr(trial.value)


def _refusal(
    study: str,
    number: int | None,
    trials: list[FrozenTrial],
    best: list[FrozenTrial],
    config: StudyConfig,
) -> str:
    if number is None:
        found = f"study {study!r} has no trial whose weights are kept"
    elif number >= len(trials):
        found = f"trial {number} is not in study {study!r}, which has {len(trials):,}"
    elif trials[number].state != TrialState.COMPLETE:
        state = trials[number].state
        words = "without a loss" if state is TrialState.FAIL else state.name.lower()
        found = f"trial {number} of study {study!r} is {words}"
    else:
        found = f"the weights of trial {number} of study {study!r} are not kept"
    if best:
        named = ", ".join(str(trial.number) for trial in best[:_SHOWN])
        more = f" and {len(best) - _SHOWN} more" if len(best) > _SHOWN else ""
        return f"{found}; allowed: best, or one of the trials {named}{more}; name one of them"
    if config.keep_weights == 0:
        return f"{found}; its keep_weights is 0; make a study with keep_weights of 1 or more"
    if not all(trial.state.is_finished() for trial in trials):
        return f"{found}; none are there; wait until a trial is complete, or check --artifacts"
    return f"{found}; none are there, and all trials have ended; check --artifacts"
