"""Command line: invalid input is rejected in one line, studies keep their settings."""

import contextlib
import json
import os
import re
import sqlite3
from pathlib import Path

import optuna
import pytest
import torch
from helpers import QUICK, TEXT, TINY
from optuna.trial import TrialState

from rnn.training.precision import supports_bf16
from studies.attributes import Failure
from studies.errors import ConfigError
from studies.space import GATED_PARAMS
from studies.storage.open import open_storage

ONE_TRIAL = (
    *TINY,
    "--set=space.state_source=['new']",
    "--set=space.input_gate=[false]",
    "--set=space.forget_gate=[false]",
    "--set=space.output_gate=[false]",
    "--set=space.state_gate=[false]",
    "--set=space.residual=[true]",
    "--set=space.state_size=[3]",
)


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def dump_database(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / "studies.db")) as database:
        return list(database.iterdump())


@pytest.fixture
def search(run, sqlite_url, text):
    """Run a search of one trial with further arguments, without a report by default."""

    def run_one(*words: str, study: str = QUICK, report: bool = False):
        return run(
            "run_search.py",
            study,
            "--storage",
            sqlite_url,
            "--corpus",
            str(text),
            *ONE_TRIAL,
            *words,
            report=report,
        )

    return run_one


INVALID = [
    (["run_search.py", "stage-three"], "study 'stage-three' not found"),
    (["run_search.py", "no/such.toml"], "'no/such.toml' not found"),
    (["run_search.py", "{tmp}/malformed.toml"], "is not valid TOML"),
    (["run_search.py", QUICK, "--set", "training.stepz=1"], "unknown key training.stepz"),
    (["run_search.py", QUICK, "--set", "training.steps"], "KEY=VALUE"),
    (["run_search.py", QUICK, "--set", "training.steps=many"], "not a TOML value"),
    (
        ["run_search.py", QUICK, "--set", "seed=" + "9" * 5000],
        "99…': expected integers of at most 64 b",
    ),
    (
        ["run_search.py", QUICK, "--set", "space.exclude=[{{layers=1.5}}]"],
        "space excludes layers = 1.5: expected one of 1",
    ),
    (["run_search.py", QUICK, "--corpus", "{tmp}/missing"], "missing' not found"),
    (["run_search.py", QUICK, "--corpus", "{tmp}/empty"], "is empty"),
    (["run_search.py", QUICK, "--corpus", "{tmp}/short"], "tokens (vocabulary of 256)"),
    (["run_search.py", QUICK, "--device", "cuda:7"], "device 'cuda:7' not found on this machine"),
    (["run_search.py", QUICK, "--device", "tpu"], "device 'tpu'"),
    (["run_search.py", QUICK, "--precision", "fp8"], "fp8"),
    (["run_search.py", QUICK, "--workers", "0"], "--workers"),
    (["run_search.py", QUICK, "--threads", "0"], "--threads"),
    (["run_search.py", QUICK, "--json"], "--json requires --status"),
    (["run_search.py", QUICK, "--frobnicate"], "--frobnicate"),
    (["run_search.py", QUICK, "--status"], "does not exist: run a search first"),
    (["run_search.py", QUICK, "--storage", "sqlite:////no/folder/s.db"], "/no/folder"),
    (["run_search.py", QUICK, "--storage", "sqlite:///{tmp}/notes.db"], "cannot be opened"),
    (["run_search.py", QUICK, "--storage", "mysql://me:s3cret@host/db"], "mysql://me:***@host"),
    (
        [
            "run_search.py",
            QUICK,
            "--status",
            "--storage",
            "postgresql+psycopg://me:s3cret@127.0.0.1:1/db",
        ],
        "cannot be opened",
    ),
    (
        ["run_search.py", QUICK, "--storage", "postgresql+psycopg://me:p@s3cret@host/db"],
        "expected %40 instead",
    ),
    (
        [
            "run_search.py",
            QUICK,
            "--status",
            "--storage",
            "postgresql://me@127.0.0.1:1/d?sslpassword=s3cret",
        ],
        "cannot be opened",
    ),
    (["run_search.py", QUICK, "--status", "--storage", "sqlite:///" + 300 * "x"], "too long"),
    (["run_search.py", QUICK, "--threads", "99999999999"], "--threads"),
    (["run_search.py", QUICK, "--artifacts", 300 * "x"], "is not writable"),
    (["run_search.py", QUICK, "--artifacts", "{tmp}/no/folder"], "is not writable"),
    (["run_search.py", QUICK, "--artifacts", "s3://"], "is not a bucket"),
    (["run_search.py", QUICK, "--until", "soon"], "expected a duration such as 45m, 3h or 1h30m"),
    (["run_search.py", QUICK, "--until", "9" * 5000 + "d"], "is longer than ten years"),
    (["run_search.py", QUICK, "--lockstep", "9" * 5000], "expected auto or a positive integer"),
    (["run_search.py", QUICK, "--set", "lease.seconds=0.1"], "lease.seconds"),
    (["run_search.py", "{tmp}/pipe.toml"], "pipe.toml cannot be read: not a regular file"),
    (["run_search.py", "{tmp}/folder.toml"], "folder.toml cannot be read: Is a directory"),
    (["run_search.py", "{tmp}/escapes.toml"], r"unknown key a\nb\x1b[2J: expected one of"),
    (["run_search.py", QUICK, "--storage", "sqlite:///{tmp}/pipe.toml"], "not a regular file"),
    (["run_search.py", QUICK, "--storage", "sqlite:////dev/null"], "not a regular file"),
    (["run_search.py", QUICK, "--status", "--storage", "sqlite:///{tmp}/pipe.toml"], "regular"),
    (["-m", "reports.hypotheses", "quick", "--hypotheses", "{tmp}/pipe.toml"], "not a regular"),
    (["-m", "reports.hypotheses", "quick", "--hypotheses", "{tmp}/deep.toml"], "32 nested tables"),
    (["run_search.py", QUICK, "--name", "a\nb"], r"'a\nb' has control characters"),
    (["run_search.py", QUICK, "--name", "\x1b[2J"], r"'\x1b[2J' has control characters"),
    (["run_search.py", QUICK, "--name", "a\udcff"], r"name is not valid UTF-8: expected text"),
    (["run_search.py", "a\udcff"], r"study is not valid UTF-8: expected text, not 'a\udcff'"),
    (["run_search.py", QUICK, "--corpus", "a\udcff"], "corpus is not valid UTF-8"),
    (["run_search.py", QUICK, "--artifacts", "a\udcff"], "artifacts is not valid UTF-8"),
    (["run_search.py", QUICK, "--storage", "sqlite:///\udcff"], "storage is not valid UTF-8"),
    (["run_search.py", QUICK, "--set", "question='\udcff'"], "overrides is not valid UTF-8"),
    (["-m", "reports", "quick", "--output", "\udcff"], "output is not valid UTF-8"),
    (["refine.py", "quick-refined", "--set", 'refinement.source="a\\u0000"'], "printable"),
    (["refine.py", "quick-refined"], "does not exist: run a search first"),
    (["refine.py", "quick"], "'quick' has no [refinement]"),
    (["refine.py", "stage-three"], "study 'stage-three' not found"),
    (["-m", "reports", "quick"], "does not exist: run a search first"),
    (["-m", "reports"], "STUDY"),
    (["-m", "search.backup", "{tmp}/copy.db"], "does not exist: run a search first"),
    (["-m", "search.backup"], "FILE"),
    (
        ["-m", "search.backup", "{tmp}/copy.db", "--storage", "sqlite:///{tmp}/notes.db"],
        "cannot be opened",
    ),
    (
        ["-m", "search.backup", "{tmp}/copy.db", "--storage", "postgresql://me:s3cret@host/db"],
        "storage postgresql+psycopg://me:***@host/db is not an SQLite file: copy it with pg_dump",
    ),
]


