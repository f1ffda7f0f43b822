"""What optuna-dashboard shows of a study beside its trials, kept up with the search.

A note, the figure of the effects and files of the best trials, all in the dashboard's and Optuna's
own attributes of the study. Any number of terminals may renew them at once: what is stored follows
from the study's state alone, and is stored in one transaction, only if nobody has been quicker.
"""

import contextlib
import copy
import io
import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from reports.charts import effect_plots as figures
from reports.dashboard import note
from reports.dashboard.artifacts import TEXTS, Curves, files_of, identifier, numbers_of_best, roles
from reports.dashboard.note import Written
from reports.data.results import Results, read_results
from reports.formatting import nats_word, worth_title
from reports.stats.effects import FactorialTable
from studies.artifacts import open_store
from studies.attributes import ARTIFACT_FOLDER, COMMANDS
from studies.errors import ArtifactsError, StorageError
from studies.loader import stored_config, stored_corpus
from studies.storage.counts import TrialCounts, best_trial_id, count_trials
from studies.storage.create import update_system_attributes
from studies.storage.engine import parse_url, redact
from studies.storage.open import load_study, open_storage
from studies.storage.queries import read_curves
from studies.storage.storage import LeasedRDBStorage

MARK = "rnn_search:live"
"""The system attribute of a study that says of which state its note, figure and files are."""

FIGURE = "effects"
"""What the dashboard calls the figure."""

_FORM = 3
"""Of the note, the figure and the files: to be counted up when they are made otherwise."""

_NOTE_VERSION = "dashboard:note_ver"
_ARTIFACTS = "artifacts:"
_TRIES = 20


@dataclass(frozen=True)
class _State:
    """What note, figure and files follow from."""

    counts: TrialCounts
    best: int | None

    def mark(self, written: Written, with_files: list[str]) -> dict[str, Any]:
        return {
            "form": _FORM,
            "points": asdict(self.counts),
            "best": self.best,
            "note": list(written),
            "files": with_files,
        }


def renew(storage_url: str, name: str, artifacts: str | None) -> None:
    """Renew what the dashboard shows of a study, if the study has changed since.

    Args:
        storage_url: of the storage, which must be there.
        name: of the study.
        artifacts: where files lie, as :func:`studies.artifacts.open_store` takes it.

    Raises:
        StudiesError: if the storage or the study is not there, or another program or version wrote
            the study.
        ArtifactsError: if files cannot be written; all else is renewed then.
    """
    url = parse_url(storage_url)
    # Who only shows a study makes no new storage in the place of one that was removed.
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise StorageError(f"storage {redact(url)} is not there any more")
    with contextlib.closing(open_storage(storage_url)) as storage:
        study = load_study(storage, name)
        for _ in range(_TRIES):
            if _Renewal(storage, study).try_once(storage_url, artifacts):
                return
            time.sleep(random.uniform(0, 0.2))


