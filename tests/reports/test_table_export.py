"""Trial tables as CSV and Parquet files."""

from pathlib import Path

import pandas as pd
import pytest
from factories import MIN_GRU, gated_params, make_runs

from reports.data.study_reader import read_results
from reports.data.table_export import write_csv, write_parquet
from reports.errors import ReportError
from studies.storage.open import read_storage


def test_pandas_reads_the_written_tables(derived, tmp_path):
    storage = read_storage(derived)
    results = [read_results(storage, name, with_curves=()) for name in ("made", "derived")]
    write_csv(results, tmp_path / "rows.csv")
    write_parquet(results, tmp_path / "rows.parquet")
    for rows in (pd.read_csv(tmp_path / "rows.csv"), pd.read_parquet(tmp_path / "rows.parquet")):
        assert rows["study"].tolist() == ["made"] * 8 + ["derived"] * 3
        assert rows["value"].iloc[:3].tolist() == pytest.approx([1.5, 1.6, 1.7])
        assert rows["residual"].tolist()[:8] == [False] * 4 + [True] * 4
        assert rows["source_trials"].iloc[8] == "[0, 1]"
    with pytest.raises(ReportError, match="cannot write"):
        write_csv(results, Path("/proc/no/rows.csv"))


def test_csv_has_one_line_per_trial(sqlite_url, tmp_path):
    text = 'a, "quoted" line\r\nC:\\new\tétude\x00\x0b\x85\u2028end\n'
    runs = [(gated_params(), 1.0, {"sample": text}), (gated_params(2), 2.0, {})]
    make_runs(sqlite_url, "writers", {"space": {"layers": [1], "state_size": [4]}}, runs)
    results = [read_results(read_storage(sqlite_url), "writers")]
    write_csv(results, tmp_path / "rows.csv")
    write_parquet(results, tmp_path / "rows.parquet")
    lines = (tmp_path / "rows.csv").read_text("utf-8").splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(",sample")
    (written, missing) = pd.read_csv(tmp_path / "rows.csv")["sample"]
    assert "étude" in written
    assert written.encode("latin-1", "backslashreplace").decode("unicode_escape") == text
    assert pd.isna(missing)
    assert pd.read_parquet(tmp_path / "rows.parquet")["sample"].iloc[0] == text


def test_option_of_another_type_in_each_study_is_text(sqlite_url, tmp_path):
    """``norm`` is a bool of one cell and a text of another."""
    types = {"own": ("bool", False, True), "other": ("str", "none", "all")}
    params = {"cell": "MinGRU", "layers": 1, "state_size": 4}
    for name, (kind, default, value) in types.items():
        cell = {**MIN_GRU, "options": {"norm": {"type": kind, "default": default}}}
        space = {"cell": ["cells/min_gru.py:MinGRU"], "norm": [default, value]}
        raw = {"cells": {"MinGRU": cell}, "space": space | {"layers": [1], "state_size": [4]}}
        runs = [(params | {"norm": each}, 1.0, {}) for each in (default, value)]
        make_runs(sqlite_url, name, raw, runs)
    storage = read_storage(sqlite_url)
    results = [read_results(storage, name) for name in types]
    write_csv(results, tmp_path / "rows.csv")
    write_parquet(results, tmp_path / "rows.parquet")
    for rows in (pd.read_csv(tmp_path / "rows.csv"), pd.read_parquet(tmp_path / "rows.parquet")):
        assert rows["norm"].tolist() == ["False", "True", "none", "all"]