@pytest.mark.parametrize(("words", "message"), INVALID, ids=lambda value: " ".join(value)[:80])
def test_invalid_input_is_rejected_in_one_line_and_changes_nothing(run, tmp_path, words, message):
    (tmp_path / "malformed.toml").write_text("[space\n")
    (tmp_path / "empty").touch()
    (tmp_path / "deep.toml").write_text(f"a = {'[' * 100_000}\n")
    (tmp_path / "escapes.toml").write_text('"a\\nb\\u001b[2J" = 1\n')
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "short").write_bytes(b"short" * 100)
    (tmp_path / "notes.db").write_text("a shopping list, and no database\n" * 50)
    (tmp_path / "text").write_bytes(TEXT * 1000)
    words = [word.format(tmp=tmp_path) for word in words]
    if "--storage" not in words:
        words += ["--storage", f"sqlite:///{tmp_path}/studies.db"]
    if words[0] == "run_search.py" and "--corpus" not in words:
        words += ["--corpus", str(tmp_path / "text")]  # the default one takes long to read
    before = read_files(tmp_path)
    done = run(*words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "s3cret" not in done.stderr + done.stdout
    assert done.stdout == ""
    assert read_files(tmp_path) == before


def test_debug_shows_the_traceback(run, sqlite_url):
    done = run("run_search.py", QUICK, "--corpus", "missing", "--storage", sqlite_url, "--debug")
    assert "Traceback" in done.stderr
    assert "CorpusError" in done.stderr


def test_refinement_of_a_missing_study_is_rejected(search, run, sqlite_url, tmp_path):
    assert search("--name", "other").returncode == 0
    before = read_files(tmp_path)
    done = run("refine.py", "quick-refined", "--storage", sqlite_url)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "study 'quick' is not in" in done.stderr
    assert "existing studies: other" in done.stderr
    assert read_files(tmp_path) == before


@pytest.fixture
def create_only(sqlite_url, text):
    """Create a study of one trial without running it."""
    from search.new_study import StudyOptions
    from search.study import create_or_join
    from studies.loader import load_config_file

    def create(*overrides: str, **options: bool):
        settings = [word.removeprefix("--set=") for word in ONE_TRIAL]
        file = load_config_file(QUICK, [*settings, *overrides])
        return create_or_join(file, sqlite_url, StudyOptions(corpus=str(text), **options)).study

    return create


def finish_trials(url: str, name: str, count: int) -> None:
    study = optuna.load_study(study_name=name, storage=url)
    for value in range(count):
        study.tell(study.ask(), float(value))


def test_unfinished_study_is_refined_only_with_partial(run, sqlite_url, create_only, tmp_path):
    """A study of eight trials, of which none, then two are complete."""
    create_only("space.layers=[1,2,3,4]", "space.residual=[true,false]")

    done = run("-m", "reports", "quick", "--storage", sqlite_url)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no complete trial" in done.stderr

    finish_trials(sqlite_url, "quick", 2)
    refine = ("refine.py", "quick-refined", "--storage", sqlite_url, *TINY)
    done = run(*refine)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "finished 2 of 8 trials (0 running, 6 waiting)" in done.stderr
    assert "--partial" in done.stderr
    assert optuna.get_all_study_names(sqlite_url) == ["quick"]

    done = run(*refine, "--partial", report=False)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "page.html"
    done = run("-m", "reports", "quick", "--storage", sqlite_url, "--output", str(page))
    assert done.returncode == 0
    assert "Unfinished: 2 of 8 trials" in page.read_text()


def test_study_is_joined_with_the_same_settings_only(search, tmp_path, sqlite_url):
    assert search("--precision", "fp32").returncode == 0
    before = read_files(tmp_path)
    done = search("--set=training.steps=6", "--set=seed=3", "--precision", "bf16")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    for difference in (
        "training.steps: 4 in the study, 6 here",
        "seed: 0 in the study, 3 here",
        "precision: 'fp32' in the study, 'bf16' here",
    ):
        assert difference in done.stderr
    assert read_files(tmp_path) == before
    assert search("--set=training.steps=6", "--name", "longer").returncode == 0
    assert sorted(optuna.get_all_study_names(sqlite_url)) == ["longer", "quick"]


def test_study_is_joined_with_the_same_corpus_only(search, tmp_path, text):
    assert search().returncode == 0
    copy = tmp_path / "copy"
    copy.write_bytes(text.read_bytes())
    assert search("--corpus", str(copy)).returncode == 0, "same content at another path"
    copy.write_bytes(text.read_bytes()[::-1])
    done = search("--corpus", str(copy))
    assert done.returncode == 2
    assert "corpus.sha256" in done.stderr


def test_precision_is_fixed_when_the_study_is_created(search, sqlite_url):
    assert search("--precision", "bf16").returncode == 0
    assert search().returncode == 0, "auto accepts the study's precision"
    (trial,) = optuna.load_study(study_name="quick", storage=sqlite_url).trials
    assert trial.user_attrs["precision"] == "bf16"


def test_automatic_precision_is_reported_once(search, sqlite_url):
    """By the process that creates the study."""
    chosen = "bf16" if supports_bf16(torch.device("cpu")) else "fp32"
    made, joined, named = search(), search(), search("--precision", "fp32", "--name", "named")
    assert f"precision {chosen}: cpu " in made.stdout
    assert "fixed for this study" in made.stdout
    assert f"{chosen} on cpu" in joined.stdout
    for other in (joined, named):
        assert "fixed for this study" not in other.stdout
    (trial,) = optuna.load_study(study_name="quick", storage=sqlite_url).trials
    assert trial.user_attrs["precision"] == chosen


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--lockstep", "0"], "invalid value '0': expected auto or a positive integer"),
        (["--lockstep", "-1"], "invalid value '-1'"),
        (["--lockstep", "all"], "invalid value 'all'"),
        (["--lockstep", "2.5"], "invalid value '2.5'"),
        (["--precision", "tf32"], "precision tf32 is not supported on cpu: expected a GPU"),
        (["--set=precision='tf32'"], "precision tf32 is not supported on cpu: expected a GPU"),
    ],
)
def test_unsupported_lockstep_or_precision_is_rejected(search, tmp_path, words, line):
    before = read_files(tmp_path)
    done = search(*words, "--device", "cpu")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert line in done.stderr
    assert read_files(tmp_path) == before


