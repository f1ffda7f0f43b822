"""Load the trained model of a trial, or export it to a folder."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import click
from optuna.trial import TrialState
from pydantic import Field

from rnn.config import WHOLE_SEQUENCE
from rnn.errors import UserError
from rnn.export import SavedModel, deserialize_model, export_files, generate
from search.derive import find_trial
from studies.artifacts import ArtifactFolders, TrialFiles
from studies.atomic_files import remove_temporary_files_of, temporary_path
from studies.best import rank_trials, split_by_task
from studies.config import StudyConfig
from studies.measure import find_measure
from studies.messages import format_trials, to_printable
from studies.option_models import Options, option
from studies.space import TASK
from studies.storage.open import load_study, read_storage, read_study_record
from studies.storage.reads import read_trials
from studies.storage.trials import StoredTrial
from studies.trial_params import to_trial_config


class SampleOptions(Options):
    """How text is generated."""

    prompt: str = option("", "Text to continue; a line feed if empty.", metavar="TEXT")
    length: Annotated[int, Field(ge=1)] = option(500, "Number of tokens to generate.")
    temperature: Annotated[float, Field(ge=0)] = option(
        0.8, "Sampling temperature; 0 always takes the most likely token.", type=float
    )
    top_k: Annotated[int, Field(ge=1)] | None = option(
        None, "Sample from the K most likely tokens only.", metavar="K"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = option(0, "Seed of the sampling.")

    def generate(self, model: SavedModel) -> str:
        """Return the prompt and the text with which a model continues it.

        Raises:
            TaskError: if the model was trained on another task than text.
        """
        start = os.fsencode(self.prompt)
        text = generate(model, start, self.length, self.temperature, self.top_k, self.seed)
        return to_printable(start + text)


@dataclass(frozen=True)
class LoadedModel:
    """Trained model of a trial, and the study of the trial."""

    model: SavedModel
    trial: StoredTrial
    study: str
    config: StudyConfig


def load_trial_model(
    study: str, trial: int | None, storage: str, artifacts: str | None, task: str = ""
) -> LoadedModel:
    """Load the model of a trial; the storage is opened read-only.

    Without a number it is the best trial whose weights are stored: of replicates, a run of the best
    architecture of which one has weights; of several tasks, the best in the named one.

    Raises:
        StorageError, StudyNotFoundError: if the storage or study is not found.
        UserError: if the trial does not exist, is not complete, or has no weights, or if the files
            are damaged.
    """
    with closing(read_storage(storage)) as opened:
        loaded = load_study(opened, study)
        record = read_study_record(loaded)
        config = record.config
        folders = ArtifactFolders(artifacts, storage, read_only=True)
        weights = folders.trial_files(record.artifact_folder, "safetensors")
        trials = read_trials(opened, loaded._study_id)
    if config.task_names and trial is not None and not task:
        task = str(find_trial(trials, trial, study).params[TASK])
    of_task = split_by_task(trials, config)[config.choose_task(study, task)]
    complete = {row.number: row for row in of_task if row.state is TrialState.COMPLETE}
    ranking = rank_trials(of_task, config.at_task(task))
    ranked = [complete[run.number] for architecture in ranking for run in architecture.runs]
    stored = weights.list_trials()
    available = [run for run in ranked if run.number in stored]
    chosen = next((run for run in available if trial in (None, run.number)), None)
    if chosen is None:
        raise UserError(_explain_missing(study, trial, trials, available, config))
    model = _read_model(weights, study, chosen, config)
    better = [run.number for run in ranked[: ranked.index(chosen)]]
    if trial is None and better:
        click.echo(
            f"using trial {chosen.number}: better trials have no stored weights "
            f"({format_trials(better)})",
            err=True,
        )
    return LoadedModel(model, chosen, study, config)


def _read_model(
    weights: TrialFiles, study: str, trial: StoredTrial, config: StudyConfig
) -> SavedModel:
    """Read the weights of a trial; require that they are those of its one recorded result."""
    try:
        content = weights.read(trial.number)
    except OSError as error:
        raise UserError(
            f"the weights of trial {trial.number} cannot be read ({error.strerror}): check "
            "--artifacts"
        ) from error
    if content is None:
        raise UserError(f"the weights of trial {trial.number} were removed meanwhile: run again")
    model = deserialize_model(content)
    architecture = to_trial_config(trial.params, config).architecture
    expected = str(trial.number), repr(trial.value), architecture
    found = model.metadata.get("trial"), model.metadata.get("value"), model.architecture
    if found != expected:
        raise UserError(
            f"the weights of trial {trial.number} of study {study!r} belong to another run: "
            "remove them, or choose another trial"
        )
    return model


def _explain_missing(
    study: str,
    number: int | None,
    trials: Sequence[StoredTrial],
    available: Sequence[StoredTrial],
    config: StudyConfig,
) -> str:
    problem = f"study {study!r} has no trial with stored weights"
    if number is not None:
        state = find_trial(trials, number, study).state.name.lower()
        problem = f"trial {number} of study {study!r} ({state}) has no stored weights"
    if available:
        numbers = format_trials([trial.number for trial in available])
        return f"{problem}: expected best or {numbers}"
    hint = "its keep_weights is 0" if config.keep_weights == 0 else "check --artifacts"
    if config.loop is not None:
        hint = "the trials of a loop of your own are no networks of this program"
    return f"{problem}: {hint}"


# ------------------------------------------------------------------ exports


def export_trial(
    study: str,
    directory: Path,
    trial: int | None,
    storage: str,
    artifacts: str | None,
    task: str = "",
) -> None:
    """Export the model of a trial, as :func:`load_trial_model` loads it, to a standalone folder.

    Raises:
        UserError: if the path is taken or cannot be written.
        UserError: if it cannot be loaded.
    """
    with contextlib.suppress(OSError):  # reported when the folder is written
        _check_is_free(directory)
    loaded = load_trial_model(study, trial, storage, artifacts, task)
    trial_config = to_trial_config(loaded.trial.params, loaded.config)
    metadata = _describe(loaded, trial_config.bptt_steps)
    model = dataclasses.replace(loaded.model, metadata=metadata)
    write_folder(directory, export_files(model, trial_config.bptt_steps))


def write_folder(directory: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files by name to a temporary path and rename it when it is complete.

    Raises:
        UserError: if the path is taken or cannot be written.
    """
    temporary = None
    try:
        directory = directory.resolve()
        _check_is_free(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        remove_temporary_files_of(directory)
        temporary = temporary_path(directory)
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        if directory.is_dir():
            directory.rmdir()
        temporary.rename(directory)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_is_free(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} exists already: expected a new or an empty folder")


def _describe(loaded: LoadedModel, bptt_steps: int) -> dict[str, str]:
    """Return what the exported ``README.md`` lists about the model."""
    trial = loaded.trial
    task = loaded.model.task
    config = loaded.config.of_trial(trial.params)
    measure = find_measure(config)
    metadata = {"study": loaded.study, "trial": str(trial.number)}
    if trial.value is not None:
        metadata[measure.name] = measure.format(trial.value)
    bits_per_byte = trial.attributes.get("validation_bits_per_byte")
    if bits_per_byte is not None:
        metadata["validation"] = f"{bits_per_byte:.4f} bits per byte"
    if task.merges is None:
        metrics = trial.attributes.get("metrics", {}).items()
        metadata |= {f"validation {name}": f"{value:.5g}" for name, value in metrics}
        metadata["task"] = task.name
    else:
        record = config.task_record
        assert record is not None
        metadata |= {"corpus": record.data_name, "tokenizer": str(record.values["tokenizer"])}
    return metadata | {
        "bptt_steps": "sequence" if bptt_steps == WHOLE_SEQUENCE else str(bptt_steps),
        "training precision": loaded.model.precision,
    }
