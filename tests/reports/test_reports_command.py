"""``python -m reports``: output and errors."""

import threading

import pandas as pd
import pytest
from factories import make_study
from hooks import HANG_TIMEOUT
from optuna.trial import TrialState
from process_runner import wait_until

from reports import cli as command_line
from studies.storage.open import load_study, open_storage


def finish_one(url, value):
    storage = open_storage(url)
    study_id = storage.get_study_id_from_name("made")
    trial_id = storage.claim(study_id, "me")
    storage.finish(trial_id, "me", TrialState.COMPLETE, value, {"seconds": 1.0}, {50: value})
    storage.close()


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_and_tables_are_written_and_their_paths_printed(sqlite_url, tmp_path, invoke):
    make_study(sqlite_url)
    command = ("-m", "reports", "made", "--storage", sqlite_url)
    done = invoke(*command, "--output", str(tmp_path / "new" / "page.html"))
    path, headline = done.stdout.splitlines()
    assert (done.returncode, path) == (0, f"{tmp_path}/new/page.html")
    assert headline.startswith("best: 1×4 no gates, new state (trial 0), 1.5000 nats per byte")
    rows = [str(tmp_path / "rows.csv"), str(tmp_path / "rows.parquet")]
    done = invoke(*command, "--csv", rows[0], "--dataframe", rows[1])
    assert (done.returncode, done.stdout.split()) == (0, rows)
    assert len(pd.read_csv(rows[0])) == len(pd.read_parquet(rows[1])) == 8


def test_invalid_arguments_are_rejected_in_one_line(sqlite_url, invoke):
    make_study(sqlite_url)
    for arguments, line in (
        (("nothing",), "study 'nothing' is not in"),
        (("made", "--csv", "/proc/no/rows.csv"), "cannot write /proc/no/rows.csv"),
        (("made", "--csv", "rows.csv", "--watch"), "do not go with --watch and --output"),
        (("made", "--output", "."), "is a directory"),
        ((), "Missing argument 'STUDY...'"),
    ):
        done = invoke("-m", "reports", *arguments, "--storage", sqlite_url)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), arguments
        assert line in done.stderr


@pytest.mark.parametrize("attribute", ["config", "tokenizer"])
def test_study_of_another_version_is_rejected_in_one_line(sqlite_url, tmp_path, invoke, attribute):
    make_study(sqlite_url)
    storage = open_storage(sqlite_url)
    study = load_study(storage, "made")
    unknown = {**study.user_attrs.get(attribute, {}), "size": "large", "length": "long"}
    study.set_user_attr(attribute, unknown)
    storage.close()
    output = tmp_path / "page"
    for command in ("reports", "reports.hypotheses"):
        options = ("--storage", sqlite_url, "--output", str(output))
        done = invoke("-m", command, "made", *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"study 'made' has an invalid attribute {attribute}." in done.stderr
    assert not output.exists()


@pytest.mark.usefixtures("without_optuna_figures")
def test_watched_report_is_updated_until_the_study_is_finished(
    sqlite_url, tmp_path, monkeypatch, capsys
):
    make_study(sqlite_url, finished=0)
    page = tmp_path / "page.html"
    monkeypatch.setattr(command_line, "WATCH_SECONDS", 0.2)
    watching = threading.Thread(
        target=command_line._watch, args=(sqlite_url, ["made"], page), daemon=True
    )
    watching.start()
    output = []

    def has_printed(text):
        output.append(capsys.readouterr().out)
        return text in "".join(output)

    wait_until(lambda: has_printed("no report yet: study 'made' has no complete trial"))
    finish_one(sqlite_url, 1.5)
    wait_until(lambda: has_printed("1 of 8 trials finished"))
    html = page.read_text(encoding="utf-8")
    assert "Unfinished: 1 of 8 trials." in html
    assert 'data-refresh-seconds="0.2"' in html
    for _ in range(7):
        finish_one(sqlite_url, 1.4)
    watching.join(HANG_TIMEOUT)
    assert not watching.is_alive()
    assert has_printed("8 of 8 trials finished")
    html = page.read_text(encoding="utf-8")
    assert "Unfinished" not in html
    assert "data-refresh-seconds=" not in html