def test_lockstep_is_not_part_of_the_study(search, sqlite_url):
    """Each worker may choose another value."""
    grid = ("--set=space.state_source=['new', 'old', 'both']",)
    assert search(*grid, "--lockstep", "2").returncode == 0
    assert search(*grid, "--lockstep", "1").returncode == 0
    trials = optuna.load_study(study_name="quick", storage=sqlite_url).trials
    assert sorted(trial.user_attrs["lockstep"] for trial in trials) == [1, 2, 2]


def test_extension_runs_the_new_trials_only(search, sqlite_url, tmp_path):
    assert search().returncode == 0
    (first,) = optuna.load_study(study_name="quick", storage=sqlite_url).trials
    wider = ("--set=space.layers=[1, 2]", "--set=space.state_size=[3, 4]")
    before = dump_database(tmp_path)
    done = search(*wider)
    assert done.returncode == 2
    assert "space.layers: [1] in the study, [1, 2] here" in done.stderr
    assert "--extend" in done.stderr
    for other in ("--set=space.layers=[2, 1]", "--set=space.layers=[2]"):
        done = search(other, "--extend")
        assert done.returncode == 2
        assert "the same values in the same order" in done.stderr
    done = search("--set=training.steps=6", *wider, "--extend")
    assert done.returncode == 2
    assert "keep_checkpoints" in done.stderr
    done = search("--set=training.batch_size=6", *wider, "--extend")
    assert done.returncode == 2
    assert "training.batch_size" in done.stderr
    assert dump_database(tmp_path) == before

    assert search(*wider, "--extend").returncode == 0
    study = optuna.load_study(study_name="quick", storage=sqlite_url)
    shapes = [(trial.params["layers"], trial.params["state_size"]) for trial in study.trials]
    assert sorted(shapes) == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    again = study.trials[0]
    assert (again.params, again.value, again.datetime_complete) == (
        first.params,
        first.value,
        first.datetime_complete,
    )
    assert again.distributions["layers"].choices == (1, 2)
    assert search(*wider).returncode == 0, "the study has the extended grid"
    assert search(*wider, "--extend").returncode == 0, "nothing is left to add"
    assert len(optuna.load_study(study_name="quick", storage=sqlite_url).trials) == 4


