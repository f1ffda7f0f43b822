"""Load the trained model of a trial, for the commands that use one."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from optuna.trial import TrialState

from rnn.errors import SavedModelError
from rnn.export import SavedModel, deserialize_model
from search.errors import WeightsNotFoundError
from search.worker.checkpoints import TrialFiles
from studies.artifacts import open_store
from studies.best import rank_trials
from studies.cli import artifacts_option, storage_options
from studies.config import StudyConfig, to_trial_config
from studies.loader import read_study_record
from studies.storage.open import load_study, read_storage
from studies.storage.reads import read_trials
from studies.storage.trials import StoredTrial
from studies.text import shorten

_F = TypeVar("_F", bound=Callable[..., Any])

_MAX_DIGITS = 18
"""Number of digits of a trial number, so that it fits 64 bits."""

_MAX_LISTED = 20
"""Number of trials that a message lists."""


@dataclass(frozen=True)
class LoadedModel:
    """Trained model of a trial.

    Attributes:
        model: network with its weights.
        trial: trial that trained it.
        study: name of the study.
        config: config of the study.
    """

    model: SavedModel
    trial: StoredTrial
    study: str
    config: StudyConfig


def _parse_trial(context: click.Context, option: click.Parameter, text: str) -> int | None:
    if text == "best":
        return None
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise click.BadParameter(
            f"invalid value {shorten(text)!r}: expected best or a trial number"
        )
    return int(text)


def model_options(command: _F) -> _F:
    """Add the options of :func:`load_trial_model` to a command."""
    command = artifacts_option(storage_options(command))
    return click.option(
        "--trial",
        callback=_parse_trial,
        metavar="N|best",
        default="best",
        show_default=True,
        help="Number of the trial, or the best trial whose weights are stored.",
    )(command)


def load_trial_model(
    study: str, trial: int | None, storage: str, artifacts: str | None
) -> LoadedModel:
    """Load the model of a trial.

    Args:
        study: name of the study.
        trial: number of a complete trial; None for the best trial whose weights are stored: of
            replicates, a run of the best architecture of which one has weights.
        storage: URL of the storage, which is opened read-only.
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.

    Raises:
        StorageError, StudyNotFoundError, ArtifactsError: if the storage or study is not found.
        WeightsNotFoundError: if the trial does not exist, is not complete, or has no weights.
        SavedModelError, TokenizerError: if the files are damaged.
    """
    with closing(read_storage(storage)) as opened:
        loaded = load_study(opened, study)
        record = read_study_record(loaded)
        config = record.config
        store = open_store(artifacts, storage, "weights", read_only=True)
        weights = TrialFiles(store, record.artifact_folder, "safetensors")
        trials = read_trials(opened, loaded._study_id)
    complete = {row.number: row for row in trials if row.state is TrialState.COMPLETE}
    ranking = rank_trials(trials, config, record.looks)
    ranked = [complete.pop(run.number) for each in ranking for run in each.runs]
    ranked += complete.values()  # runs after the planned look in force
    stored = weights.list_trials()
    available = [t for t in ranked if t.number in stored]
    chosen = next((t for t in available if trial is None or t.number == trial), None)
    if chosen is None:
        raise WeightsNotFoundError(_explain_missing(study, trial, trials, available, config))
    architecture = to_trial_config(chosen.params, config).architecture
    content = _read_weights(weights, chosen.number)
    if content is None:
        raise WeightsNotFoundError(_explain_missing(study, trial, trials, available, config))
    model = deserialize_model(content)
    expected = str(chosen.number), repr(chosen.value), architecture
    found = model.metadata.get("trial"), model.metadata.get("value"), model.architecture
    if found != expected:
        raise WeightsNotFoundError(
            f"the weights of trial {chosen.number} of study {study!r} belong to another run: "
            "remove them, or choose another trial"
        )
    better = [t.number for t in ranked[: ranked.index(chosen)]]
    if trial is None and better:
        click.echo(
            f"using trial {chosen.number}: better trials have no stored weights "
            f"({_list_numbers(better)})",
            err=True,
        )
    return LoadedModel(model, chosen, study, config)


def _read_weights(weights: TrialFiles, number: int) -> bytes | None:
    """Return the weights of a trial, or None."""
    try:
        return weights.read(number)
    except OSError as error:
        raise SavedModelError(
            f"the weights of trial {number} cannot be read ({error.strerror}): check --artifacts"
        ) from error


def _explain_missing(
    study: str,
    number: int | None,
    trials: Sequence[StoredTrial],
    available: Sequence[StoredTrial],
    config: StudyConfig,
) -> str:
    """Return why there are no weights, and which trials have some."""
    states = {trial.number: trial.state for trial in trials}
    if number is None:
        problem = f"study {study!r} has no trial with stored weights"
    elif number not in states:
        problem = f"trial {number} not found in study {study!r}, which has {len(trials):,} trials"
    elif states[number] is not TrialState.COMPLETE:
        state = states[number].name.lower()
        problem = f"trial {number} of study {study!r} is not complete (state {state})"
    else:
        problem = f"the weights of trial {number} of study {study!r} are not stored"
    if available:
        numbers = _list_numbers([trial.number for trial in available])
        return f"{problem}: expected best or one of the trials {numbers}"
    if config.keep_weights == 0:
        return f"{problem}: its keep_weights is 0"
    if not all(state.is_finished() for state in states.values()):
        return f"{problem}: wait until a trial is complete, or check --artifacts"
    return f"{problem}: check --artifacts"


def _list_numbers(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _MAX_LISTED} more" if len(numbers) > _MAX_LISTED else ""
    return ", ".join(map(str, numbers[:_MAX_LISTED])) + more
