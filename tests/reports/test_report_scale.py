"""Studies of thousands of trials: what is read of them, and how much of them a page holds."""

from contextlib import closing
from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers import TEXT, DatabaseUse
from pages import build_from

from reports import study_reader, study_tables
from reports.charts import trial_plots
from reports.study_reader import read_results
from rnn_search import load
from search.status import read_status
from studies.storage.open import load_study, open_storage, read_storage, read_study_record
from tests.simulations.large_study import NAME, create_large_study

SMALL = ["training.batch_size=2", "training.sequence_length=10", "evaluation.windows=2",
         "evaluation.window_length=10"]  # fmt: skip


def make_large_study(url, tmp_path, trials=96, log_points=40, progress=1.0):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    handle = create_large_study(
        url, trials, log_points, progress=progress, corpus=str(text), overrides=SMALL
    )
    handle.storage.close()


def test_status_reads_few_rows_of_a_large_study(tmp_path):
    uses = []
    for trials, log_points in ((48, 10), (192, 20)):
        url = f"sqlite:///{tmp_path}/{trials}.db"
        make_large_study(url, tmp_path, trials, log_points, progress=0.5)
        with closing(open_storage(url)) as storage:
            study = load_study(storage, NAME)
            config = read_study_record(study).config
            use = DatabaseUse(storage)
            uses.append(use.measure(partial(read_status, study, storage, config)))
    assert uses[0][0] == uses[1][0]
    # One for each shape and each running trial, none for each of the others.
    assert uses[1][1] < 100


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_draws_at_most_so_many_points_and_lists_so_many_trials(
    sqlite_url, tmp_path, monkeypatch
):
    make_large_study(sqlite_url, tmp_path)
    monkeypatch.setattr(study_reader, "MAX_DRAWN", 20)
    monkeypatch.setattr(study_tables, "MAX_DRAWN", 20)
    monkeypatch.setattr(trial_plots, "MAX_POINTS", 200)
    with closing(open_storage(sqlite_url)) as storage:
        use = DatabaseUse(storage)
        reads = (partial(read_results, storage, NAME, drawn_only=each) for each in (False, True))
        read = [use.measure(each)[1] for each in reads]
        results = read_results(storage, NAME, drawn_only=True)
    trials = len(results.table)
    assert read[0] - read[1] > 40 * (trials - 20) - 2 * trials
    page = build_from(results)
    curves = page.chart("Training curves")
    traces = curves.figure.data
    points = pd.concat(pd.DataFrame({"name": trace.text, "loss": trace.y}) for trace in traces)
    drawn = points.dropna().groupby("name")["loss"].agg(["min", "last"])
    assert len(drawn) == 20
    assert len(points) - 20 <= 200 + 2 * 20
    losses = results.curves.groupby("number")["loss"].agg(["min", "last"]).astype(np.float32)
    for name, found in drawn.iterrows():
        number = int(name.split(":")[0].removeprefix("trial "))
        assert tuple(found) == tuple(losses.loc[number])
    assert f"20 of {trials}" in curves.caption
    listed = page.table(" trials").rows
    assert [row["number"] for row in listed] == results.table.index[:20].tolist()
    assert f"The best 20 of {trials} trials" in page.words
    costs = page.chart("Loss against parameters")
    assert sum(len(trace.x) for trace in costs.figure.data) < 100


def test_study_has_all_curves_whatever_is_drawn(sqlite_url, tmp_path, monkeypatch):
    make_large_study(sqlite_url, tmp_path, progress=0.9)
    monkeypatch.setattr(study_reader, "MAX_DRAWN", 20)
    curves = load(NAME, storage=sqlite_url).curves
    with closing(read_storage(sqlite_url)) as storage:
        for trial in storage.get_all_trials(storage.get_study_id_from_name(NAME)):
            curve = curves[curves["number"] == trial.number]
            assert dict(zip(curve["step"], curve["loss"], strict=True)) == trial.intermediate_values