def test_nuisance_is_kept_until_it_is_extended(search, run, sqlite_url):
    grid = ("--set=space.layers=[1, 2]", "--set=space.training.learning_rate=[0.1, 0.2]")
    assert search(*grid).returncode == 0
    study = optuna.load_study(study_name="quick", storage=sqlite_url)
    attributes, trials = study.user_attrs, study.trials
    rates = "--set=nuisance=['learning_rate']"
    line = "study 'quick' keeps its nuisance = []: --extend changes it"
    done = search(*grid, rates)
    assert (done.returncode, done.stdout.splitlines().count(line)) == (0, 1), done.stderr
    for names, message in (
        (
            "'state_size'",
            "'state_size', which does not vary: expected one of layers, learning_rate",
        ),
        ("'layers', 'learning_rate'", "every parameter that varies"),
    ):
        done = search(*grid, f"--set=nuisance=[{names}]", "--extend")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr
    assert study.user_attrs == attributes
    done = search(*grid, rates, "--extend")
    assert done.returncode == 0, done.stderr
    assert "changed nuisance from [] to ['learning_rate']\n" in done.stdout
    changed = attributes["config"] | {"nuisance": ["learning_rate"]}
    assert study.user_attrs == attributes | {"config": changed}
    assert study.trials == trials
    assert "keeps its" not in search(*grid, rates).stdout
    line = "study 'quick' keeps its nuisance = ['learning_rate']: --extend changes it\n"
    assert line in search(*grid).stdout

    # A derived study can be changed as well, although it has no space to extend.
    derive = ("refine.py", "quick-refined", "--storage", sqlite_url, *TINY)
    derive += ("--set=refinement.top=1", "--set=refinement.variants=[{}]")
    assert run(*derive).returncode == 0
    done = run(*derive, "--set=question='Why?'")
    assert re.search("study 'quick-refined' keeps its question = '.*': --extend", done.stdout)
    done = run(*derive, "--extend")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    done = run(*derive, "--set=question='Why?'", "--extend")
    assert "changed question from" in done.stdout
    derived = optuna.load_study(study_name="quick-refined", storage=sqlite_url)
    assert derived.user_attrs["config"]["question"] == "Why?"


