"""Every command refuses invalid input in one line with exit code 2, and changes nothing."""

import os
import shlex

import pytest
from helpers import ONE_TRIAL, QUICK, TEXT, TINY
from invocation import invoke_command, require_refused, unchanged

from search.options import RunOptions
from search.study import create_or_join

NINES = "9" * 5000
LONG = "x" * 300

MISSING = "does not exist: run a search first"

INVALID = {
    # What is the study?
    "run_search.py stage-three": "study 'stage-three' not found",
    "refine.py quick": "'quick' has no [refinement]",
    "run_search.py no/such.toml": "'no/such.toml' not found",
    "run_search.py {tmp}/malformed.toml": "is not valid TOML",
    "run_search.py {tmp}/pipe.toml": "pipe.toml cannot be read: not a regular file",
    "run_search.py {tmp}/escapes.toml": r"unknown key a\nb\x1b[2J: expected one of",
    "run_search.py quick --name 'a\nb'": r"'a\nb' has control characters",
    # Its settings.
    "run_search.py quick --set training.steps": "KEY=VALUE",
    r"""refine.py quick-refined --set 'refinement.source="a\u0000"'""": "printable",
    # The corpus.
    "run_search.py quick --corpus {tmp}/missing": "missing' not found",
    "run_search.py quick --corpus {tmp}/empty": "is empty",
    "run_search.py quick --corpus {tmp}/short": "tokens (vocabulary of 256)",
    # How to run it.
    "run_search.py quick --device cuda:7": "device 'cuda:7' not found on this machine",
    "run_search.py quick --precision fp8": "fp8",
    "run_search.py quick --precision tf32 --device cpu": "tf32 is not supported on cpu",
    """run_search.py quick '--set=precision="tf32"' --device cpu""": "tf32 is not supported on cpu",
    "run_search.py quick --workers 0": "--workers",
    "run_search.py quick --threads 0": "--threads",
    "run_search.py quick --json": "--json requires --status",
    "run_search.py quick --frobnicate": "--frobnicate",
    "run_search.py quick --until soon": "expected a duration such as 45m, 3h or 1h30m",
    "run_search.py quick --lockstep 0": "'0': expected auto or a positive integer",
    f"run_search.py quick --lockstep {NINES}": "expected auto or a positive integer",
    # Where it is stored.
    "run_search.py quick --status": MISSING,
    "refine.py quick-refined": MISSING,
    "run_search.py quick --storage sqlite:////no/folder/s.db": "/no/folder",
    "run_search.py quick --storage sqlite:///{tmp}/notes.db": "cannot be opened",
    "run_search.py quick --storage sqlite:///{tmp}/pipe.toml": "not a regular file",
    "run_search.py quick --status --storage sqlite:///{tmp}/pipe.toml": "not a regular file",
    f"run_search.py quick --status --storage sqlite:///{LONG}": "too long",
    "run_search.py quick --storage mysql://me:s3cret@host/db": "mysql://me:***@host",
    "run_search.py quick --storage postgresql+psycopg://me:p@s3cret@host/db": "expected %40",
    "run_search.py quick --status --storage postgresql://me:s3cret@127.0.0.1:1/d": "be opened",
    "run_search.py quick --status --storage postgresql://m@127.0.0.1:1/d?sslpassword=s3cret": (
        "cannot be opened"
    ),
    f"run_search.py quick --artifacts {LONG}": "is not writable",
    "run_search.py quick --artifacts s3://": "is not a bucket",
    # Text that is not UTF-8.
    "run_search.py a\udcff": r"study is not valid UTF-8: expected text, not 'a\udcff'",
    "run_search.py quick --name a\udcff": "name is not valid UTF-8: expected text",
    "run_search.py quick --storage sqlite:///\udcff": "storage is not valid UTF-8",
    "-m reports quick --output \udcff": "output is not valid UTF-8",
    # Other commands.
    "-m reports quick": MISSING,
    "-m reports": "STUDY",
    "-m reports a b --curves {tmp}/x.csv": "--curves expected one study, got 2",
    "-m reports.dashboard --port 0": "--port",
    "-m reports.hypotheses quick --hypotheses {tmp}/pipe.toml": "not a regular file",
    "-m reports.hypotheses quick --hypotheses {tmp}/deep.toml": "32 nested tables",
    "-m rnn_search backup {tmp}/copy.db": MISSING,
    "-m rnn_search backup {tmp}/copy.db --storage sqlite:///{tmp}/notes.db": "cannot be opened",
    "-m rnn_search backup {tmp}/copy.db --storage postgresql://me:s3cret@host/db": (
        "postgresql+psycopg://me:***@host/db is not an SQLite file: copy it with pg_dump"
    ),
    "-m search.check missing.py:Cell": "missing.py",
    "-m search.sample quick --length 0": "--length",
    "-m search.sample quick --top-k 0": "--top-k",
    "-m search.sample quick --temperature nan": "--temperature is nan",
    "-m search.sample quick --trial last": "'last': expected best or a trial number",
    f"-m search.sample quick --trial {NINES}": "expected best or a trial number",
    "-m search.export quick {tmp}/network": MISSING,
    # The same as subcommands.
    "-m rnn_search": "Missing command",
    "-m rnn_search repot": "No such command 'repot'. (Did you mean",
}
"""Command lines without a stored study, and a part of the message of each."""


