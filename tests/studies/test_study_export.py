"""A study that is exported and imported again is the same study, in reports and in Python."""

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from factories import (
    gated_params,
    make_empty,
    make_pruned,
    make_refinement,
    make_replicates,
    make_runs,
    make_stated,
    make_study,
    make_union,
    results_of,
)
from managed_studies import create_with_everything

from rnn.errors import UserError
from rnn_search import import_results, import_study, list_studies, load
from studies.attributes import AuditState
from studies.exchange import export_study, import_studies
from studies.management import retry_trials
from studies.storage.open import load_study, open_storage
from studies.storage.storage import AuditDecision


def make_retried(url: str) -> None:
    """Complete and paused trials, and failed ones that wait again and keep what they were."""
    make_empty(url)
    create_with_everything(url, Path(url.removeprefix("sqlite:///")).parent / "files")
    retry_trials(url, "made", ["failed", "diverged"])


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


def make_several(url: str) -> None:
    """A study and its refinement, replicates, cells of a user's own, and hypotheses."""
    make_study(url, diverged=None)
    make_refinement(url)
    make_replicates(url)
    make_union(url)
    make_stated(url)


@pytest.mark.parametrize("make", [make_retried, make_audited, make_several])
def test_imported_study_has_the_results_and_the_export_of_the_study(make, sqlite_url, tmp_path):
    make(sqlite_url)
    names = [study.name for study in list_studies(storage=sqlite_url)]
    files = [tmp_path / f"{name}.jsonl.gz" for name in names]
    for name, file in zip(names, files, strict=True):
        export_study(sqlite_url, name, file)
    other = f"sqlite:///{tmp_path}/imported.db"
    assert [study.name for study in import_studies(other, files)] == names
    for name, file in zip(names, files, strict=True):
        export_study(other, name, tmp_path / "again.jsonl.gz")
        assert (tmp_path / "again.jsonl.gz").read_bytes() == file.read_bytes()
        (tmp_path / "again.jsonl.gz").unlink()
        old, new = (results_of(url, name, require_complete=False) for url in (sqlite_url, other))
        finished = [*old.table.index[old.table["state"].isin(["COMPLETE", "PRUNED", "FAIL"])]]
        private = ["host", "worker", "error"]
        for found, expected in (
            (new.table.loc[finished], old.table.loc[finished]),
            (new.sources, old.sources),
        ):
            found, expected = (
                frame.drop(columns=private, errors="ignore").dropna(axis=1, how="all")
                for frame in (found, expected)
            )
            pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        curves = old.curves[old.curves["number"].isin(finished)].reset_index(drop=True)
        pd.testing.assert_frame_equal(new.curves, curves)
        for field in ("windows", "hypotheses", "audit_looks"):
            assert getattr(new, field) == getattr(old, field), field
        assert new.counts == replace(old.counts, paused=0), "paused trials wait"


def make_recorded(url: str) -> None:
    """A study whose order depends on the loss, one that lacks a loss, and a hypothesis of it."""
    raw = {"space": {"layers": [1, 2, 3], "state_size": [4]}}
    losses = {"training_loss": 1.2, "training_mean_loss": 1.3, "validation_loss": 1.5}
    runs = [
        (gated_params(1), 1.5, losses),
        (gated_params(2), 1.4, losses | {"training_loss": 1.25, "validation_loss": 1.4}),
        (gated_params(3), math.nan, {}),  # diverged
    ]
    make_runs(url, "made", raw, runs)
    make_runs(url, "old", raw, [runs[0], (gated_params(2), 1.4, {})])


def test_study_is_imported_under_another_loss_that_its_trials_recorded(
    sqlite_url, tmp_path, invoke
):
    make_recorded(sqlite_url)
    file = tmp_path / "made.jsonl.gz"
    export_study(sqlite_url, "made", file)
    options = ("--name", "by-training", "--objective", "training", "--storage", sqlite_url)
    assert invoke("import", str(file), *options).returncode == 0
    own, other = (load(name, storage=sqlite_url) for name in ("made", "by-training"))
    assert own.results["value"].dropna().to_dict() == {1: 1.4, 0: 1.5}
    assert other.results["value"].dropna().to_dict() == {0: 1.2, 1: 1.25}
    assert list(other.results.index) == [0, 1, 2]
    assert (own.best.number, other.best.number) == (1, 0)
    assert other.best.value == other.status.best.value == 1.2
    assert other.config.objective == "training"
    assert other.optuna.metric_names == ["smoothed training loss"]
    metric = results_of(sqlite_url, "by-training").metric
    assert metric.name == "smoothed training loss"
    assert other.curves.equals(own.curves)
    by_mean = import_study(file, name="by-mean", objective="training-mean", storage=sqlite_url)
    assert by_mean.name == "by-mean"
    assert set(load("by-mean", storage=sqlite_url).results["value"].dropna()) == {1.3}


def test_import_under_another_loss_is_refused_in_one_line(sqlite_url, tmp_path, invoke):
    make_recorded(sqlite_url)
    make_pruned(sqlite_url, name="pruned")
    table = tmp_path / "table.csv"
    table.write_text("depth,value\n1,2.0\n2,1.5\n")
    import_results(table, name="results", storage=sqlite_url)
    lines = {
        "old": "study 'old' cannot have the objective 'training': trial 1 did not record its "
        "smoothed training loss",
        "pruned": "study 'pruned' cannot have the objective 'training': it was pruned by its "
        "validation loss",
        "results": "study 'results' cannot have the objective 'training': its results are of "
        "another program, one value a trial",
    }
    names = [study.name for study in list_studies(storage=sqlite_url)]
    for name, line in lines.items():
        file = tmp_path / f"{name}.jsonl"
        export_study(sqlite_url, name, file)
        options = ("--name", "other", "--objective", "training", "--storage", sqlite_url)
        done = invoke("import", str(file), *options)
        assert (done.returncode, done.stderr.splitlines()) == (2, [f"error: {line}"])
    done = invoke("import", str(table), "--objective", "training", "--storage", sqlite_url)
    assert done.returncode == 2
    assert "--objective is for exported studies, and " in done.stderr
    with pytest.raises(UserError, match="unknown objective 'loss': expected"):
        import_study(file, objective="loss", storage=sqlite_url)
    assert [study.name for study in list_studies(storage=sqlite_url)] == names