class _Renewal:
    """One look at a study, and the attempt to store what is made of it."""

    def __init__(self, storage: LeasedRDBStorage, study: optuna.Study) -> None:
        self._storage = storage
        self._study = study
        self._id = study._study_id
        self._definition = stored_config(study)
        self._corpus = stored_corpus(study)
        self._attributes = study.user_attrs
        self._own_name = self._attributes.get(ARTIFACT_FOLDER, f"{self._id}/{study.study_name}")

    def try_once(self, storage_url: str, artifacts: str | None) -> bool:
        """Return whether all is as it should be; False if somebody else was quicker."""
        # First what is stored, then the state: so no older state takes a newer one's place.
        found = self._storage.get_study_system_attrs(self._id)
        best_id = best_trial_id(self._storage, self._id)
        best = None if best_id is None else self._storage.get_trial_number_from_id(best_id)
        state = _State(count_trials(self._storage, self._id), best)
        if self._is_renewed(found, state):
            return True

        results = None
        if state.counts.complete:
            name = self._study.study_name
            results = read_results(self._storage, name, with_curves=(), with_windows=False)
            state = _State(results.counts, int(results.complete.index[0]))
        effects = (
            []
            if results is None
            else FactorialTable.from_frame(results.table, results.axes).effects()
        )
        text = note.compose(
            self._study.study_name,
            self._definition,
            self._corpus,
            self._attributes.get(COMMANDS, []),
            state.counts,
            results,
            bool(effects),
        )
        figure = None
        if effects:
            assert results is not None
            figure = figures.effects(effects, nats_word(results.config))
            figure.layout.template = None  # the browser has it; it is twice as long as the rest
            title = f"{worth_title(results.is_gated)}: left of zero it helps"
            figure.update_layout(height=None, title=title)
        problem: Exception | None = None
        files: dict[str, str] = {}
        if results is not None:
            try:
                files = self._write_files(results, found, storage_url, artifacts)
            except Exception as error:  # of whatever kind of store
                problem = error

        is_stored = False

        def compose(now: dict[str, Any]) -> dict[str, Any]:
            nonlocal is_stored
            if now.get(MARK) != found.get(MARK):
                return {}
            is_stored = True
            return self._composed(now, state, text, figure, files)

        update_system_attributes(self._storage, self._id, compose)
        if is_stored and problem is not None:
            raise ArtifactsError(f"the study's files cannot be written ({problem})") from problem
        return is_stored

    def _is_renewed(self, found: Mapping[str, Any], state: _State) -> bool:
        mark = found.get(MARK)
        if mark is None:
            return False
        written = Written(*mark["note"])
        with_texts = TEXTS in mark["files"]
        expected = [self._key(role) for role in roles(state.counts.complete, with_texts)]
        return (
            mark == state.mark(written, mark["files"])
            and len(mark["files"]) == len(expected)
            and all(_is_there(found, key) for key in expected)
            and note.is_intact(get_note(self._with(_Recorder(found))), written)
        )

    def _write_files(
        self, results: Results, found: Mapping[str, Any], url: str, artifacts: str | None
    ) -> dict[str, str]:
        """Write the files, unless those that are there are of the same trials.

        Returns:
            The attributes that tell Optuna of them.
        """
        curves: Curves = defaultdict(list)
        for number, step, loss in read_curves(self._storage, self._id, numbers_of_best(results)):
            curves[number].append((step, loss))
        files = files_of(results, curves)
        attributes = {}
        for file in files:
            key = self._key(file.role)
            told = {
                "artifact_id": key.removeprefix(_ARTIFACTS),
                "filename": file.name,
                "mimetype": file.kind,
                "encoding": None,
            }
            attributes[key] = json.dumps(told)
        mark = found.get(MARK) or {"form": None}
        is_same = mark["form"] == _FORM and mark["files"] == [file.name for file in files]
        if is_same and all(_is_there(found, key) for key in attributes):
            return attributes
        store = open_store(artifacts, url, "artifacts")
        for file in files:
            store.write(identifier(self._own_name, file.role), io.BytesIO(file.content))
        return attributes

    def _composed(
        self,
        now: dict[str, Any],
        state: _State,
        text: str,
        figure: Any,
        files: Mapping[str, str],
    ) -> dict[str, Any]:
        """Return the attributes that change, as the dashboard and Optuna write them."""
        recorder = _Recorder(now)
        study = self._with(recorder)
        mark = now.get(MARK)
        body = get_note(study)
        save_note(study, note.joined(body, Written(*mark["note"]) if mark else None, text))
        if _NOTE_VERSION in now:
            # A new one would refuse what a person is writing there at the moment.
            recorder.attributes[_NOTE_VERSION] = now[_NOTE_VERSION]
        if figure is not None:
            save_plotly_graph_object(study, figure, graph_object_id=FIGURE)
        recorder.attributes |= files
        names = [json.loads(told)["filename"] for told in files.values()]
        recorder.attributes[MARK] = state.mark(Written.of(text), names)
        return {key: value for key, value in recorder.attributes.items() if now.get(key) != value}

    def _with(self, recorder: "_Recorder") -> optuna.Study:
        study = copy.copy(self._study)
        study._storage = recorder  # type: ignore[assignment]  # all that the dashboard asks for
        return study

    def _key(self, role: str) -> str:
        return _ARTIFACTS + identifier(self._own_name, role)


class _Recorder:
    """Stands in for a storage: has a study's system attributes, and keeps what is set in them."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.attributes = dict(found)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.attributes

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.attributes[key] = value


def _is_there(found: Mapping[str, Any], key: str) -> bool:
    # Of one that a person has removed, the dashboard keeps the word null.
    return json.loads(found.get(key, "null")) is not None
