"""The command ``python -m search.sample``."""

import os

import pytest
from model_fixtures import make_study


def test_continuation_of_a_prompt_depends_on_the_seed(sqlite_url, run, tmp_path):
    artifacts = str(tmp_path / "files")
    make_study(sqlite_url, {1, 2}, artifacts, tokenizer="bpe:270")

    def sample(*words: str) -> str:
        places = ("--storage", sqlite_url, "--artifacts", artifacts)
        done = run("-m", "search.sample", "somewhere/made.toml", *places, *words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    prompt = ("--prompt", "the hät", "--length", "40")
    first = sample(*prompt, "--seed", "1")
    assert first.startswith("the hät")
    assert len(first) > 40
    assert sample(*prompt, "--seed", "1", "--trial", "1") == first
    assert sample(*prompt, "--seed", "1", "--trial", "2") != first
    greedy = ("--temperature", "0")
    assert sample(*prompt, "--seed", "2") != first
    assert sample(*prompt, *greedy) == sample(*prompt, "--top-k", "1") != first


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("other",), "study 'other' is not in"),
        (("made", "--trial", "4"), "are not stored: expected best or one of the trials 1"),
        (("made", "--trial", "9" * 5000), "expected best or a trial number"),
        (("made", "--trial", "last"), "invalid value 'last': expected best or a trial number"),
        (("made", "--temperature", "-1"), "--temperature"),
        (("made", "--temperature", "nan"), "--temperature is nan"),
        (("made", "--top-k", "0"), "--top-k"),
        (("made", "--length", "0"), "--length"),
    ],
)
def test_invalid_arguments_are_rejected_in_one_line(made, run, words, line):
    done = run("-m", "search.sample", *words, "--storage", made)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


def put_pipe(path):
    path.unlink()
    os.mkfifo(path)


def put_folder(path):
    path.unlink()
    path.mkdir()


def put_large_file(path):
    os.truncate(path, 2**35)  # a hole takes no space on the disk


def put_other_architecture(path):
    path.write_bytes(path.with_name("trial-2.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("replace", "line"),
    [
        (put_pipe, "the weights of trial 1 cannot be read (not a regular file)"),
        (put_folder, "the weights of trial 1 cannot be read (Is a directory)"),
        (put_large_file, "the weights of trial 1 have more than 16,"),
        (put_other_architecture, "the weights of trial 1 of study 'made' belong to another run"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_file_in_place_of_weights_is_refused_in_one_line(
    run, sqlite_url, tmp_path, replace, line
):
    make_study(sqlite_url, {1, 2})
    (weights,) = tmp_path.glob("studies.db.weights/*/trial-1.safetensors")
    replace(weights)
    for command in (("search.sample", "made"), ("search.export", "made", str(tmp_path / "out"))):
        done = run("-m", *command, "--trial", "1", "--storage", sqlite_url)
        assert (done.returncode, done.stdout) == (2, "")
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('made')}/studies.db"
    make_study(url, keep={1})
    return url