WIDE = tuple(f"space.{name}=[false, true]" for name in GATED_PARAMS[:5])
WIDE += ("space.state_source=['new', 'old', 'both']", f"space.layers={[*range(1, 101)]}")
MANY = (*WIDE, "space.state_size=[4, 5, 6]")
"""Settings of a grid of 28,800 trials."""


def test_many_trials_need_confirmation(run, sqlite_url, text, tmp_path):
    before = read_files(tmp_path)
    many = ("--storage", sqlite_url, "--corpus", str(text), *(f"--set={word}" for word in MANY))
    done = run("run_search.py", QUICK, *TINY, *many)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: 28,800 new trials, 115,200 training steps in all, about [\d.]+ (s|min|h|days) for "
        "one worker of this machine: expected at most 20,000 trials; reduce them, or confirm with "
        "--yes\n",
        done.stderr,
    ), done.stderr
    assert read_files(tmp_path) == before
    excluded = "--set=space.exclude=[{forget_gate=true}]"
    assert run("run_search.py", QUICK, *TINY, *many, excluded, "--status").returncode == 2


def test_confirmed_trials_are_created_and_counted(create_only, sqlite_url):
    with pytest.raises(ConfigError, match="confirm with --yes"):
        create_only(*MANY)
    assert len(create_only(*MANY, confirmed=True).get_trials(deepcopy=False)) == 28_800
    # It exists now: joining it creates nothing.
    create_only(*MANY)


def test_extension_by_many_trials_needs_confirmation(create_only):
    study = create_only(*WIDE, "space.state_size=[3]")
    with pytest.raises(ConfigError, match=r"28,800 new trials, .* confirm with --yes"):
        create_only(*WIDE, "space.state_size=[3, 4, 5, 6]", extend=True)
    assert len(study.get_trials(deepcopy=False)) == 9_600


def test_number_of_new_trials_and_steps_is_printed(search):
    wider = ("--set=space.layers=[1, 2, 3]", "--extend")
    assert "created with 1 trial, 4 training steps in all" in search().stdout
    assert "trials, " not in search().stdout
    assert "extended with 2 trials, 8 training steps in all" in search(*wider).stdout


def test_extension_is_rejected_while_workers_hold_grid_trials(search, create_only, sqlite_url):
    study = create_only("space.layers=[1, 2]")
    storage = open_storage(sqlite_url)
    held = storage.claim(study._study_id, "other/1")
    wider = ("--set=space.layers=[1, 2, 3]", "--extend")
    done = search(*wider)
    assert done.returncode == 2
    assert "1 grid trials are held by workers" in done.stderr
    assert len(study.trials) == 2
    storage.requeue(held, "other/1", Failure.INTERRUPTED)
    assert search(*wider).returncode == 0
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3


def test_extension_ignores_running_trials_of_plain_optuna(search, create_only):
    study = create_only("space.layers=[1, 2]")
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    assert search("--set=space.layers=[1, 2, 3]", "--extend").returncode == 0
    orphan, *trials = sorted(study.trials, key=lambda trial: trial.state is not TrialState.RUNNING)
    assert orphan.state is TrialState.RUNNING
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3


