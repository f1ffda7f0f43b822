"""``python -m benchmarks.published_runs FILE URL``: store a table of published results as a study.

The file is not part of the project: a CSV, compressed or not, with one row per architecture, a
column for each parameter (switches as 0 and 1), ``seconds``, ``min_loss``, and the curve as
``loss_50``, ``loss_100`` ….
"""

import os
from pathlib import Path

import click
import pandas as pd
from optuna.trial import TrialState

from rnn.config import gated_network
from rnn.network import count_parameters
from rnn.tasks.corpus import ENWIK8_SHA256
from studies.attributes import OBJECTIVE_NAMES, CorpusRecord, StudyRecord
from studies.cli import run_with_exit_code
from studies.config import StudyConfig
from studies.errors import StudiesError
from studies.space import GATED_PARAMS, distributions
from studies.storage.changes import create_study
from studies.storage.open import open_storage
from studies.storage.tables import utcnow
from studies.storage.trials import StoredTrial

VARIABLE = "RNN_SEARCH_PUBLISHED"
"""The environment variable that names the file."""

NAME = "published"
"""Name of the study."""

STEPS = 10_989

ENWIK8 = CorpusRecord(
    name="enwik8",
    sha256=ENWIK8_SHA256,
    length=100_000_000,
    split=(90_000_000, 95_000_000),
)


def published_file() -> Path | None:
    """Return the file that the environment variable names, or None."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else None


def load_published(path: Path, url: str) -> None:
    """Store the published results as a finished study.

    Args:
        path: CSV file.
        url: URL of the storage, which is created if it does not exist.

    Raises:
        StudiesError: if the file is not such a table, the study exists, or the storage cannot be
            opened.
    """
    table = _read(path)
    for switch in GATED_PARAMS[:5]:
        table[switch] = table[switch].astype(bool)
    steps = {str(c): int(str(c)[5:]) for c in table if str(c).startswith("loss_")}
    config = StudyConfig.model_validate(
        {
            "question": "Which switches make a gated recurrent network good?",
            "report_threshold": 1.9,
            "corpus": ENWIK8.name,
            "objective": "training",
            "gate_inputs": "candidate",
            "precision": "fp32",
            "space": {
                "layers": [1, 2, 3],
                "state_size": [32, 256],
                "exclude": [{"state_size": 32, "residual": False}],
            },
            "training": {"steps": STEPS},
        }
    )
    assert config.grid is not None
    trials = []
    for row in table.to_dict("records"):
        params = {name: row[name] for name in GATED_PARAMS}
        attributes = {
            "seconds": row["seconds"],
            "steps_per_second": STEPS / row["seconds"],
            "parameter_count": count_parameters(gated_network(params, "candidate")),
        }
        curve = {step: row[column] for column, step in steps.items()}
        trials.append(
            StoredTrial(
                params,
                attributes,
                state=TrialState.COMPLETE,
                value=row["min_loss"],
                started=utcnow(),
                completed=utcnow(),
                curve=curve,
            )
        )
    storage = open_storage(url)
    is_new = create_study(
        storage,
        NAME,
        OBJECTIVE_NAMES["training"],
        StudyRecord(config=config, corpus=ENWIK8, artifact_folder=NAME).attributes(),
        distributions(config.grid.search_space),
        trials,
    )
    storage.close()
    if not is_new:
        raise StudiesError(f"study {NAME!r} already exists: expected a storage without it")


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise StudiesError(
            f"cannot read {path}: expected the CSV table of the published runs"
        ) from error
    missing = [name for name in (*GATED_PARAMS, "seconds", "min_loss") if name not in table]
    if missing:
        raise StudiesError(
            f"{path} has no column {', '.join(missing)}: expected the table of the published runs"
        )
    return table


@click.command(help='Store the table of the published runs as the study "published".')
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("url")
def main(file: Path, url: str) -> int:
    """Store the table."""
    load_published(file, url)
    click.echo("published")
    return 0


if __name__ == "__main__":
    run_with_exit_code(lambda: main(standalone_mode=False), (StudiesError,))
