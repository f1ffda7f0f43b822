"""Models of complete trials: which one a command loads, samples from and exports."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from factories import NO_GATES, make_runs

from rnn.config import TrialConfig
from rnn.engines import build_network
from rnn.errors import TaskError, UserError
from rnn.export import SavedModel, deserialize_model, serialize_model
from rnn.tasks.corpus import Corpus
from rnn.tasks.text import Text
from rnn.tasks.tokenizer import train_tokenizer
from rnn_search import load
from rnn_search.commands.models import sample
from search.cells_tasks import StudyTask, load_task_of
from search.stored_models import load_trial_model, write_folder
from studies.artifacts import ArtifactFolders
from studies.config import StudyConfig
from studies.errors import StudyNotFoundError
from studies.trial_params import to_trial_config

PROSE = np.frombuffer(b"the cat, the hat, that cat and that hat\n" * 9, np.uint8)
SPACE = NO_GATES | {"layers": [1], "state_size": [4, 8, 16], "residual": [False, True]}

VALUES = (1.5, 1.2, 1.9, 1.2, 1.4)
"""Values of the complete trials; one more is waiting."""


def make_study(
    url: str,
    keep: set[int],
    artifacts: str | None = None,
    task: StudyTask | None = None,
    tokenizer: str = "bytes",
    **settings: object,
):
    """Create a study of six trials, and store the weights of some."""
    if task is not None:
        settings |= {"task": {"source": task.record.source}, "task_record": task.record}
    else:
        settings |= {"task": {"tokenizer": tokenizer}}
    raw = {"space": SPACE, **settings}
    config = StudyConfig.model_validate(raw)
    combinations = list(config.grid.combinations())
    values = (*VALUES, None)[: len(combinations)]
    runs = [(params, value, {}) for params, value in zip(combinations, values, strict=True)]
    make_runs(url, "made", raw, runs)
    weights = ArtifactFolders(artifacts, url).trial_files("made-1", "safetensors")
    learnt = Text(Corpus("prose", PROSE), train_tokenizer(config.task.tokenizer, PROSE)).save()
    if task is not None:
        learnt = task.build().save()
    for number in keep:
        trial_config = to_trial_config(combinations[number], config)
        config_of_trial = TrialConfig(trial_config.architecture)
        empty = SavedModel(trial_config.architecture, {}, learnt, "fp32", {})
        network = build_network([config_of_trial], number, spec=empty.spec)
        drawn = network.parameters.extract(0, network.parameters.values)
        scaled = {
            name: weight * (4 if name.endswith(".weight") else 1) for name, weight in drawn.items()
        }
        details = {"trial": str(number), "value": repr(VALUES[number])}
        model = replace(empty, weights=scaled, metadata=details)
        weights.write(number, serialize_model(model))
    return weights


def test_best_trial_with_stored_weights_is_loaded(sqlite_url, tmp_path, capsys):
    weights = make_study(sqlite_url, keep={0, 2, 3, 4})
    weights.write(5, weights.read(0))  # of a trial whose end is not recorded yet
    loaded = load_trial_model("made", None, sqlite_url, None)
    assert (loaded.trial.number, loaded.model.architecture.label) == (
        3,
        "1×4 no gates, new state, residual",
    )
    assert load_trial_model("made", 2, sqlite_url, None).model.architecture.state_size == 16
    assert (
        "using trial 3: better trials have no stored weights (trial 1)" in capsys.readouterr().err
    )
    first, third = (deserialize_model(weights.read(number)) for number in (0, 2))
    for forged in (first, replace(first, metadata=third.metadata)):
        weights.write(2, serialize_model(forged))
        with pytest.raises(
            UserError, match="weights of trial 2 of study 'made' belong to another run"
        ):
            load_trial_model("made", 2, sqlite_url, None)
    for number, message in (
        (1, r"trial 1 of study 'made' \(complete\) has no .*: expected best or trials 0, 2-4"),
        (5, r"trial 5 of study 'made' \(waiting\) has no stored weights"),
        (9, "trial 9 not found in study 'made', which has 6"),
    ):
        with pytest.raises(UserError, match=message):
            load_trial_model("made", number, sqlite_url, None)
    with pytest.raises(StudyNotFoundError, match="existing studies: made"):
        load_trial_model("other", None, sqlite_url, None)
    with pytest.raises(UserError, match=r"has no trial.*check --artifacts"):
        load_trial_model("made", None, sqlite_url, str(tmp_path / "elsewhere"))


def test_study_without_stored_weights_is_reported(sqlite_url):
    make_study(sqlite_url, keep=set(), keep_weights=0)
    for number in (None, 1):
        with pytest.raises(UserError, match="keep_weights is 0"):
            load_trial_model("made", number, sqlite_url, None)


# ------------------------------------------------------------------ samples


def test_continuation_of_a_prompt_depends_on_the_seed(sqlite_url, tmp_path):
    artifacts = str(tmp_path / "files")
    make_study(sqlite_url, {1, 2}, artifacts, tokenizer="bpe:270")

    def draw(*words: str) -> str:
        places = ["--storage", sqlite_url, "--artifacts", artifacts]
        done = CliRunner().invoke(
            sample, ["somewhere/made.toml", *places, *words], standalone_mode=False
        )
        assert (done.exit_code, done.stderr) == (0, ""), done.output
        return done.stdout

    prompt = ("--prompt", "the hät", "--length", "40")
    first = draw(*prompt, "--seed", "1")
    assert first.startswith("the hät")
    assert len(first) > 40
    assert draw(*prompt, "--seed", "1", "--trial", "1") == first
    assert draw(*prompt, "--seed", "1", "--trial", "2") != first
    greedy = ("--temperature", "0")
    assert draw(*prompt, "--seed", "2") != first
    assert draw(*prompt, *greedy) == draw(*prompt, "--top-k", "1") != first
    with pytest.raises(TaskError, match="study 'made' learns a text: use sample"):
        load("made", storage=sqlite_url, artifacts=artifacts).best.predict([1, 2])


# ------------------------------------------------------------------ exports


def test_network_of_a_task_predicts_and_is_exported_but_not_sampled(sqlite_url, tmp_path):
    task = load_task_of("adding:5", {}, tmp_path)
    make_study(sqlite_url, {1}, task=task)
    trial = load("made", storage=sqlite_url).best
    for draw in (
        lambda: sample.main(["made", "--storage", sqlite_url], standalone_mode=False),
        trial.sample,
    ):
        with pytest.raises(TaskError, match="task 'adding:5' predict no text: use export"):
            draw()
    inputs = task.build().held_out("validation", 3).inputs  # which are not standardized
    expected = trial.network()(torch.from_numpy(inputs))[0]
    predicted = trial.predict(inputs.swapaxes(0, 1))
    np.testing.assert_allclose(predicted, expected.detach().swapaxes(0, 1), 1e-5, 1e-6)
    with pytest.raises(UserError, match=r"expected finite numbers \(T, 2\) or \(N, T, 2\)"):
        trial.predict(inputs[..., :1])
    readme = (trial.export(tmp_path / "adding") / "README.md").read_text("utf-8")
    assert "\n- validation squared error: 1.2\n- task: adding:5\n- bptt_steps: 1\n" in readme


def test_nothing_is_left_of_a_failed_export(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    empty = tmp_path / "empty"
    empty.mkdir()
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
            write_folder(empty, {"a": b"1"})
    assert list(tmp_path.rglob("*")) == [empty]
    write_folder(empty, {"a": b"1"})
    assert (empty / "a").read_bytes() == b"1"
    for taken in (empty, empty / "a"):
        with pytest.raises(UserError, match="exists already"):
            write_folder(taken, {"a": b"2"})
    assert (empty / "a").read_bytes() == b"1"
