"""Files of a study's best trials: training curves, source code and samples."""

from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from reports.dashboard.note import N_BEST
from reports.data.results import Results
from reports.data.trial_table import decode_architecture
from reports.formatting import loss_unit
from rnn.codegen.module_code import generate_module
from studies.space import BPTT_STEPS
from studies.storage.curves import read_curves
from studies.storage.storage import LeasedRDBStorage
from studies.text import to_printable

SAMPLES_FILE = "best-samples.txt"
"""Name of the file with the samples of the best trials."""


@dataclass(frozen=True)
class StudyFile:
    """File that belongs to a study.

    Attributes:
        role: purpose of the file; a new file replaces the one of the same role.
        name: file name shown in the dashboard.
        media_type: media type, as in an HTTP header.
        content: text of the file.
    """

    role: str
    name: str
    media_type: str
    content: str


def build_files(storage: LeasedRDBStorage, study_id: int, results: Results) -> list[StudyFile]:
    """Build the files of a study.

    Args:
        storage: storage that holds the study.
        study_id: identifier of the study.
        results: results of the study, without curves.
    """
    best = results.judge(results.complete).head(N_BEST)
    curves = _format_curves(storage, study_id, best)
    files = [StudyFile("curves.csv", "best-curves.csv", "text/csv", curves)]
    for rank, (number, row) in enumerate(best.iterrows(), 1):
        architecture = decode_architecture(row, results.trained)
        code = generate_module(architecture, results.tokenizer.size, int(row[BPTT_STEPS]))
        name = f"best-{rank}-trial-{number}.py"
        files.append(StudyFile(f"best-{rank}", name, "text/x-python", code))
    if samples := _format_samples(results, best):
        files.append(StudyFile("samples", SAMPLES_FILE, "text/plain; charset=utf-8", samples))
    return files


def _format_curves(storage: LeasedRDBStorage, study_id: int, best: pd.DataFrame) -> str:
    """Return the curves as CSV: one row per step, one column per trial, the best first."""
    curves: dict[int, dict[int, float]] = defaultdict(dict)
    for number, step, loss in read_curves(storage, study_id, [int(n) for n in best.index]):
        curves[number][step] = loss
    columns = {f"trial {n}": pd.Series(curves[n], dtype=float) for n in best.index}
    table = pd.DataFrame(columns).sort_index()
    return table.to_csv(index_label="step", float_format="%.6f", lineterminator="\n")


def _format_samples(results: Results, best: pd.DataFrame) -> str:
    """Return the samples of the best trials, each under a heading; "" if there are none."""
    unit = loss_unit(results.config)
    parts = []
    for rank, (number, row) in enumerate(best.iterrows(), 1):
        if isinstance(row["sample"], str):
            heading = f"{rank}: trial {number}, {row['label']}, {row['value']:.4f} {unit}"
            parts.append(f"{heading}\n{'=' * len(heading)}\n\n{to_printable(row['sample'])}\n")
    return "\n\n".join(parts)
