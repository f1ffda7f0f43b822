"""Studies on the command line: they keep their settings, are extended, resumed and reported.

What the commands refuse is in ``test_invalid_input.py``; several processes, in
``test_end_to_end.py``.
"""

import json
import re
import runpy
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from helpers import ONE_TRIAL, ONE_TRIAL_OVERRIDES, QUICK, ROOT, TINY, join_study
from invocation import require_refused, restored_process, unchanged
from optuna.trial import TrialState

from rnn.errors import UserError
from search.worker.shutdown import parse_duration
from studies.loader import load_config_file
from studies.storage.open import open_storage


@pytest.fixture
def search(invoke, sqlite_url, text):
    """Run a search of one trial with further arguments, without a report by default."""

    def run_one(*words: str, study: str = QUICK, report: bool = False):
        common = ("--storage", sqlite_url, "--corpus", str(text), *ONE_TRIAL)
        done = invoke("run", study, *common, *words, report=report)
        assert done.returncode == 0, done.stderr
        return done

    return run_one


@pytest.fixture
def create_only(sqlite_url, text):
    """Create a study of one trial without running it."""

    def create(*overrides: str, **options: object):
        return join_study(
            QUICK, sqlite_url, (*ONE_TRIAL_OVERRIDES, *overrides), text, **options
        ).study

    return create


def load(url: str, name: str = "quick") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=url)


def test_automatic_precision_is_reported_by_the_run_that_creates_the_study(search, sqlite_url):
    made, joined, named = search(), search(), search("--precision", "fp32", "--name", "named")
    found = re.search(r"precision (bf16|fp32) on cpu: .*; fixed for this study", made.stdout)
    assert found is not None
    chosen = found[1]
    assert f"{chosen} on cpu" in joined.stdout
    for other in (joined, named):
        assert "fixed for this study" not in other.stdout
    for name, expected in (("quick", chosen), ("named", "fp32")):
        (trial,) = load(sqlite_url, name).trials
        assert trial.user_attrs["precision"] == expected


# ------------------------------------------------------------------ extensions


def test_question_of_a_derived_study_is_kept_until_it_is_extended(search, invoke, sqlite_url):
    search()
    derive = ("refine", "quick-refined", "--storage", sqlite_url, *TINY)
    derive += ("--set=refinement.top=1", "--set=refinement.variants=[{}]")
    assert invoke(*derive, report=False).returncode == 0
    done = invoke(*derive, "--set=question='Why?'", report=False)
    assert re.search("study 'quick-refined' keeps question = '.*': only --extend", done.stdout)
    require_refused(invoke(*derive, "--extend"))  # it has no space to extend
    done = invoke(*derive, "--set=question='Why?'", "--extend", report=False)
    assert "changed question from" in done.stdout
    assert load(sqlite_url, "quick-refined").user_attrs["config"]["question"] == "Why?"


def test_many_trials_need_confirmation(create_only, monkeypatch):
    monkeypatch.setattr("search.derive.MAX_UNCONFIRMED", 3)
    four, eight = "space.layers=[1, 2, 3, 4]", "space.layers=[1, 2, 3, 4, 5, 6, 7, 8]"
    steps = r"^4 new trials: expected at most 3; .* confirm with --yes"
    with pytest.raises(UserError, match=steps):
        create_only(four)
    study = create_only(four, yes=True)
    assert len(study.trials) == 4
    create_only(four)  # it exists now: joining it creates nothing
    with pytest.raises(UserError, match=r"^4 new trials: .*confirm with --yes"):
        create_only(eight, extend=True)
    assert len(study.trials) == 4
    create_only(eight, extend=True, yes=True)
    assert len(study.trials) == 8


# ------------------------------------------------------------------ stored studies by their names


