"""The API in Python: studies, trials and networks, in scripts, notebooks and threads."""

import math
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, TEXT
from hooks import HANG_TIMEOUT
from invocation import unchanged

import rnn_search
from rnn.errors import UserError
from rnn.training.loop import TrainLoop
from rnn_search import errors
from studies.errors import StorageNotFoundError, StudyNotFoundError
from studies.messages import to_printable

SETTINGS = {
    "space": {
        "layers": [1],
        "state_size": [3],
        "input_gate": [False],
        "forget_gate": [False],
        "output_gate": (False,),
        "state_gate": [False],
        "state_source": ["new", "both"],
    },
    "training": {"steps": 4, "batch_size": 4, "sequence_length": 8, "log_every": 2},
    "evaluation": {"windows": 2, "window_length": 8},
    "precision": "fp32",
    "keep_weights": 1,
}
"""Settings of a study of four trials, which takes a second."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, str]:
    """Storage and corpus of one study, on which most tests look."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "text").write_bytes(TEXT)
    return {"storage": f"sqlite:///{folder}/studies.db", "corpus": f"{folder}/text"}


@pytest.fixture(scope="module")
def study(place):
    return rnn_search.run(SETTINGS, name="mine", **place)


@pytest.fixture
def empty(tmp_path, text):
    """Storage that does not exist yet, and a corpus."""
    return {"storage": f"sqlite:///{tmp_path}/studies.db", "corpus": text}


def test_study_shows_its_results(study, tmp_path):
    table = study.results
    assert list(table.columns[:5]) == ["label", "state", "value", "residual", "state_source"]
    assert sorted(table.index) == [0, 1, 2, 3]
    assert table["value"].is_monotonic_increasing
    assert set(table["state"]) == {"COMPLETE"}
    assert study.counts == study.status.counts
    assert study.counts.complete == 4
    assert study.config.training.steps == 4
    curves = study.curves
    assert list(curves.columns) == ["number", "step", "loss", "validation_loss"]
    assert len(curves) == 8
    assert curves.loc[curves["step"] == 4, "validation_loss"].notna().all()
    best = study.best
    assert (best.number, best.value) == (table.index[0], table["value"].iloc[0])
    assert best.label == table["label"].iloc[0]
    assert study.trial(best.number) == best
    assert len({study, best, study.effects(), rnn_search.load("mine", storage=study.storage)}) == 3
    assert study.optuna.best_value == best.value
    page = study.report(tmp_path / "page.html")
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")


def test_effects_are_those_of_matched_pairs_and_shown_in_a_notebook(study):
    effects = study.effects()
    frame = effects.to_frame()
    table = frame.set_index("parameter")
    values = study.results.set_index(["residual", "state_source"])["value"]
    assert table.loc["residual", "effect"] == pytest.approx((values[True] - values[False]).mean())
    assert list(table["pairs"]) == [2, 2]
    (trace,) = effects.plot().data
    assert sorted(trace.x) == pytest.approx(sorted(table["effect"]))
    layout = effects.plot(width="column").layout
    assert (layout.width, round(layout.font.size * 72 / 96)) == (321, 8)  # 85 mm, 8 points
    with pytest.raises(UserError, match="width is 'narrow': expected 'column', 'page' or None"):
        effects.plot(width="narrow")
    latex = effects.to_latex(["parameter", "effect"], digits=2)
    assert f"residual & {table.loc['residual', 'effect']:.2f} \\\\" in latex
    assert r"state\_source &" in latex
    with pytest.raises(UserError, match=r"no column 'size': .*expected one of parameter, "):
        effects.to_latex(["size"])
    # A terminal shows the answer as lines, a notebook as a list; both have the table below it.
    lines = repr(effects).splitlines()
    assert lines[: len(effects.answer)] == effects.answer
    assert lines[-len(frame) - 1].split() == list(frame.columns)
    assert "..." not in repr(effects)
    html = effects._repr_html_()
    assert html.startswith(f"<ul><li>{effects.answer[0]}</li><li>")
    assert html.count("<tr") == 1 + len(frame)
    within = effects.conditional_frame().set_index(["parameter", "by", "value"])["effect"]
    one = values[True, "new"] - values[False, "new"]
    assert within["residual", "state_source", "new"] == pytest.approx(one)


