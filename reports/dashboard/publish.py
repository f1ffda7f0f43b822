"""Publish a study's note, effects figure and files to optuna-dashboard.

They depend on the study's state alone and are stored by one compare-and-set transaction, so any
number of processes may publish the same study at once.
"""

import copy
import hashlib
import io
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
import pandas as pd
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from reports.analysis.audited_effects import compute_study_effects
from reports.analysis.leaderboard import LeaderboardEntry, rank_architectures
from reports.analysis.nuisance import build_judged_table, join_names
from reports.charts.effect_plots import plot_effects
from reports.dashboard.note import (
    N_BEST,
    fingerprint,
    is_intact,
    merge_note,
    render_note,
)
from reports.data.results import Results
from reports.data.study_reader import StudyReader
from reports.formatting import effects_title, loss_unit
from reports.stats.conditional_effects import (
    RankedEffect,
    compute_conditional_effects,
    rank_effects,
)
from reports.stats.effects import Effect
from rnn.source_code import generate_module
from studies.artifacts import Store, artifact_id, store_errors
from studies.attributes import PUBLISHED, StudyRecord
from studies.errors import ArtifactsError
from studies.loader import read_record
from studies.storage.changes import update_system_attributes
from studies.storage.counts import count_trials
from studies.storage.open import load_study
from studies.storage.reads import read_curves
from studies.storage.storage import LeasedRDBStorage
from studies.text import to_printable

FIGURE_ID = "effects"
"""Identifier of the effects figure in the dashboard."""

_FORMAT = 6
"""Version of the note, the figure and the files; raise it when any of them changes."""

_NOTE_VERSION = "dashboard:note_ver"
_ARTIFACT_PREFIX = "artifacts:"
_ATTEMPTS = 20

SAMPLES_FILE = "best-samples.txt"
"""Name of the file with the samples of the best trials."""


def publish_study(
    storage: LeasedRDBStorage, study_name: str, open_store: Callable[[], Store]
) -> None:
    """Publish a study once; see :class:`StudyPublisher`."""
    StudyPublisher(storage, study_name, open_store).publish()


