"""The command ``python -m search.sample``."""

import os

import pytest
from click import ClickException
from click.testing import CliRunner
from model_fixtures import make_study

from rnn.errors import SavedModelError
from search.errors import WeightsNotFoundError
from search.export import export
from search.sample import sample
from studies.errors import StudiesError


def test_continuation_of_a_prompt_depends_on_the_seed(sqlite_url, tmp_path):
    artifacts = str(tmp_path / "files")
    make_study(sqlite_url, {1, 2}, artifacts, tokenizer="bpe:270")

    def draw(*words: str) -> str:
        places = ["--storage", sqlite_url, "--artifacts", artifacts]
        done = CliRunner().invoke(
            sample, ["somewhere/made.toml", *places, *words], standalone_mode=False
        )
        assert (done.return_value, done.stderr) == (0, ""), done.output
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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("made", "--trial", "9" * 5000), "expected best or a trial number"),
        (("made", "--trial", "last"), "invalid value 'last': expected best or a trial number"),
        (("made", "--temperature", "nan"), "--temperature is nan"),
        (("made", "--top-k", "0"), "--top-k"),
        (("made", "--length", "0"), "--length"),
    ],
)
def test_invalid_arguments_are_rejected_in_one_line(sqlite_url, words, line):
    make_study(sqlite_url, {1})
    with pytest.raises((StudiesError, WeightsNotFoundError, ClickException)) as refused:
        sample.main([*words, "--storage", sqlite_url], standalone_mode=False)
    error = refused.value
    assert line in (error.format_message() if isinstance(error, ClickException) else str(error))


def put_pipe(path):
    path.unlink()
    os.mkfifo(path)


def put_large_file(path):
    os.truncate(path, 2**35)  # a hole takes no space on the disk


@pytest.mark.parametrize(
    ("replace", "line"),
    [
        (put_pipe, r"the weights of trial 1 cannot be read \(not a regular file\)"),
        (put_large_file, "the weights of trial 1 have more than 16,"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_file_in_place_of_weights_is_refused_in_one_line(sqlite_url, tmp_path, replace, line):
    make_study(sqlite_url, {1, 2})
    (weights,) = tmp_path.glob("studies.db.weights/*/trial-1.safetensors")
    replace(weights)
    for command, words in ((sample, ["made"]), (export, ["made", str(tmp_path / "out")])):
        with pytest.raises((SavedModelError, WeightsNotFoundError), match=line) as refused:
            command.main([*words, "--trial", "1", "--storage", sqlite_url], standalone_mode=False)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