@pytest.mark.parametrize("line", INVALID, ids=lambda line: ascii(line)[1:80])
def test_invalid_input_is_refused(invoke, tmp_path, line):
    (tmp_path / "malformed.toml").write_text("[space\n")
    (tmp_path / "empty").touch()
    (tmp_path / "deep.toml").write_text(f"a = {'[' * 100_000}\n")
    (tmp_path / "escapes.toml").write_text('"a\\nb\\u001b[2J" = 1\n')
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "short").write_bytes(b"short" * 100)
    (tmp_path / "notes.db").write_text("a shopping list, and no database\n" * 50)
    (tmp_path / "text").write_bytes(TEXT * 1000)
    words = shlex.split(line.format(tmp=tmp_path))
    if words[0] == "run_search.py" and "--corpus" not in words:
        words += ["--corpus", str(tmp_path / "text")]  # the default one takes long to read
    with unchanged(tmp_path):
        done = invoke(*words, RNN_SEARCH_STORAGE=f"sqlite:///{tmp_path}/studies.db")
    require_refused(done, INVALID[line])
    assert done.stdout == ""


SEARCH = f"run_search.py {QUICK} --corpus {{tmp}}/text {shlex.join(ONE_TRIAL)}"
JOIN = f"{SEARCH} --precision fp32"
EXTEND = f"{JOIN} --extend"
REFINE = f"refine.py quick-refined {shlex.join(TINY)}"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder with the finished study 'quick' of one trial, and the new one 'wide' of two."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "text").write_bytes(TEXT)
    (folder / "reversed").write_bytes(TEXT[::-1])
    storage = ("--storage", f"sqlite:///{folder}/studies.db")
    done = invoke_command(*shlex.split(JOIN.format(tmp=folder)), *storage, cwd=folder, report=False)
    assert done.returncode == 0, done.stderr
    settings = [word.removeprefix("--set=") for word in (*ONE_TRIAL, "space.layers=[1, 2]")]
    options = RunOptions(
        study=QUICK,
        storage=storage[1],
        name="wide",
        corpus=f"{folder}/text",
        precision="fp32",
        overrides=tuple(settings),
    )
    create_or_join(options).storage.close()
    return folder