class StudyPublisher:
    """Publishes a study whenever it has changed; reads the trials that may have changed since.

    Args:
        storage: storage that holds the study.
        study_name: name of the study.
        open_store: returns the artifact store for the files; called if there are files to write.

    Raises:
        StudiesError: if the study does not exist.
    """

    def __init__(
        self, storage: LeasedRDBStorage, study_name: str, open_store: Callable[[], Store]
    ) -> None:
        self.storage = storage
        self.study = load_study(storage, study_name)
        self.open_store = open_store
        self._reader = StudyReader(storage, study_name)

    def publish(self) -> None:
        """Publish the study if it has changed since the last publication.

        Raises:
            StudiesError: if the study is gone, or another program or version created it.
            ArtifactsError: if the files cannot be written; note and figure are published
                nevertheless.
        """
        for attempt in range(_ATTEMPTS):
            # After a lost race this process may have overwritten newer files: write them again.
            if self._try_publish(is_forced=attempt > 0):
                return
            time.sleep(random.uniform(0, 0.2))

    def _try_publish(self, is_forced: bool) -> bool:
        """Publish once; return False if another process published in the meantime."""
        name, study_id = self.study.study_name, self.study._study_id
        # The attributes are read before the state: an older state never replaces a newer one.
        attrs = self.storage.get_study_system_attrs(study_id)
        stored = self.study.user_attrs
        record = read_record(self.study)
        counts = count_trials(self.storage, study_id)
        # These counts contain damaged trials, which results leave out.
        state = json.dumps([_FORMAT, name, stored, asdict(counts)], sort_keys=True)
        digest = hashlib.sha256(state.encode()).hexdigest()
        if not is_forced and self._is_current(attrs, digest):
            return True

        results, figure, files = None, None, {}
        ranked: list[RankedEffect] = []
        error: Exception | None = None
        if counts.complete:
            results = self._reader.read(with_curves=(), with_windows=False)
            counts = results.counts
            effects = compute_study_effects(results).effects
            conditional = []
            if not results.is_pruned:
                conditional = compute_conditional_effects(build_judged_table(results), effects)
            ranked = rank_effects(effects, conditional)
            figure = _plot_effects(results, effects) if effects else None
            try:
                files = self._write_files(results, record)
            except store_errors() as caught:
                error = caught
        text = render_note(
            name, record.config, record.corpus, record.commands, counts, results, ranked
        )
        published = {
            "digest": digest if error is None else "",
            "note": fingerprint(text),
            "files": list(files),
        }
        is_stored = False

        def update(current: dict[str, Any]) -> dict[str, Any]:
            nonlocal is_stored
            is_stored = current.get(PUBLISHED) == attrs.get(PUBLISHED)
            return self._changed_attrs(current, text, figure, files, published) if is_stored else {}

        update_system_attributes(self.storage, study_id, update)
        if is_stored and error is not None:
            raise ArtifactsError(f"cannot write the study's files ({error})") from error
        return is_stored

    def _is_current(self, attrs: Mapping[str, Any], digest: str) -> bool:
        """Return whether a state is published, and nothing of it was changed in the dashboard."""
        published = attrs.get(PUBLISHED, {})
        return (
            published.get("digest") == digest
            # The dashboard sets the attribute of a deleted file to null, as JSON.
            and all(json.loads(attrs.get(key, "null")) for key in published["files"])
            and is_intact(get_note(self._study_over(attrs)), published["note"])
        )

    def _write_files(self, results: Results, record: StudyRecord) -> dict[str, str]:
        """Write the files; return the attributes that list them."""
        files = {
            artifact_id(record.artifact_folder, file.role): file
            for file in build_files(self.storage, self.study._study_id, results)
        }
        entries = {
            _ARTIFACT_PREFIX + identifier: json.dumps(
                {
                    "artifact_id": identifier,
                    "filename": file.name,
                    "mimetype": file.media_type,
                    "encoding": None,
                }
            )
            for identifier, file in files.items()
        }
        if files:
            store = self.open_store()
            for identifier, file in files.items():
                store.write(identifier, io.BytesIO(file.content.encode()))
        return entries

    def _changed_attrs(
        self,
        current: dict[str, Any],
        text: str,
        figure: Any,
        files: Mapping[str, str],
        published: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the system attributes to write, in the formats of Optuna and its dashboard."""
        study = self._study_over(current)
        previous = current.get(PUBLISHED, {}).get("note")
        save_note(study, merge_note(get_note(study), previous, text))
        if figure is not None:
            save_plotly_graph_object(study, figure, graph_object_id=FIGURE_ID)
        new = study._storage.get_study_system_attrs(study._study_id)
        new = {**new, **files, PUBLISHED: published}
        if _NOTE_VERSION in current:
            # With a new version the dashboard would reject a note that a user is editing.
            new[_NOTE_VERSION] = current[_NOTE_VERSION]
        return {key: value for key, value in new.items() if current.get(key) != value}

    def _study_over(self, attrs: Mapping[str, Any]) -> optuna.Study:
        """Return a copy of the study that reads and writes a copy of the given attributes."""
        study = copy.copy(self.study)
        study._storage = _AttrsOverlay(attrs)  # type: ignore[assignment]
        return study


class _AttrsOverlay:
    """Stand-in for a storage: the two methods that the dashboard's functions use."""

    def __init__(self, attrs: Mapping[str, Any]) -> None:
        self.attrs = dict(attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.attrs

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.attrs[key] = value


def _plot_effects(results: Results, effects: list[Effect]) -> Any:
    figure = plot_effects(effects, loss_unit(results.config))
    figure.layout.template = None  # the browser has it; it is twice as long as the rest
    at_best = f" at its best {join_names(results.nuisance)}" if results.nuisance else ""
    title = f"{effects_title(results.is_gated)}{at_best}: {results.scale.better_sign} is better"
    figure.update_layout(height=None, title=title)
    return figure


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
    networks = [entry.architecture for entry in best if entry.architecture]
    if not networks:  # imported
        return []
    curves = _format_curves(storage, study_id, best)
    files = [StudyFile("curves.csv", "best-curves.csv", "text/csv", curves)]
    for rank, (entry, network) in enumerate(zip(best, networks, strict=True), 1):
        code = generate_module(network, results.spec, entry.bptt_steps)
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