def test_stored_study_is_resumed_extended_and_repeated_by_its_name(create_only, invoke, sqlite_url):
    grid = ("space.layers=[1, 2]", "space.exclude=[{layers=2, state_size=3}]")
    mini = create_only("seed=4", *grid, name="mini")
    command = ("run", "mini", "--storage", sqlite_url)
    done = invoke(*command, "--set=checkpoint.seconds=5", report=False)
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in mini.trials] == [TrialState.COMPLETE]
    assert optuna.get_all_study_names(sqlite_url) == ["mini"]
    wider = "--set=space.layers=[1, 2, 3]"
    assert invoke(*command, wider, "--extend", report=False).returncode == 0
    assert [trial.params["layers"] for trial in mini.trials] == [1, 3]
    assert invoke(*command, "--name", "copy", "--no-wait", report=False).returncode == 0
    values, copied = (
        {trial.params["layers"]: trial.value for trial in study.trials}
        for study in (mini, load(sqlite_url, "copy"))
    )
    assert copied == values


def test_trial_is_run_once_more_alone_with_the_same_result(search, invoke, sqlite_url, text):
    alone = ("--storage", sqlite_url, "--threads=1", "--lockstep=1")
    rates = ("--set=space.training.learning_rate=[0.1, 0.2]", "--set=nuisance=['learning_rate']")
    search(*rates, "--set=space.layers=[1, 2]", *alone)
    replicate = ("--set=refinement={source='quick', top=1, replicates=2}", *TINY, *alone)
    assert invoke("refine", "replicates", *replicate, report=False).returncode == 0
    for name in ("quick", "replicates"):
        done = invoke("run", name, "--trial=1", *alone, cwd=text.parent, report=name == "quick")
        assert done.returncode == 0, done.stderr
        study = load(sqlite_url, f"{name}-trial-1")
        trials = [load(sqlite_url, name).trials[1], *study.trials]
        original, again = [(each.params, each.value, each.intermediate_values) for each in trials]
        assert again == original
        assert study.user_attrs["config"]["nuisance"] == []
        assert study.user_attrs["commands"] == [f"rnn-search run {name} --trial 1"]
    page = (text.parent / "reports/out/quick-trial-1.html").read_text()
    assert "trial 1 of quick, once more" in page
    assert "rnn-search run quick-trial-1 --trial 0" in page
    assert "trial 1 of 'quick'" in invoke("list", *alone[:2]).stdout
    again = ("run", "quick", "--name=new", *alone)
    require_refused(invoke(*again, "--trial=9"), "trial 9 not found in study 'quick', which has 4")
    require_refused(invoke(*again, "--trial=1", f"--corpus={QUICK}"), "has SHA-256", "same text")
    text.unlink()
    require_refused(invoke(*again, "--trial=1"), "study 'quick' was trained on it")


