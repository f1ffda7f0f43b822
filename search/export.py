"""``python -m search.export STUDY DIR``: a trial's network as a folder that stands alone."""

import contextlib
import dataclasses
import shutil
from pathlib import Path
from uuid import uuid4

import click

from rnn.inference.export import export_files
from search.errors import USER_ERRORS, ExportError
from search.load_model import LoadedModel, load_trial_model, network_options
from search.parameters import to_trial_config
from studies.attributes import OBJECTIVE_NAMES
from studies.cli import run_command, study_argument


@click.command(
    help="Write a network of a study, its weights and its vocabulary to the folder DIR, which then "
    "needs PyTorch and nothing else."
)
@study_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@network_options
def export(
    study: str,
    directory: Path,
    trial: int | None,
    storage: str,
    artifacts: str | None,
    debug: bool,
) -> int:
    """Write a folder."""
    with contextlib.suppress(OSError):  # which is told when it is written
        _require_free(directory)
    kept = load_trial_model(study, trial, storage, artifacts)
    network = dataclasses.replace(kept.network, metadata=_details(kept))
    write_folder(directory, export_files(network, _window(kept)))
    click.echo(directory)
    return 0


def write_folder(directory: Path, files: dict[str, bytes]) -> None:
    """Write a folder beside its place, and put it there when all is in it.

    Args:
        directory: which is not there, or empty.
        files: the content of each by its name.

    Raises:
        ExportError: if something is there, or it cannot be made.
    """
    beside = None
    try:
        directory = directory.resolve()
        _require_free(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        beside = directory.with_name(f"{directory.name}.{uuid4().hex}.part")
        beside.mkdir()
        for name, content in files.items():
            (beside / name).write_bytes(content)
        if directory.is_dir():
            directory.rmdir()
        beside.rename(directory)
    except OSError as error:
        raise ExportError(
            f"{directory} cannot be made ({error.strerror}); allowed: a place that can be written "
            "to; name another"
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _require_free(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ExportError(
            f"{directory} is there already; allowed: a folder that is empty, or not there yet; "
            "name another"
        )


def _details(kept: LoadedModel) -> dict[str, str]:
    config, trial = kept.config, kept.trial
    details = {
        "study": kept.study,
        "trial": str(trial.number),
        OBJECTIVE_NAMES[config.objective]: f"{trial.value:.4f} nats a {config.token_name}",
    }
    bits = trial.user_attrs.get("validation_bits_per_byte")
    if bits is not None:
        details["validation"] = f"{bits:.4f} bits per character"
    return details | {
        "corpus": Path(config.corpus).name,
        "tokenizer": config.tokenizer,
        "steps that a gradient goes back through": str(_window(kept)),
        "precision of training": kept.network.precision,
    }


def _window(kept: LoadedModel) -> int:
    return to_trial_config(kept.trial.params, kept.config).bptt_steps


if __name__ == "__main__":
    run_command(export, USER_ERRORS)