MINI = """
seed = 4
[space]
layers = [1, 2]
state_size = [3]
input_gate = [false]
forget_gate = [false]
output_gate = [false]
state_gate = [false]
residual = [true]
state_source = ["new"]
exclude = [{ layers = 2, state_size = 3 }]
[training]
steps = 4
batch_size = 4
sequence_length = 8
log_every = 2
[evaluation]
windows = 2
window_length = 8
"""


@pytest.fixture
def mini(tmp_path, sqlite_url, text):
    """Create the study 'mini' of one trial from a TOML file, and remove the file."""
    from search.new_study import StudyOptions
    from search.study import create_or_join
    from studies.loader import load_config_file

    path = tmp_path / "mini.toml"
    path.write_text(MINI)
    joined = create_or_join(load_config_file(str(path)), sqlite_url, StudyOptions(corpus=str(text)))
    path.unlink()
    joined.storage.close()
    return joined.study


def test_stored_study_is_resumed_by_its_name(mini, run, sqlite_url, tmp_path):
    command = ("run_search.py", "mini", "--storage", sqlite_url)
    before = dump_database(tmp_path)
    for words, line in (
        (["--set=seed=5"], "seed: 4 in the study, 5 here"),
        (["--set=training.stepz=5"], "--set: unknown key training.stepz"),
        (
            ["--set=refinement.source='quick'"],
            f"study 'mini' in {sqlite_url}: has both of [space] and",
        ),
    ):
        done = run(*command, *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert line in done.stderr
    done = run("refine.py", *command[1:])
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "study 'mini' has no [refinement]" in done.stderr
    assert dump_database(tmp_path) == before
    done = run(*command, "--set=checkpoint.seconds=5")
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in mini.trials] == [TrialState.COMPLETE]
    assert optuna.get_all_study_names(sqlite_url) == ["mini"]
    wider = "--set=space.layers=[1, 2, 3]"
    assert run(*command, wider, "--extend").returncode == 0
    assert [trial.params["layers"] for trial in mini.trials] == [1, 3]
    assert run(*command, "--name", "copy", "--no-wait").returncode == 0
    copy = optuna.load_study(study_name="copy", storage=sqlite_url)
    values, copied = (
        {trial.params["layers"]: trial.value for trial in study.trials} for study in (mini, copy)
    )
    assert copied == values


def test_stored_study_whose_corpus_is_gone_asks_for_it(mini, run, sqlite_url, text):
    elsewhere = text.rename(text.with_name("elsewhere"))
    command = ("run_search.py", "mini", "--storage", sqlite_url)
    done = run(*command)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"corpus '{text}' not found" in done.stderr
    assert "--corpus" in done.stderr
    done = run(*command, "--corpus", str(elsewhere))
    assert done.returncode == 0, done.stderr


def test_derived_study_is_resumed_by_its_name(search, run, sqlite_url, text):
    """Even if its source is deleted."""
    assert search("--set=space.layers=[1, 2]").returncode == 0
    refine = ("--storage", sqlite_url, "--set=refinement.top=1", "--set=refinement.variants=[{}]")
    done = run("refine.py", "quick-refined", *refine, *TINY, "--name", "other.derived")
    assert done.returncode == 0, done.stderr
    optuna.delete_study(study_name="quick", storage=sqlite_url)
    again = ("refine.py", "other.derived", "--storage", sqlite_url)
    done = run(*again)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 finished" in done.stdout
    done = run(*again, "--status")
    assert done.returncode == 0, done.stderr
    assert "complete  1\n" in done.stdout


def test_unknown_study_is_rejected(mini, run, sqlite_url, tmp_path):
    before = read_files(tmp_path)
    for program in ("run_search.py", "refine.py"):
        done = run(program, "minni", "--storage", sqlite_url)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "study 'minni' not found" in done.stderr
        assert "stage-one" in done.stderr
        assert f"or a study in {sqlite_url} (mini)" in done.stderr
    assert read_files(tmp_path) == before