def test_derived_study_is_resumed_by_its_name_after_its_source_is_deleted(
    search, invoke, sqlite_url
):
    search("--set=space.layers=[1, 2]")
    refine = ("--storage", sqlite_url, "--set=refinement.top=1", "--set=refinement.variants=[{}]")
    words = ("refine", "quick-refined", *refine, *TINY, "--name", "other.derived")
    assert invoke(*words, report=False).returncode == 0
    optuna.delete_study(study_name="quick", storage=sqlite_url)
    again = ("refine", "other.derived", "--storage", sqlite_url)
    done = invoke(*again, report=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 finished" in done.stdout
    done = invoke("status", *again[1:])
    assert done.returncode == 0, done.stderr
    assert "complete  1\n" in done.stdout


def test_study_with_a_dot_in_its_name_is_found_by_every_command(
    search, invoke, sqlite_url, tmp_path
):
    config = tmp_path / "v1.2.toml"
    config.write_bytes(Path(QUICK).read_bytes())
    search(study=str(config))
    refine = ("refine", "quick-refined", *TINY, "--set=refinement.source='v1.2'")
    for command in (
        ("status", "v1.2"),
        ("status", str(config)),
        ("report", "v1.2", "--csv", str(tmp_path / "trials.csv")),
        ("sample", str(config)),
        (*refine, "--name", "v1.3"),
    ):
        done = invoke(*command, "--storage", sqlite_url, report=False)
        assert done.returncode == 0, done.stderr
    assert optuna.get_all_study_names(sqlite_url) == ["v1.2", "v1.3"]


# ------------------------------------------------------------------ status, report and exit code


def test_status_of_a_finished_study_changes_nothing(search, invoke, sqlite_url, tmp_path):
    search()
    command = ("status", QUICK, "--storage", sqlite_url)
    with unchanged(tmp_path):
        shown, machine = invoke(*command), invoke(*command, "--json")
    assert "planned   1\ncomplete  1\nrunning   0\n" in shown.stdout
    assert "time left none" in shown.stdout
    status = json.loads(machine.stdout)
    assert status["planned"] == status["complete"] == 1
    assert status["best"]["number"] == 0
    assert status["seconds_left"] == 0


def test_running_trial_is_counted_by_the_status_and_left_by_no_wait(
    search, invoke, create_only, sqlite_url
):
    study = create_only()
    with closing(open_storage(sqlite_url)) as storage:
        storage.claim(study._study_id, "other/1")
        done = invoke("status", QUICK, "--storage", sqlite_url, "--json")
        status = json.loads(done.stdout)
        assert (status["planned"], status["running"], status["waiting"]) == (1, 1, 0)
        assert status["best"] is None
        assert status["seconds_left"] is None
        assert "0 of 1 finished, 1 running" in search("--no-wait").stdout


def test_checkpoint_that_cannot_be_removed_does_not_end_a_finished_search(search, tmp_path):
    search()
    (study,) = (tmp_path / "studies.db.weights").iterdir()
    blocked = tmp_path / "studies.db.checkpoints" / study.name / "trial-0.checkpoint"
    blocked.mkdir(parents=True)  # a folder cannot be unlinked
    done = search(report=True)
    (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: cannot remove checkpoints or temporary files")
    assert "trial-0.checkpoint" in warning
    assert "report: " in done.stdout
    assert blocked.is_dir()


def test_diverged_trial_is_finished_and_reported(invoke, sqlite_url, text):
    common = (QUICK, "--storage", sqlite_url)
    high = ("--corpus", str(text), *ONE_TRIAL, "--set=training.learning_rate=1e30")
    done = invoke("run", *common, *high, "--set=space.layers=[2]")
    assert done.returncode == 1, done.stderr
    assert "diverged" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: study 'quick' finished without a complete trial: 1 diverged;")
    assert "learning_rate" in line
    assert "report" not in done.stdout
    (trial,) = load(sqlite_url).trials
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["failure"] == "diverged"
    status = json.loads(invoke("status", *common, "--json").stdout)
    assert (status["planned"], status["diverged"], status["failed"]) == (1, 1, 0)


def test_search_in_which_every_trial_fails_exits_with_1_and_the_error(invoke, sqlite_url, text):
    words = ("run", QUICK, "--storage", sqlite_url, "--corpus", str(text), *ONE_TRIAL)
    for _ in range(2):  # the second run joins the finished study
        done = invoke(*words, "--set=training.batch_size=1000000000000")  # too large for the memory
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert "without a complete trial: 1 failed, the last with RuntimeError: " in line
        assert "another --name" in line


def test_search_with_one_complete_trial_succeeds(search, sqlite_url):
    search()
    study = load(sqlite_url)
    grid = ("--set=space.layers=[1, 2]", "--no-wait")
    stopped = search(*grid, "--extend", "--until=0.000001s", report=True)
    assert "report" not in stopped.stdout, "it is not finished"
    study.tell(study.ask(), state=TrialState.FAIL)  # the waiting trial of two layers
    assert "1 failed" in search(*grid).stdout


def test_duration_is_a_sum_of_units_up_to_ten_years():
    given = ("90s", "45m", "1.5h", "1d2h", "3650d")
    assert [*map(parse_duration, given)] == [90, 2700, 5400, 93600, 3650 * 86400]
    for text in ("3651d", "0s", "90", "-1h", "h1", "1h1h", ""):
        with pytest.raises(ValueError, match="expected"):
            parse_duration(text)


# ------------------------------------------------------------------ interrupts and bugs


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_interrupt_ends_a_command_with_one_line(search, invoke, sqlite_url, monkeypatch):
    search()
    monkeypatch.setattr("search.status.read_status", interrupt)
    done = invoke("status", "quick", "--storage", sqlite_url)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "error: interrupted"


def read_wrong_column(*arguments: object, **options: object) -> None:
    engine = sa.create_engine("sqlite://")
    with closing(engine.connect()) as connection:
        connection.execute(sa.text("SELECT no_column FROM (SELECT 1)"))


def read_missing_key(*arguments: object, **options: object) -> None:
    {}["key"]


BUGS = {
    "status quick": ("search.status.read_status", read_missing_key),
    "report quick": ("reports.study_reader.read_results", read_wrong_column),
    "run quick --stored": ("search.run.format_progress", read_missing_key),
}
"""Command lines, a function that each of them calls, and a bug in its place."""


def test_bug_ends_a_command_with_its_traceback_and_asks_for_a_report(
    search, invoke, sqlite_url, monkeypatch
):
    search()
    for line, (function, bug) in BUGS.items():
        with monkeypatch.context() as patch:
            patch.setattr(function, bug)
            done = invoke(*line.split(), "--storage", sqlite_url)
        assert done.returncode == 1
        first, *_, last = done.stderr.splitlines()
        assert first == "Traceback (most recent call last):"
        assert f"in {bug.__name__}" in done.stderr
        error = "KeyError: 'key'" if bug is read_missing_key else "OperationalError: "
        assert last.startswith(f"error: bug in rnn-search ({error}")
        assert "please report it" in last
    assert [trial.state for trial in load(sqlite_url).trials] == [TrialState.COMPLETE]


# ------------------------------------------------------------------ rnn-search


def test_console_command_has_every_command(invoke):
    done = invoke("--help")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("Commands:\n")[2]
    names = re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)
    assert len(names) == 16
    for name in names:
        done = invoke(name, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Usage: rnn-search {name} ")


def test_neither_help_nor_the_package_imports_a_library_that_is_slow():
    program = """
import sys
import studies.failures
from rnn_search.commands import rnn_search_command
for command in ([], ["run"], ["refine"], ["continue"], ["status"], ["report"], ["dashboard"]):
    rnn_search_command.main([*command, "--help"], standalone_mode=False)
slow = {"alembic", "numpy", "optuna", "pandas", "plotly", "sqlalchemy", "torch"}
assert not slow & sys.modules.keys()
import rnn_search
assert not {"pandas", "plotly", "torch"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--precision" in done.stdout


@pytest.mark.parametrize(("file", "name"), [("run_search.py", "run"), ("refine.py", "refine")])
def test_files_of_a_clone_are_aliases(monkeypatch, capsys, file, name):
    monkeypatch.setattr(sys, "argv", [file, "--help"])
    with restored_process(), pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"Usage: rnn-search {name} ")


def test_help_says_what_is_run_without_a_study(invoke):
    first = load_config_file("stage-one").resolve()
    second = load_config_file("stage-two").settings
    trials, refinement = first.grid.count(), second["refinement"]
    derived = int(refinement["top"] * trials) * len(refinement["variants"])
    steps = second["training"]["steps"]
    for command, size in (
        ("run", f"stage-one: {trials} trials of {first.training.steps:,} steps"),
        ("refine", f"stage-two: {derived} trials of {steps:,} steps"),
    ):
        text = " ".join(invoke(command, "--help").stdout.split())
        assert f"Without it, the study is {size}" in text


def test_first_line_says_what_is_run_without_a_study(invoke, sqlite_url, text):
    common = ("--storage", sqlite_url, *TINY)
    one = (*ONE_TRIAL, "--set=space.layers=[1]", "--set=space.exclude=[]", "--corpus", str(text))
    done = invoke("run", *common, *one, report=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "running stage-one, as no STUDY is given; its file has 432 trials"
    )
    variant = "--set=refinement.variants=[{}]"
    done = invoke("refine", *common, variant, "--set=refinement.top=1", report=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "running stage-two, as no STUDY is given; its file has 172 trials"
    )
    again = invoke("run", "stage-one", "--stored", "--storage", sqlite_url, report=False)
    assert "as no STUDY is given" not in again.stdout