@pytest.mark.extended
def test_figure_of_a_paper_is_written_in_each_format(study, browser, tmp_path):
    figure = study.effects().plot(width="column")
    for name in ("effects.pdf", "effects.svg", "effects.png"):
        for attempt in range(3):  # its page may not be loaded in time on a busy machine
            try:
                figure.write_image(tmp_path / name)
                break
            except Exception:
                if attempt == 2:
                    raise
    points = re.search(rb"/MediaBox \[0 0 ([\d.]+)", (tmp_path / "effects.pdf").read_bytes())
    assert points is not None
    assert float(points[1]) / 72 * 25.4 == pytest.approx(85, abs=0.2)
    assert b'width="321"' in (tmp_path / "effects.svg").read_bytes()
    assert (tmp_path / "effects.png").read_bytes().startswith(b"\x89PNG")


def test_blocks_are_compared_in_every_cell(empty):
    varied = {"cell": ["gated", "gru"], "block": ["plain", "residual"], "residual": [False]}
    space = SETTINGS["space"] | varied | {"state_source": ["new"]}
    study = rnn_search.run(SETTINGS | {"space": space, "keep_weights": 4}, name="blocks", **empty)
    losses = study.results.set_index(["cell", "block"])["value"].unstack()
    effect = study.effects().to_frame().set_index("parameter").loc["block"]
    assert (effect["before"], effect["after"], effect["pairs"]) == ("plain", "residual", 2)
    assert effect["effect"] == pytest.approx((losses["residual"] - losses["plain"]).mean())
    for number, block in study.results["block"].items():
        assert len(study.trial(number).network().norms) == (block == "residual")


def test_solved_shares_and_hypotheses_are_tables(study, place):
    assert "threshold_p" not in study.effects().to_frame()  # it has no threshold
    assert study.hypotheses().empty
    hypotheses = [
        {"statement": name, "parameter": name, "before": False, "after": True, "expect": "lower"}
        for name in ("residual", "input_gate")
    ]
    threshold = float(study.results["value"].iloc[1:3].mean())
    settings = SETTINGS | {"report_threshold": threshold, "hypothesis": hypotheses}
    stated = rnn_search.run(settings, name="stated", **place)
    solved = stated.effects().to_frame().set_index("parameter").loc["residual"]
    shares = solved["threshold_before"] + solved["threshold_after"]
    assert 2 * shares == (stated.results["value"] < threshold).sum() == 2
    table = stated.hypotheses().set_index("statement")
    assert table["registered"].str.startswith("before the first result, ").all()
    assert table.loc["residual", "verdict"] == "undecided"  # two pairs are too few
    effect = stated.effects().to_frame().set_index("parameter").loc["residual"]
    assert table.loc["residual", "effect"] == pytest.approx(effect["effect"])
    assert table.loc["input_gate", "verdict"] == "not testable: input gate has one value"


def test_trained_network_is_a_module_that_writes_the_sample(study):
    network = study.best.network()
    tokens, states = list(b"The "), None
    with torch.inference_mode():
        for step in range(23):
            logits, states = network(torch.tensor([[tokens[step]]]), states)
            if step + 1 == len(tokens):
                tokens.append(int(logits[-1, 0].argmax()))
    assert study.best.sample("The ", length=20, temperature=0) == to_printable(bytes(tokens))
    weights = sum(weight.numel() for weight in network.parameters())
    assert weights == study.results["parameter_count"].iloc[0]


