"""Publish a study's note, effects figure and files to optuna-dashboard.

They depend on the study's state alone and are stored by one compare-and-set transaction, so any
number of processes may publish the same study at once.
"""

import copy
import hashlib
import io
import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna
import pandas as pd
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from reports.analysis.leaderboard import rank_architectures
from reports.analysis.nuisance import join_names
from reports.charts.effect_plots import plot_effects
from reports.dashboard.note import N_BEST, render_note
from reports.data.results import Results
from reports.data.study_reader import StudyReader
from reports.findings import StudyFindings
from reports.formatting import effects_title, loss_unit
from reports.stats.effects import Effect
from rnn.source_code import generate_module
from studies.artifacts import Store, artifact_id, store_errors
from studies.attributes import PUBLISHED
from studies.errors import ArtifactsError
from studies.storage.changes import update_system_attributes
from studies.storage.counts import count_trials
from studies.storage.open import load_study
from studies.storage.reads import read_curves
from studies.storage.storage import LeasedRDBStorage
from studies.text import to_printable

FIGURE_ID = "effects"
"""Identifier of the effects figure in the dashboard."""

SAMPLES_FILE = "best-samples.txt"
"""Name of the file with the samples of the best trials."""

SEPARATOR = "*Text above this line is kept. Everything below it is updated automatically.*"
"""Line between a user's text and the generated text."""

_FORMAT = 7
"""Version of the note, the figure and the files; raise it when any of them changes."""

_NOTE_VERSION = "dashboard:note_ver"
_ARTIFACT_PREFIX = "artifacts:"
_ATTEMPTS = 20


class StudyPublisher:
    """Publishes a study whenever it has changed; reads the trials that may have changed since.

    Args:
        storage: storage that holds the study.
        study_name: name of the study.
        store: artifact store for the files.

    Attributes:
        key: identifier and name of the study.

    Raises:
        StudiesError: if the study does not exist.
    """

    def __init__(self, storage: LeasedRDBStorage, study_name: str, store: Store) -> None:
        self._storage = storage
        self._study = load_study(storage, study_name)
        self._store = store
        self._reader = StudyReader(storage, study_name)
        self.key = (self._study._study_id, study_name)

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
        study_id, name = self.key
        # The attributes are read before the state: an older state never replaces a newer one.
        attrs = self._storage.get_study_system_attrs(study_id)
        counts = asdict(count_trials(self._storage, study_id))
        state = json.dumps([_FORMAT, name, self._study.user_attrs, counts], sort_keys=True)
        digest = hashlib.sha256(state.encode()).hexdigest()
        if not is_forced and self._is_current(attrs, digest):
            return True

        results = self._reader.read(with_curves=(), with_windows=False, require_complete=False)
        if results.has_replicates:  # verdicts are those of the report, which compares windows
            results = self._reader.read(with_curves=(), require_complete=False)
        findings = StudyFindings(results)
        figure = None
        files: dict[str, str] = {}
        error: Exception | None = None
        # The losses of several tasks do not compare: the report shows each task.
        if results.counts.complete and not results.config.task_names:
            if findings.effects:
                figure = _plot_effects(results, findings.effects)
            try:
                files = self._write_files(results)
            except store_errors() as caught:
                error = caught
        text = render_note(findings)
        published = {
            "digest": digest if error is None else "",
            "note": fingerprint(text),
            "files": list(files),
        }
        is_stored = False

        def update(current: dict[str, Any]) -> dict[str, Any]:
            nonlocal is_stored
            is_stored = current.get(PUBLISHED) == attrs.get(PUBLISHED)
            if not is_stored:
                return {}
            new = self._update_shown(current, text, figure) | files | {PUBLISHED: published}
            return {key: value for key, value in new.items() if current.get(key) != value}

        update_system_attributes(self._storage, study_id, update)
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
            and is_intact(get_note(self._draft(attrs)), published["note"])
        )

    def _write_files(self, results: Results) -> dict[str, str]:
        """Write the files; return the attributes that list them."""
        entries = {}
        for role, name, media_type, text in build_files(self._storage, self.key[0], results):
            identifier = artifact_id(results.folder, role)
            entry = {"artifact_id": identifier, "filename": name, "mimetype": media_type}
            entries[_ARTIFACT_PREFIX + identifier] = json.dumps(entry | {"encoding": None})
            self._store.write(identifier, io.BytesIO(text.encode()))
        return entries

    def _update_shown(self, current: Mapping[str, Any], text: str, figure: Any) -> dict[str, Any]:
        """Return the system attributes with a new note and figure, as the dashboard stores them."""
        draft = self._draft(current)
        previous = current.get(PUBLISHED, {}).get("note")
        save_note(draft, merge_note(get_note(draft), previous, text))
        if figure is not None:
            save_plotly_graph_object(draft, figure, graph_object_id=FIGURE_ID)
        # With a new version the dashboard would reject a note that a user is editing.
        kept = {key: current[key] for key in current.keys() & {_NOTE_VERSION}}
        return draft._storage.get_study_system_attrs(draft._study_id) | kept

    def _draft(self, attrs: Mapping[str, Any]) -> optuna.Study:
        """Return a copy of the study that reads and writes a copy of the given attributes."""
        study = copy.copy(self._study)
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


