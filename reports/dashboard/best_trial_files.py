"""Files of a study's best trials: training curves, source code and samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports.dashboard.note import N_BEST
from reports.data.results import Results
from reports.stats.ranking import LeaderboardEntry, rank_architectures
from rnn.codegen.module_code import generate_module
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
    best = rank_architectures(results, N_BEST)
    curves = _format_curves(storage, study_id, best)
    files = [StudyFile("curves.csv", "best-curves.csv", "text/csv", curves)]
    for rank, entry in enumerate(best, 1):
        assert entry.architecture is not None  # an imported study has no files
        code = generate_module(entry.architecture, results.tokenizer.size, entry.bptt_steps)
        name = f"best-{rank}-trial-{entry.number}.py"
        files.append(StudyFile(f"best-{rank}", name, "text/x-python", code))
    if samples := _format_samples(results, best):
        files.append(StudyFile("samples", SAMPLES_FILE, "text/plain; charset=utf-8", samples))
    return files


def _format_curves(
    storage: LeasedRDBStorage, study_id: int, best: Sequence[LeaderboardEntry]
) -> str:
    """Return the curves as CSV: one row per step, one column per trial, the best first."""
    curves: dict[int, dict[int, float]] = {entry.number: {} for entry in best}
    for number, step, loss in read_curves(storage, study_id, list(curves)):
        curves[number][step] = loss
    columns = {f"trial {n}": pd.Series(curve, dtype=float) for n, curve in curves.items()}
    table = pd.DataFrame(columns).sort_index()
    return table.to_csv(index_label="step", float_format="%.6f", lineterminator="\n")


def _format_samples(results: Results, best: Sequence[LeaderboardEntry]) -> str:
    """Return the samples of the best trials, each under a heading; "" if there are none."""
    unit, parts = results.metric.unit, []
    for rank, entry in enumerate(best, 1):
        if entry.sample is not None:
            trial = f"trial {entry.sample_trial}, {entry.full_label}"
            heading = f"{rank}: {trial}, {entry.mean:.4f} {unit}"
            parts.append(f"{heading}\n{'=' * len(heading)}\n\n{to_printable(entry.sample)}\n")
    return "\n\n".join(parts)