def test_extended_study_accepts_its_earlier_configs(search, run, sqlite_url):
    excluded = "--set=space.exclude=[{layers=2, residual=true}]"
    assert search().returncode == 0
    refused = search(excluded, "--set=space.layers=[1, 2]")
    assert refused.returncode == 2, "a larger grid, not an earlier one"
    wider = ("--set=space.layers=[1, 2, 3]", excluded)
    assert search(*wider, "--extend").returncode == 0
    line = "study 'quick' was extended: using its stored grid of 2 trials"
    for words in ((), ("--extend",), ("--set=space.layers=[1, 2]", excluded)):
        done = search(*words)
        assert done.returncode == 0, done.stderr
        assert line in done.stdout
    assert line not in search(*wider).stdout
    for words in (["--set=space.layers=[2]"], ["--set=seed=3"], ["--set=space.state_size=[4]"]):
        done = search(*words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert len(optuna.load_study(study_name="quick", storage=sqlite_url).trials) == 2


def test_smaller_grid_is_rejected_unless_the_study_was_extended(create_only, search):
    create_only("space.layers=[1, 2]")
    done = search()
    assert done.returncode == 2
    assert "space.layers: [1, 2] in the study, [1] here" in done.stderr


def test_status_is_printed_as_json(search, run, sqlite_url):
    assert search().returncode == 0
    done = run("run_search.py", QUICK, "--storage", sqlite_url, "--status", "--json")
    status = json.loads(done.stdout)
    assert status["planned"] == status["complete"] == 1
    assert status["best"]["number"] == 0
    assert status["seconds_left"] == 0


def test_study_with_a_dot_in_its_name_is_found_by_every_command(search, run, sqlite_url, tmp_path):
    config = tmp_path / "v1.2.toml"
    config.write_bytes(Path(QUICK).read_bytes())
    assert search(study=str(config)).returncode == 0
    assert optuna.get_all_study_names(sqlite_url) == ["v1.2"]
    for given in ("v1.2", str(config)):
        for command in (
            ("run_search.py", given, "--status", "--json"),
            ("-m", "reports", given, "--csv", str(tmp_path / "trials.csv")),
            ("-m", "search.sample", given),
        ):
            done = run(*command, "--storage", sqlite_url)
            assert done.returncode == 0, done.stderr
    refine = ("refine.py", "quick-refined", "--storage", sqlite_url, *TINY)
    done = run(*refine, "--set=refinement.source='v1.2'", "--name", "v1.3")
    assert done.returncode == 0, done.stderr


def test_checkpoint_that_cannot_be_removed_does_not_end_a_finished_search(search, tmp_path):
    assert search().returncode == 0
    (study,) = (tmp_path / "studies.db.weights").iterdir()
    blocked = tmp_path / "studies.db.checkpoints" / study.name / "trial-0.checkpoint"
    blocked.mkdir(parents=True)  # a folder cannot be unlinked
    done = search(report=True)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: cannot remove checkpoints or temporary files")
    assert "trial-0.checkpoint" in warning
    assert "report: " in done.stdout
    assert blocked.is_dir()


def edit_database(folder: Path, statement: str, *values: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "studies.db")) as database, database:
        assert database.execute(statement, values).rowcount > 0


@pytest.fixture
def foreign_files(tmp_path) -> Path:
    """A folder with files of another program that are named like a trial's."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for suffix in ("checkpoint", "safetensors", "quarantined"):
        (folder / f"trial-0.{suffix}").write_bytes(b"of another program")
    return folder


COMMANDS = {
    "status": ("run_search.py", QUICK, "--status"),
    "refine": ("refine.py", "quick-refined", *TINY, "--set=refinement.top=1"),
    "reports": ("-m", "reports", "quick"),
    "table": ("-m", "reports", "quick", "--csv", "trials.csv"),
    "sample": ("-m", "search.sample", "quick"),
    "export": ("-m", "search.export", "quick", "network"),
}


def test_artifact_folder_that_leads_elsewhere_is_refused_by_every_command(
    search, run, sqlite_url, tmp_path, foreign_files
):
    """Somebody changed the database; no file outside of the study's folder is touched."""
    assert search().returncode == 0
    statement = "UPDATE study_user_attributes SET value_json = ? WHERE key = 'artifact_folder'"
    for folder in (str(foreign_files), "../foreign", "x/../../foreign"):
        edit_database(tmp_path, statement, json.dumps(folder))
        before = read_files(tmp_path)
        for name in ("search", *COMMANDS):
            if name == "search":
                done = search()
            else:
                done = run(*COMMANDS[name], "--storage", sqlite_url, cwd=tmp_path)
            assert read_files(tmp_path) == before, name
            assert done.returncode == 2, name
            (line,) = done.stderr.splitlines()
            assert line.startswith(
                "error: study 'quick' has an invalid attribute artifact_folder"
            ), name