def fingerprint(text: str) -> list[int | str]:
    """Return the length and digest by which a published text is recognised, as JSON stores them."""
    return [len(text), hashlib.sha256(text.encode()).hexdigest()[:16]]


def merge_note(body: str, published: list[Any] | None, generated: str) -> str:
    """Replace the generated text of a note, and keep everything else above it.

    Text is a user's unless it is exactly as it was published, also if it was edited since.

    Args:
        body: current note.
        published: fingerprint of the generated text in it; None if there was none.
        generated: new generated text, which begins with a heading.
    """
    length = published[0] if published else 0
    for heading in re.finditer("^## ", body, re.MULTILINE):
        start, end = heading.start(), heading.start() + length
        if fingerprint(body[start:end]) == published:
            body = body[:start] + SEPARATOR + body[end:]
            break
    kept = filter(None, map(str.strip, body.split(SEPARATOR)))
    return "\n\n".join([*kept, SEPARATOR, generated])


def is_intact(body: str, published: list[Any]) -> bool:
    """Return whether the generated text of a note is as it was published, and below the line."""
    _, separator, below = body.rpartition(SEPARATOR)
    return bool(separator) and fingerprint(below.strip()) == published


def _plot_effects(results: Results, effects: list[Effect]) -> Any:
    figure = plot_effects(effects, loss_unit(results.config))
    figure.layout.template = None  # the browser has it; it is twice as long as the rest
    at_best = f" at its best {join_names(results.nuisance)}" if results.nuisance else ""
    title = f"{effects_title(results.is_gated)}{at_best}: {results.scale.better_sign} is better"
    figure.update_layout(height=None, title=title)
    return figure


def build_files(
    storage: LeasedRDBStorage, study_id: int, results: Results
) -> list[tuple[str, str, str, str]]:
    """Build the files of a study; none of an imported one.

    Args:
        storage: storage that holds the study.
        study_id: identifier of the study.
        results: results of the study, without curves.

    Returns:
        Role, name, media type and text of each. A new file replaces the one of the same role.
    """
    if not results.cells:
        return []
    best = rank_architectures(results, N_BEST)
    curves: dict[int, dict[int, float]] = {entry.number: {} for entry in best}
    for number, step, loss in read_curves(storage, study_id, list(curves)):
        curves[number][step] = loss
    columns = {f"trial {n}": pd.Series(curve, dtype=float) for n, curve in curves.items()}
    table = pd.DataFrame(columns).sort_index()
    text = table.to_csv(index_label="step", float_format="%.6f", lineterminator="\n")
    files = [("curves.csv", "best-curves.csv", "text/csv", text)]
    samples = []
    for rank, entry in enumerate(best, 1):
        assert entry.architecture is not None
        code = generate_module(entry.architecture, results.spec, entry.bptt_steps)
        name = f"best-{rank}-trial-{entry.number}.py"
        files.append((f"best-{rank}", name, "text/x-python", code))
        if entry.sample is not None:
            title = f"{rank}: trial {entry.sample_trial}, {entry.full_label}, {entry.mean:.4f}"
            title += f" {results.metric.unit}"
            samples.append(f"{title}\n{'=' * len(title)}\n\n{to_printable(entry.sample)}\n")
    if samples:
        media_type = "text/plain; charset=utf-8"
        files.append(("samples", SAMPLES_FILE, media_type, "\n\n".join(samples)))
    return files