REFUSED = {
    # A search with other settings than the study's.
    f"{SEARCH} --set=training.steps=6 --set=seed=3 --precision bf16": [
        "training.steps: 4 in the study, 6 here",
        "seed: 0 in the study, 3 here",
        "precision: 'fp32' in the study, 'bf16' here",
    ],
    f"{JOIN} --corpus {{tmp}}/reversed": ["corpus.sha256"],
    f"{JOIN} --set=space.layers=[1,2]": ["layers: [1] in the study, [1, 2] here", "--extend"],
    f"{JOIN} --name wide": ["space.layers: [1, 2] in the study, [1] here"],
    # An extension that would change what is recorded.
    f"{EXTEND} --set=space.layers=[2,1]": ["the same values in the same order"],
    f"{EXTEND} --set=space.layers=[1,2] --set=training.steps=6": ["keep_checkpoints"],
    f"{EXTEND} --set=space.layers=[1,2] --set=training.batch_size=6": ["training.batch_size"],
    f"""{EXTEND} --name wide --set=space.layers=[1,2] '--set=nuisance=["state_sise"]'""": [
        "'state_sise': did you mean 'state_size'?",
    ],
    # Stored studies by their names.
    "run_search.py quikc": ["found: did you mean 'quick'? ", "or a study in", "(quick, wide)"],
    "run_search.py wide --set=seed=5": ["seed: 0 in the study, 5 here"],
    """run_search.py wide '--set=refinement.source="quick"'""": ["has both of [space] and"],
    "refine.py wide": ["study 'wide' has no [refinement]"],
    # Refinements and reports of what is not there.
    f"""{REFINE} '--set=refinement.source="gone"'""": ["'gone' is not in", "studies: quick"],
    f"""{REFINE} '--set=refinement.source="wide"'""": ["finished 0 of 2 trials", "--partial"],
    "-m reports gone": ["study 'gone' is not in"],
    "-m reports wide": ["no complete trial"],
    "-m reports quick --csv /proc/no/rows.csv": ["cannot write /proc/no/rows.csv"],
    "-m reports quick --output {tmp}": ["is a directory"],
    "-m reports quick --csv {tmp}/rows.csv --watch": ["do not go with --watch"],
    "-m search.export wide {tmp}/network": ["no trial with stored weights"],
    # Studies as a whole.
    "-m rnn_search continue gone": ["study 'gone' is not in"],
    "-m rnn_search run gone --stored": ["study 'gone' is not in"],
    "-m rnn_search retry wied": ["study 'wied' is not in", "did you mean 'wide'?"],
    "-m rnn_search rename gone new": ["existing studies: quick, wide"],
    "-m rnn_search rename quick wide": ["study 'wide' exists already"],
    "-m rnn_search rename quick ''": ["study name '' is blank"],
    "-m rnn_search copy quick": ["needs another name: expected --as or --to"],
    "-m rnn_search copy quick --to sqlite:///nowhere/s.db": ["does not exist: create it, or use"],
    "-m rnn_search copy quick --to postgresql://u:s3cret@127.0.0.1:1/d": ["cannot be opened"],
    "-m rnn_search delete quick": ["confirm with --yes"],
    "-m rnn_search export-study quick new.csv": ["expected a name ending in .jsonl.gz or .jsonl"],
    "-m rnn_search export-study quick /dev/null/new.jsonl": ["cannot write /dev/null/new.jsonl"],
    "-m rnn_search import a.csv b.csv": ["a.csv does not exist: expected a file of a table"],
}
"""Command lines on the studies of :func:`stored`, and parts of the message of each."""


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line.removeprefix(SEARCH)[-80:])
def test_input_that_does_not_fit_the_stored_studies_is_refused(invoke, stored, line):
    with unchanged(stored):
        words = shlex.split(line.format(tmp=stored))
        done = invoke(*words, RNN_SEARCH_STORAGE=f"sqlite:///{stored}/studies.db")
    require_refused(done, *REFUSED[line])


def test_debug_shows_the_traceback(invoke, sqlite_url):
    done = invoke("run_search.py", QUICK, "--corpus", "missing", "--storage", sqlite_url, "--debug")
    assert "Traceback" in done.stderr
    assert "CorpusError" in done.stderr