def test_trial_is_sampled_and_exported_as_by_the_commands(study, invoke, tmp_path):
    words = ("mine", "--storage", study.storage)
    done = invoke("sample", *words, "--prompt", "The ", "--length", "30")
    assert done.stdout == study.best.sample("The ", length=30) + "\n"
    assert invoke("export", *words, str(tmp_path / "a")).returncode == 0
    assert study.best.export(tmp_path / "b") == tmp_path / "b"
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        study.best.export(tmp_path / "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"length": 2.5}, "length is 2.5: input should be a valid integer"),
        ({"seed": 2**32}, "seed is 4294967296: input should be less than 4294967296"),
        ({"temperature": -1}, "temperature is -1: input should be greater than or equal to 0"),
    ],
)
def test_bad_number_of_a_sample_is_an_error(study, given, message):
    with pytest.raises(UserError, match=message):
        study.best.sample("The ", **given)


def test_study_is_found_after_a_change_of_the_working_directory(text, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    places = {"storage": "sqlite:///studies.db", "corpus": text.absolute(), "artifacts": "files"}
    monkeypatch.chdir(tmp_path / "a")
    study = rnn_search.run(SETTINGS, name="mine", **places)
    expected = study.best.sample("The ")
    monkeypatch.chdir(tmp_path / "b")
    rnn_search.run(SETTINGS, name="mine", until=1e-6, **places)  # without a complete trial
    assert study.counts.complete == 4
    assert study.best.sample("The ") == expected


def test_what_is_missing_is_named(study, place, tmp_path):
    with pytest.raises(UserError, match="trial 9 not found in study 'mine', which has 4"):
        study.trial(9)
    with pytest.raises(StudyNotFoundError, match="existing studies: mine"):
        rnn_search.load("other", storage=place["storage"])
    with pytest.raises(StorageNotFoundError, match="run a search first"):
        rnn_search.load("mine", storage=f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(UserError, match="name is None: expected a text"):
        rnn_search.load(None)
    with pytest.raises(UserError, match="others is 'mine': expected a list of names"):
        study.report(tmp_path / "page.html", others="mine")


def test_settings_are_those_of_the_study_in_every_way_to_open_it(study, place, invoke, monkeypatch):
    words = ("mine", "--storage", study.storage)
    assert invoke("run", *words, report=False).returncode == 0
    again = rnn_search.run(SETTINGS, name="mine", **place)
    assert again.config == study.config
    assert again == study == rnn_search.load("mine", storage=study.storage)
    monkeypatch.setenv("RNN_SEARCH_STORAGE", study.storage)
    assert rnn_search.load("mine") == study
    with pytest.raises(UserError, match=r"training.steps: 4 in the study, 6 here"):
        rnn_search.run(SETTINGS, name="mine", overrides={"training.steps": 6}, **place)


def test_unfinished_study_is_shown_and_its_recorded_call_creates_the_same(empty):
    question = 'Is "it" ä\\b\n\tbetter?'
    overrides = {"training.steps": 6, "space.residual": (True,), "question": question}
    given = {"overrides": overrides, "prune": True}
    study = rnn_search.run(SETTINGS, name="called", until="0.000001s", **given, **empty)
    assert study.counts.waiting == 2
    assert set(study.results["state"]) == {"WAITING"}
    with pytest.raises(UserError, match="no complete trial yet"):
        _ = study.best
    with pytest.raises(UserError, match="no complete trial"):
        study.effects()
    (command,) = study.optuna.user_attrs["commands"]
    calls = []
    call = SimpleNamespace(run=lambda *settings, **options: calls.append((settings, options)))
    eval(command, {"rnn_search": call})
    (((settings,), options),) = calls
    before = study.config
    again = rnn_search.run(settings, storage=empty["storage"], until=1e-6, **options)
    assert again == study
    assert again.config == before
    assert (study.config.training.steps, study.config.question) == (6, question)
    assert study.config.pruning.enabled
    message = "^training.steps is a setting of the stored study: expected one that"
    with pytest.raises(UserError, match=message):
        study.run(overrides={"training.steps": 8})
    continued = study.run(workers=np.int64(1), overrides={"lease.seconds": 50}, lockstep=1)
    assert continued == study
    assert (study.counts.finished, study.config.lease.seconds) == (2, before.lease.seconds)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": 7}, "study name is 7: expected a text"),
        ({"name": "mine.toml"}, "ends in .toml, as the names of study files do: expected another"),
        ({"overrides": {"training.steps=10 #": 99}}, "has the key 'training.steps=10 #': expected"),
        ({"name": None}, r"settings have no name: expected run\({...}, name='my-study'\)"),
        ({"trial": 1}, "trial is one of a stored study: expected its name, not settings"),
        ({"workers": True}, "workers is True: input should be a valid integer"),
        ({"artifacts": 5}, "artifacts is 5: expected a folder"),
        ({"until": -1}, "until is -1: expected seconds, or a duration"),
        ({"study": None}, "study is None: expected a name, a path or a dict"),
        ({"overrides": ["training.steps=4"]}, "overrides is .*: expected a dict such as"),
        ({"study": SETTINGS | {"space": {"cell": [object]}}}, "'path/to/file.py:object'"),
        ({"launch": "nowhere"}, "expected local, slurm, ray or ray://HOST:PORT"),
        ({"launch": "slurm", "launch_set": "time=1"}, "expected a dict such as"),
        ({"until": "soon"}, "until is 'soon': expected a duration with units"),
        ({"overrides": {"training.steps": object()}}, "training.steps is <object"),
        ({"overrides": {"training.steps": "4"}}, "settings: training.steps is '4'"),
        ({"overrides": {"training.learning_rate": math.inf}}, "learning_rate is inf: expected a "),
        ({"study": SETTINGS | {"spaces": 1}}, "settings: unknown key spaces"),
        ({"study": SETTINGS | {"seed": None}}, "settings.seed is None: expected a finite number"),
    ],
)
def test_bad_input_is_an_error_and_changes_nothing(empty, tmp_path, given, message):
    given = {"study": SETTINGS, "name": "bad"} | given
    with unchanged(tmp_path), pytest.raises(UserError, match=message):
        rnn_search.run(given.pop("study"), **given, **empty)


