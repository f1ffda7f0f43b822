"""A study that is exported and imported again is the same study, in reports and in Python."""

from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from factories import (
    RECORDED,
    make_baselines,
    make_refinement,
    make_replicates,
    make_stated,
    make_study,
    make_union,
    open_new,
)
from helpers import study_attributes
from managed_studies import create_with_everything
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from reports.data.study_reader import read_results
from search.status import read_status
from studies.attributes import CONFIG, AuditState
from studies.config import StudyConfig
from studies.loader import read_study_record
from studies.management import StudyManager
from studies.space import GATED_PARAMS
from studies.storage.create_study import PlannedTrial, create_study, extend_study
from studies.storage.earlier_ends import NewEnd
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.trial_rows import AuditDecision, prune_paused
from studies.tables.study_export import export_study
from studies.tables.study_import import import_studies


def make_failed(url: str) -> None:
    """A complete, a diverged, a failed and a paused trial, with points that are no numbers."""
    open_new(url).close()
    create_with_everything(url, Path(url.removeprefix("sqlite:///")).parent / "files")


def make_retried(url: str) -> None:
    """The failed ones of these trials wait again, and keep what they were."""
    make_failed(url)
    StudyManager(url).retry("made", ["failed", "diverged"])


def make_pruned(url: str) -> None:
    """Four complete trials, two of them audited, two pruned and a paused one; of eight."""
    space = {"layers": [1, 2], "state_size": [4, 8], "residual": [False, True]}
    space |= {name: [False] for name in GATED_PARAMS[:4]} | {"state_source": ["new"]}
    raw = {"space": space, "pruning": {"enabled": True}, "training": {"steps": 200}}
    config = StudyConfig.model_validate(raw)
    with closing(open_new(url)) as storage:
        choices = {n: CategoricalDistribution(tuple(config.grid.values(n))) for n in GATED_PARAMS}
        planned = [
            PlannedTrial(params, is_audited=number < 2)
            for number, params in enumerate(config.grid.combinations())
        ]
        create_study(storage, "made", "validation loss", study_attributes(config), choices, planned)
        study_id = load_study(storage, "made")._study_id
        paused = []
        for i in range(7):
            trial_id = storage.claim(study_id, "node/1/a")
            found = RECORDED | {"seconds": 1.0, "rung": 100, "worker": "node/1", "host": "node"}
            curve = {50: 3.0 + i / 7, 100: 2.0 + i / 7}
            if i < 4:
                curve |= {200: 1.5 + i / 7}
                storage.finish(trial_id, "node/1/a", TrialState.COMPLETE, 1.5 + i / 7, found, curve)
            else:
                found |= {"predicted_value": 2.0 + i / 7, "keep_probability": 0.01}
                storage.pause(trial_id, "node/1/a", found, curve)
                paused.append(trial_id)
            if i == 0:
                decision = AuditDecision(AuditState(), AuditState(rungs=2, pruned=True))
                storage.write_audit({trial_id: decision})
        with storage.transaction() as connection:
            prune_paused(connection, {each: {"reason": "at step 100"} for each in paused[:2]})
        look = {"complete": 4, "trials": 2, "inside": 2, "alarm": False}
        storage.set_study_system_attr(study_id, "rnn_search:audit", {"half": look})


def make_extended(url: str) -> None:
    """Trials that ended after 100 steps, and again after 200; one had no checkpoint."""
    make_study(url, "made", objective="training", training={"steps": 100})
    with closing(open_storage(url)) as storage:
        study = load_study(storage, "made")
        before = read_study_record(study).config
        longer = before.training.model_copy(update={"steps": 200})
        config = before.model_copy(update={"training": longer}).model_dump(mode="json")
        end = NewEnd(200, 100, "python run_search.py made --extend", frozenset(range(1, 8)))
        study_id = study._study_id
        assert extend_study(storage, study_id, {}, {CONFIG: config}, {}, [], end)
        for number in range(6):
            trial_id = storage.claim(study_id, "me")
            loss = 1.2 + number / 7
            found = RECORDED | {"training_loss": loss, "worker": "w"}
            curve = {150: loss + 0.3, 200: loss}
            storage.finish(trial_id, "me", TrialState.COMPLETE, loss, found, curve)


STUDIES = {
    "failed": (make_failed, ["made"]),
    "retried": (make_retried, ["made"]),
    "pruned": (make_pruned, ["made"]),
    "extended": (make_extended, ["made"]),
    "derived": (make_refinement, ["made", "derived"]),
    "replicates": (make_replicates, ["replicates"]),
    "own cells": (make_union, ["union"]),
    "baselines": (make_baselines, ["cells"]),
    "hypotheses": (make_stated, ["stated"]),
}


@pytest.fixture
def export(tmp_path):
    """Export studies to files, one of each name."""

    def write(url, names, folder="files"):
        paths = [tmp_path / folder / f"{name}.csv.gz" for name in names]
        for name, path in zip(names, paths, strict=True):
            export_study(url, name, path)
        return paths

    return write


def test_export_of_a_study_that_postgresql_holds_is_the_same_file(
    sqlite_url, export, postgresql_url
):
    make_failed(sqlite_url)
    (before,) = export(sqlite_url, ["made"])
    import_studies(postgresql_url, [before])
    (after,) = export(postgresql_url, ["made"], "again")
    assert after.read_bytes() == before.read_bytes()


def results_of(url, name):
    with closing(read_storage(url)) as storage:
        return read_results(storage, name, require_complete=False)


@pytest.mark.parametrize("kind", STUDIES)
def test_imported_study_has_the_results_and_the_export_of_the_study(
    kind, sqlite_url, export, tmp_path
):
    make, names = STUDIES[kind]
    make(sqlite_url)
    files = export(sqlite_url, names)
    other = f"sqlite:///{tmp_path}/imported.db"
    assert [each.name for each in import_studies(other, files)] == names
    for before, after in zip(files, export(other, names, "again"), strict=True):
        assert after.read_bytes() == before.read_bytes()
    for name in names:
        before, after = results_of(sqlite_url, name), results_of(other, name)
        renamed = ["host", "worker"]
        for frame in ("table", "curves", "sources"):
            expected, found = getattr(before, frame), getattr(after, frame)
            expected = expected.drop(columns=renamed, errors="ignore")
            found = found.drop(columns=renamed, errors="ignore")
            pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
        assert after.windows.keys() == before.windows.keys()
        for number, losses in after.windows.items():
            assert losses == pytest.approx(before.windows[number], rel=1e-5)
        for field in ("tokenizer", "hypotheses", "audit_looks", "looks", "counts"):
            assert getattr(after, field) == getattr(before, field), field
        with closing(read_storage(sqlite_url)) as old, closing(read_storage(other)) as new:
            shown = [
                read_status(load_study(storage, name), storage, results.config).as_json()
                for storage, results in ((old, before), (new, after))
            ]
        for each in shown:
            if each["best"]:
                each["best"]["value"] = pytest.approx(each["best"]["value"], rel=1e-5)
        assert shown[1] == shown[0]
