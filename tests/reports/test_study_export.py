"""A study that is exported and imported again is the same study, in reports and in Python."""

from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from factories import (
    extend_steps,
    finish_one,
    make_baselines,
    make_refinement,
    make_replicates,
    make_stated,
    make_study,
    make_union,
    open_new,
    results_of,
)
from managed_studies import create_with_everything
from test_pruning_audit import make_pruned

from search.status import read_status
from studies.attributes import AuditState
from studies.management import StudyManager
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.storage import AuditDecision
from studies.study_file import export_study, import_studies


def make_failed(url: str) -> None:
    """A complete, a diverged, a failed and a paused trial, with points that are no numbers."""
    open_new(url).close()
    create_with_everything(url, Path(url.removeprefix("sqlite:///")).parent / "files")


def make_retried(url: str) -> None:
    """The failed ones of these trials wait again, and keep what they were."""
    make_failed(url)
    StudyManager(url).retry("made", ["failed", "diverged"])


def make_audited(url: str) -> None:
    """Complete, pruned and audited trials, and a paused one."""
    make_pruned(url, finished=False)
    with closing(open_storage(url)) as storage:
        study_id = load_study(storage, "made")._study_id
        (trial, *_) = storage.get_all_trials(study_id)
        decision = AuditDecision(AuditState(), AuditState(rungs=2, pruned=True))
        assert storage.write_audit({trial._trial_id: decision})
        look = {"complete": 4, "trials": 2, "inside": 2, "alarm": False}
        storage.set_study_system_attr(study_id, "rnn_search:audit", {"half": look})


def make_extended(url: str) -> None:
    """Trials that ended after 100 steps, and again after 200; one had no checkpoint."""
    make_study(url, "made", objective="training", training={"steps": 100})
    extend_steps(url, 200, range(1, 8))
    for number in range(6):
        finish_one(url, 1.2 + number / 7, start=100)


STUDIES = {
    "failed": (make_failed, ["made"]),
    "retried": (make_retried, ["made"]),
    "audited": (make_audited, ["made"]),
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
        paths = [tmp_path / folder / f"{name}.jsonl.gz" for name in names]
        for name, path in zip(names, paths, strict=True):
            export_study(url, name, path)
        return paths

    return write


@pytest.mark.extended
def test_export_of_a_study_that_postgresql_holds_is_the_same_file(
    sqlite_url, export, postgresql_url
):
    make_failed(sqlite_url)
    (before,) = export(sqlite_url, ["made"])
    import_studies(postgresql_url, [before])
    (after,) = export(postgresql_url, ["made"], "again")
    assert after.read_bytes() == before.read_bytes()


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
        before, after = (
            results_of(url, name, require_complete=False) for url in (sqlite_url, other)
        )
        renamed = ["host", "worker"]
        for frame in ("table", "curves", "sources"):
            expected, found = getattr(before, frame), getattr(after, frame)
            expected = expected.drop(columns=renamed, errors="ignore")
            found = found.drop(columns=renamed, errors="ignore")
            pd.testing.assert_frame_equal(found, expected)
        for field in ("windows", "tokenizer", "hypotheses", "audit_looks", "looks", "counts"):
            assert getattr(after, field) == getattr(before, field), field
        with closing(read_storage(sqlite_url)) as old, closing(read_storage(other)) as new:
            shown = [
                read_status(load_study(storage, name), storage, results.config).as_json()
                for storage, results in ((old, before), (new, after))
            ]
        assert shown[1] == shown[0]
