"""Publish a study's note, effects figure and files to optuna-dashboard.

They depend on the study's state alone and are stored by one compare-and-set transaction, so any
number of processes may publish the same study at once.
"""

import hashlib
import io
import json
import random
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna
import pandas as pd
import tomli_w
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from reports import narrative, phrases
from reports.analysis.leaderboard import rank_architectures
from reports.analysis.nuisance import join_names
from reports.charts.comparison_plots import plot_effects
from reports.findings import StudyFindings
from reports.formatting import escape_markdown, format_number, load_templates
from reports.results import Results
from reports.study_reader import StudyReader
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

N_BEST = 5
"""Number of best trials that the note lists and whose files are stored."""

SEPARATOR = "*Text above this line is kept. Everything below it is updated automatically.*"
"""Line between a user's text and the generated text."""

_FORMAT = 7
"""Version of the note, the figure and the files; raise it when any of them changes."""

_NOTE_VERSION = "dashboard:note_ver"
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
        if not is_forced and _is_current(attrs, digest):
            return True

        results = self._reader.read(False, False, require_complete=False)
        if results.has_replicates:  # verdicts are those of the report, which compares windows
            results = self._reader.read(False, require_complete=False)
        findings = StudyFindings(results)
        figure, text = _plot_effects(findings), render_note(findings)
        files: dict[str, str] = {}
        error: Exception | None = None
        try:
            files = self._write_files(results)
        except store_errors() as caught:
            error, digest = caught, ""
        before = attrs.get(PUBLISHED, {})
        published = {"digest": digest, "note": fingerprint(text), "files": list(files)}
        is_stored = False

        def update(current: dict[str, Any]) -> dict[str, Any]:
            nonlocal is_stored
            is_stored = current.get(PUBLISHED, {}) == before
            if not is_stored:
                return {}
            draft = _Draft(current)
            save_note(draft, merge_note(get_note(draft), before.get("note"), text))
            if figure is not None:
                save_plotly_graph_object(draft, figure, graph_object_id="effects")
            new = draft.attrs | files | {PUBLISHED: published}
            if _NOTE_VERSION in current:
                # With a new version the dashboard would reject a note that a user is editing.
                new[_NOTE_VERSION] = current[_NOTE_VERSION]
            return {key: value for key, value in new.items() if current.get(key) != value}

        update_system_attributes(self._storage, study_id, update)
        if is_stored and error is not None:
            raise ArtifactsError(f"cannot write the study's files ({error})") from error
        return is_stored

    def _write_files(self, results: Results) -> dict[str, str]:
        """Write the files of the best networks, if any; return the attributes that list them."""
        listed: dict[str, str] = {}

        def write(role: str, name: str, media_type: str, text: str) -> None:
            # A new file replaces the one of the same role.
            identifier = artifact_id(results.folder, role)
            entry = {"artifact_id": identifier, "filename": name, "mimetype": media_type}
            listed[f"artifacts:{identifier}"] = json.dumps(entry | {"encoding": None})
            self._store.write(identifier, io.BytesIO(text.encode()))

        if not (results.cells and _has_ranking(results)):
            return listed
        best = rank_architectures(results, N_BEST)
        numbers, samples = [entry.number for entry in best], []
        points = read_curves(self._storage, self.key[0], numbers)
        curves = pd.DataFrame(points, columns=["trial", "step", "loss"])
        curves = curves.pivot(index="step", columns="trial", values="loss")
        curves = curves.reindex(columns=numbers).add_prefix("trial ")
        text = curves.to_csv(float_format="%.6f", lineterminator="\n")
        write("curves.csv", "best-curves.csv", "text/csv", text)
        for rank, entry in enumerate(best, 1):
            assert entry.architecture is not None
            code = generate_module(entry.architecture, results.spec, entry.bptt_steps)
            write(f"best-{rank}", f"best-{rank}-trial-{entry.number}.py", "text/x-python", code)
            if entry.sample is not None:
                value = f"{entry.mean:.4f} {results.metric.unit}"
                title = f"{rank}: trial {entry.sample_trial}, {entry.full_label}, {value}"
                samples.append(f"{title}\n{'=' * len(title)}\n\n{to_printable(entry.sample)}\n")
        if samples:
            text = "\n\n".join(samples)
            write("samples", "best-samples.txt", "text/plain; charset=utf-8", text)
        return listed


class _Draft(optuna.Study):
    """Study, and its own storage, of which the dashboard's functions use the system attributes."""

    def __init__(self, attrs: Mapping[str, Any]) -> None:
        self._storage = self  # type: ignore[assignment]
        self._study_id = 0
        self.attrs = dict(attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.attrs

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.attrs[key] = value


def _is_current(attrs: Mapping[str, Any], digest: str) -> bool:
    """Return whether a state is published, and nothing of it was changed in the dashboard."""
    published = attrs.get(PUBLISHED, {})
    if published.get("digest") != digest:
        return False
    body, listed = get_note(_Draft(attrs)), [attrs.get(key, "null") for key in published["files"]]
    is_intact = fingerprint(body[-published["note"][0] :]) == published["note"]
    # The dashboard sets the attribute of a deleted file to null, as JSON.
    return is_intact and SEPARATOR in body and all(map(json.loads, listed))


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


def _has_ranking(results: Results) -> bool:
    """Return whether trials are complete, and compare: losses of several tasks do not."""
    return results.counts.complete > 0 and not results.config.task_names


def render_note(findings: StudyFindings) -> str:
    """Render the generated part of a note; equal states of a study give equal texts.

    Args:
        findings: findings on a study, of which no trial may be complete.
    """
    results, best, said = findings.results, [], []
    if _has_ranking(results):
        best = rank_architectures(results, N_BEST)
        said = [*narrative.write_answer(findings), phrases.describe_outcomes(findings)]
        if results.is_pruned:
            said.append(phrases.to_sentence(narrative.describe_pruning(findings)))
        said += [f"Warning: {each}." for each in narrative.list_warnings(findings)]
    # Without what follows from the files that it names, it loads as an equal config.
    derived = {"cells", "task_record", "task_records"}
    settings = results.config.model_dump(mode="json", exclude_none=True, exclude=derived)
    text = _TEMPLATES.get_template("note.md").render(
        results=results,
        best=best,
        sentences=[phrases.to_markdown(each) for each in said if each],
        nuisance=join_names(results.nuisance),
        command=shlex.join(["rnn-search", "report", results.name]),
        toml=tomli_w.dumps(settings),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


_TEMPLATES = load_templates(escaping=False)
_TEMPLATES.filters |= {"escape_markdown": escape_markdown, "number": format_number}


def _plot_effects(findings: StudyFindings) -> Any:
    """Plot the main effects; None if there are none."""
    results = findings.results
    if not (_has_ranking(results) and findings.effects):
        return None
    figure = plot_effects(findings.effects, results.measure.unit)
    figure.layout.template = None  # the browser has it; it is twice as long as the rest
    at_best = f" at its best {join_names(results.nuisance)}" if results.nuisance else ""
    title = f"{results.effects_title}{at_best}: {results.scale.better_sign} is better"
    return figure.update_layout(height=None, title=title)