def test_diverged_trial_is_finished_and_reported(search, run, sqlite_url):
    done = search("--set=training.learning_rate=1e30", "--set=space.layers=[2]", report=True)
    assert done.returncode == 1, done.stderr
    assert "diverged" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: study 'quick' finished without a complete trial: 1 diverged;")
    assert "learning_rate" in line
    assert "report" not in done.stdout
    (trial,) = optuna.load_study(study_name="quick", storage=sqlite_url).trials
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["failure"] == "diverged"
    done = run("run_search.py", QUICK, "--storage", sqlite_url, "--status", "--json")
    status = json.loads(done.stdout)
    assert (status["planned"], status["diverged"], status["failed"]) == (1, 1, 0)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.extended)])
def test_search_in_which_every_trial_fails_exits_with_1_and_the_error(search, workers):
    grid = ("--set=space.layers=[1, 2]", "--set=training.batch_size=1000000000000")
    for _ in range(2):  # the second run joins the finished study
        done = search(*grid, "--workers", workers)
        assert done.returncode == 1, done.stderr
        line = done.stderr.splitlines()[-1]
        assert "without a complete trial: 2 failed, the last with RuntimeError: " in line
        assert "another --name" in line
    assert len(done.stderr.splitlines()) == 1


def test_search_with_one_complete_trial_succeeds(search, sqlite_url):
    assert search().returncode == 0
    study = optuna.load_study(study_name="quick", storage=sqlite_url)
    grid = ("--set=space.layers=[1, 2]", "--no-wait")
    assert search(*grid, "--extend", "--until=0.000001s").returncode == 0
    study.tell(study.ask(), state=TrialState.FAIL)  # the waiting trial of two layers
    done = search(*grid)
    assert done.returncode == 0, done.stderr
    assert "1 failed" in done.stdout


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stop_before_training_is_reported(search, workers):
    done = search("--until", "0.000001s", "--workers", workers)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stopped before training began: run the same command to start" in done.stdout
    assert "is saved" not in done.stdout


SUBCOMMANDS = (
    *("run", "refine", "report", "dashboard", "status", "list", "continue", "rename", "copy"),
    *("delete", "retry", "export-study", "import", "check", "sample", "export"),
)


def test_console_command_has_every_command(run):
    done = run("-m", "rnn_search", "--help")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("Commands:\n")[2]
    assert re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE) == [*SUBCOMMANDS]
    for name in SUBCOMMANDS:
        done = run("-m", "rnn_search", name, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Usage: rnn-search {name} ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing command"),
        (["search"], "No such command 'search'"),
        (["run", "stage-three"], "study 'stage-three' not found"),
        (["run", "quick", "--workers", "0"], "--workers"),
        (["refine", "quick"], "'quick' has no [refinement]"),
        (["status", "quick"], "does not exist: run a search first"),
        (["report", "quick"], "does not exist: run a search first"),
        (["check", "missing.py:Cell"], "missing.py"),
        (["sample", "quick", "--length", "0"], "--length"),
        (["export", "quick", "\udcff"], "directory is not valid UTF-8"),
    ],
)
def test_console_command_rejects_bad_input_in_one_line(run, tmp_path, words, message):
    storage = f"sqlite:///{tmp_path}/studies.db"
    done = run("-m", "rnn_search", *words, cwd=tmp_path, RNN_SEARCH_STORAGE=storage)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_console_command_does_what_the_commands_do(search, run, sqlite_url, tmp_path):
    assert search().returncode == 0
    common = (QUICK, "--storage", sqlite_url)
    for words, command in (
        (("run", *common, "--status"), ("run_search.py", *common, "--status")),
        (("status", *common, "--json"), ("run_search.py", *common, "--status", "--json")),
        (
            ("sample", *common, "--prompt", "\udcff"),
            ("-m", "search.sample", *common, "--prompt", "\udcff"),
        ),
    ):
        done, expected = run("-m", "rnn_search", *words), run(*command)
        assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
    page = tmp_path / "page.html"
    assert run("-m", "rnn_search", "report", *common, "--output", str(page)).returncode == 0
    assert page.is_file()
