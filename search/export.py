"""``python -m search.export STUDY DIR``: a trial's network as a folder that stands alone."""

import contextlib
import dataclasses
import shutil
from pathlib import Path
from uuid import uuid4

import click

from rnn.export import exported
from search.errors import BAD_INPUT, ExportRefused
from search.kept_network import Kept, find_network, network_options
from search.space import member_of
from studies.command_line import run_command, study_argument
from studies.records import METRICS


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
    kept = find_network(study, trial, storage, artifacts)
    network = dataclasses.replace(kept.network, details=_details(kept))
    write_folder(directory, exported(network, _window(kept)))
    click.echo(directory)
    return 0


def write_folder(directory: Path, files: dict[str, bytes]) -> None:
    """Write a folder beside its place, and put it there when all is in it.

    Args:
        directory: which is not there, or empty.
        files: the content of each by its name.

    Raises:
        ExportRefused: if something is there, or it cannot be made.
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
        raise ExportRefused(
            f"{directory} cannot be made ({error.strerror}); allowed: a place that can be written "
            "to; name another"
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _require_free(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ExportRefused(
            f"{directory} is there already; allowed: a folder that is empty, or not there yet; "
            "name another"
        )


def _details(kept: Kept) -> dict[str, str]:
    definition, trial = kept.definition, kept.trial
    details = {
        "study": kept.study,
        "trial": str(trial.number),
        METRICS[definition.objective]: f"{trial.value:.4f} nats a {definition.symbol}",
    }
    bits = trial.user_attrs.get("validation_bits_per_character")
    if bits is not None:
        details["validation"] = f"{bits:.4f} bits per character"
    return details | {
        "corpus": Path(definition.corpus).name,
        "vocabulary": definition.vocabulary,
        "steps that a gradient goes back through": str(_window(kept)),
        "precision of training": kept.network.precision,
    }


def _window(kept: Kept) -> int:
    return member_of(kept.trial.params, kept.definition).gradient_window


if __name__ == "__main__":
    run_command(export, BAD_INPUT)
