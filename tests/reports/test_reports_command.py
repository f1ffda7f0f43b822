"""``python -m reports`` as it is typed: what it writes, what it refuses."""

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


def test_a_page_and_rows_are_written_and_named(sqlite_url, tmp_path, run):
    make_study(sqlite_url)
    command = ("-m", "reports", "made", "--storage", sqlite_url)
    done = run(*command, "--output", str(tmp_path / "new" / "page.html"))
    path, headline = done.stdout.splitlines()
    assert (done.returncode, path) == (0, f"{tmp_path}/new/page.html")
    # The grid is of four pairs in each switch and lacks the diverged trial: 1.5, 1.6, … by trial.
    assert headline == (
        "best: 1×4 no gates, new state (trial 0), 1.5000 nats per byte, minimum smoothed training "
        "loss; largest effects: residual +0.400 nats [+0.400, +0.400], "
        "layers 1 → 2 +0.200 nats [+0.200, +0.200]"
    )
    rows = [str(tmp_path / "rows.csv"), str(tmp_path / "rows.parquet")]
    done = run(*command, "--csv", rows[0], "--dataframe", rows[1])
    assert (done.returncode, done.stdout.split()) == (0, rows)
    assert len(pd.read_csv(rows[0])) == len(pd.read_parquet(rows[1])) == 8


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nothing",), "study 'nothing' is not in"),
        (("made", "--csv", "/proc/no/rows.csv"), "/proc/no/rows.csv cannot be written"),
        (("made", "--csv", "rows.csv", "--watch"), "leave out --watch and --output"),
        (("made", "--output", "."), "is a directory"),
        ((), "Missing argument 'STUDY...'"),
    ],
)
def test_bad_words_are_refused_in_one_line(sqlite_url, run, words, line):
    make_study(sqlite_url)
    done = run("-m", "reports", *words, "--storage", sqlite_url)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("attribute", ["config", "corpus", "tokenizer"])
@pytest.mark.parametrize("command", ["reports", "reports.hypotheses"])
def test_study_of_another_version_is_refused_in_one_line(
    sqlite_url, tmp_path, run, command, attribute
):
    make_study(sqlite_url)
    storage = open_storage(sqlite_url)
    study = load_study(storage, "made")
    unknown = {**study.user_attrs.get(attribute, {}), "size": "large", "length": "long"}
    study.set_user_attr(attribute, unknown)
    storage.close()
    output = tmp_path / "page"
    done = run("-m", command, "made", "--storage", sqlite_url, "--output", str(output))
    assert done.returncode == 2
    assert f"study 'made' has an invalid attribute {attribute}." in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not output.exists()


@pytest.mark.usefixtures("without_optuna_figures")
def test_a_watched_study_is_reported_anew_until_it_is_finished(
    sqlite_url, tmp_path, monkeypatch, capsys
):
    make_study(sqlite_url, finished=0)
    page = tmp_path / "page.html"
    monkeypatch.setattr(command_line, "WATCH_SECONDS", 0.2)
    watching = threading.Thread(
        target=command_line._watch, args=(sqlite_url, ["made"], page), daemon=True
    )
    watching.start()
    said = []

    def says(words):
        said.append(capsys.readouterr().out)
        return words in "".join(said)

    wait_until(lambda: says("no report yet: study 'made' has no complete trial"))
    finish_one(sqlite_url, 1.5)
    wait_until(lambda: says("1 of 8 points finished"))
    html = page.read_text(encoding="utf-8")
    assert "Unfinished: 1 of 8 trials." in html
    assert 'data-refresh-seconds="0.2"' in html
    for _ in range(7):
        finish_one(sqlite_url, 1.4)
    watching.join(HANG_TIMEOUT)
    assert not watching.is_alive()
    assert says("8 of 8 points finished")
    html = page.read_text(encoding="utf-8")
    assert "Unfinished" not in html
    assert "data-refresh-seconds=" not in html