SCRIPT = """
from rnn_search import run
print("the script runs")
study = run({settings!r}, name="mine", storage={storage!r}, corpus={corpus!r}, workers=2)
print("complete:", study.counts.complete)
"""
"""Program without ``if __name__ == "__main__"``."""


@pytest.mark.extended
def test_worker_processes_do_not_run_the_script_again(empty, tmp_path):
    path = tmp_path / "script.py"
    place = {"storage": empty["storage"], "corpus": str(empty["corpus"])}
    path.write_text(SCRIPT.format(settings=SETTINGS, **place))
    done = subprocess.run(
        [sys.executable, str(path)],
        **{"cwd": tmp_path, "capture_output": True, "text": True},
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "TMPDIR": str(tmp_path)},
        timeout=HANG_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1
    assert "starting 2 worker processes" in done.stdout
    assert "complete: 4\n" in done.stdout
    assert done.stderr == ""


def test_interrupt_stops_the_search_and_is_raised(empty, monkeypatch, capsys):
    train = TrainLoop.train

    def train_and_interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        yield from train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoop, "train", train_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            rnn_search.run(SETTINGS, name="mine", **empty)
    line = "stopped; progress is saved: run the same command to resume\n"
    assert capsys.readouterr().out.endswith(line)
    assert rnn_search.run(SETTINGS, name="mine", **empty).counts.complete == 4


def test_search_runs_in_a_thread_and_leaves_the_process_as_it_was(empty):
    found = []

    def search():
        before = torch.get_num_threads()  # each thread has a setting of its own
        study = rnn_search.run(SETTINGS, name="threaded", threads=before + 1, **empty)
        found.extend((study, before, torch.get_num_threads()))

    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=search)
    thread.start()
    thread.join(HANG_TIMEOUT)
    study, before, after = found
    assert study.counts.complete == 4
    assert before == after
    assert signal.getsignal(signal.SIGINT) == handler


def test_package_has_the_public_names_and_base_errors():
    assert set(rnn_search.__all__) | {"__version__"} <= set(dir(rnn_search))
    assert all(getattr(rnn_search, name) for name in rnn_search.__all__)
    exported = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(error, rnn_search.UserError) for error in exported)
