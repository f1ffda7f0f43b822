"""``python -m search.export STUDY DIR``: export the model of a trial to a standalone folder."""

from studies.interrupts import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # the imports take seconds

import contextlib
import dataclasses
import shutil
from pathlib import Path

import click

from rnn.config import WHOLE_SEQUENCE
from rnn.export import SavedTask, export_files
from search.errors import USER_ERRORS, ExportError
from search.load_model import LoadedModel, load_trial_model, model_options
from studies.cli import run_command, study_argument
from studies.config import to_trial_config
from studies.files import remove_temporary_files_of, temporary_path
from studies.measure import find_measure


@click.command(
    help="Export the model of a trial, its weights and its tokenizer or task to the folder DIR, "
    "which depends on PyTorch only; that of a task other than text on NumPy as well."
)
@study_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@model_options
def export(
    study: str,
    directory: Path,
    trial: int | None,
    storage: str,
    artifacts: str | None,
    debug: bool,
) -> int:
    """Export a model."""
    export_trial(study, directory, trial, storage, artifacts)
    click.echo(directory)
    return 0


def export_trial(
    study: str, directory: Path, trial: int | None, storage: str, artifacts: str | None
) -> None:
    """Export the model of a trial to a standalone folder.

    Args:
        study: name of the study.
        directory: path of the folder, which must be empty or not exist.
        trial: number of the trial; None for the best whose weights are stored.
        storage: URL of the storage.
        artifacts: location of the artifacts.

    Raises:
        ExportError: if the path is taken or cannot be written.
        StudiesError, WeightsNotFoundError, SavedModelError, TokenizerError: see
            :func:`search.load_model.load_trial_model`.
    """
    with contextlib.suppress(OSError):  # reported when the folder is written
        _check_is_free(directory)
    loaded = load_trial_model(study, trial, storage, artifacts)
    trial_config = to_trial_config(loaded.trial.params, loaded.config)
    metadata = _describe(loaded, trial_config.bptt_steps)
    model = dataclasses.replace(loaded.model, metadata=metadata)
    write_folder(directory, export_files(model, trial_config.bptt_steps))


def write_folder(directory: Path, files: dict[str, bytes]) -> None:
    """Write a folder to a temporary path and rename it when it is complete.

    Args:
        directory: path of the folder, which must be empty or not exist.
        files: contents of the files by name.

    Raises:
        ExportError: if the path is taken or cannot be written.
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
        raise ExportError(f"cannot write {directory}: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_is_free(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ExportError(f"{directory} exists already: expected a new or an empty folder")


def _describe(loaded: LoadedModel, bptt_steps: int) -> dict[str, str]:
    """Return what the exported ``README.md`` lists about the model."""
    config, trial, task = loaded.config, loaded.trial, loaded.model.task
    measure = find_measure(config)
    metadata = {"study": loaded.study, "trial": str(trial.number)}
    if trial.value is not None:
        metadata[measure.name] = measure.format(trial.value, measure.unit)
    bits_per_byte = trial.attributes.get("validation_bits_per_byte")
    if bits_per_byte is not None:
        metadata["validation"] = f"{bits_per_byte:.4f} bits per byte"
    if isinstance(task, SavedTask):
        metrics = trial.attributes.get("metrics", {}).items()
        metadata |= {f"validation {name}": f"{value:.5g}" for name, value in metrics}
        metadata["task"] = task.name
    else:
        metadata |= {"corpus": Path(config.corpus).name, "tokenizer": config.tokenizer}
    return metadata | {
        "bptt_steps": "sequence" if bptt_steps == WHOLE_SEQUENCE else str(bptt_steps),
        "training precision": loaded.model.precision,
    }


if __name__ == "__main__":
    run_command(export, USER_ERRORS)
