"""Every command refuses invalid input in one line with exit code 2, and changes nothing."""

import shlex

import pytest
from helpers import ONE_TRIAL, ONE_TRIAL_OVERRIDES, QUICK, TEXT, TINY, join_study
from invocation import invoke_command, require_refused, unchanged

MISSING = "does not exist: run a search first"

INVALID = {
    # What is the study?
    "run stage-three": "study 'stage-three' not found",
    "refine quick": "'quick' has no [refinement]",
    "run no/such.toml": "'no/such.toml' not found",
    "run {tmp}/malformed.toml": "is not valid TOML",
    "run {tmp}/folder.toml": "folder.toml cannot be read: Is a directory",
    # Its settings.
    "run quick --set training.steps": "KEY=VALUE",
    """run quick --set 'told="maybe"'""": "told is 'maybe': input should be 'exclude' or 'include'",
    "run quick --set training=5": "training is 5: expected a table of settings",
    "run quick --trial 0 --extend": "--trial runs a trial once more as it was: expected no --ext",
    # The corpus.
    "run quick --corpus {tmp}/missing": "missing' not found",
    "run quick --corpus {tmp}/empty": "is empty",
    "run quick --corpus {tmp}/short": "tokens (vocabulary of 256)",
    # How to run it.
    "run quick --device cuda:7": "device 'cuda:7' not found on this machine",
    "run quick --precision fp8": "fp8",
    "run quick --precision tf32 --device cpu": "tf32 is not supported on cpu",
    """run quick '--set=precision="tf32"' --device cpu""": "tf32 is not supported on cpu",
    "run quick --workers 0": "--workers is 0: input should be greater than or equal to 1",
    "run quick --threads 2000": "--threads is 2000: input should be less than or equal to 1024",
    "run quick --launch moon": "--launch has the value 'moon': expected local, slurm, ray or",
    "run quick --launch-set a=1": "--launch-set requires --launch slurm or ray",
    "run quick --cancel": "--cancel requires --launch slurm;",
    "status quick --launch elsewhere": "elsewhere",
    "run quick --frobnicate": "--frobnicate",
    "run quick --lockstep none": "expected auto or a positive integer",
    # Where it is stored.
    "status quick": MISSING,
    "refine quick-refined": MISSING,
    "run quick --storage sqlite:////no/folder/s.db": "/no/folder",
    "run quick --storage sqlite:///{tmp}/notes.db": "cannot be opened",
    "run quick --storage sqlite:///{tmp}/folder.toml": "Is a directory",
    "status quick --storage sqlite:///{tmp}/folder.toml": "Is a directory",
    "run quick --storage mysql://me:s3cret@host/db": "mysql://me:***@host",
    "run quick --storage postgresql+psycopg://me:p@s3cret@host/db": "expected %40",
    "status quick --storage postgresql://me:s3cret@127.0.0.1:1/d": "be opened",
    "status quick --storage postgresql://m@127.0.0.1:1/d?sslpassword=s3cret": "cannot be opened",
    "run quick --artifacts {tmp}/text/no": "is not writable",
    # Other commands.
    "report quick": MISSING,
    "report": "STUDY",
    "dashboard --port 0": "--port",
    "import {tmp}/folder.toml": "Is a directory",
    "import {tmp}/missing.csv": "No such file",
    "sample quick --length 0": "--length",
    "sample quick --top-k 0": "--top-k",
    "sample quick --temperature nan": "--temperature is nan",
    "sample quick --trial last": "'last': expected best or a trial number",
    "": "Missing command",
    "repot": "No such command 'repot'. (Did you mean",
}
"""Command lines without a stored study, and a part of the message of each."""


@pytest.mark.parametrize("line", INVALID, ids=lambda line: ascii(line)[1:80])
def test_invalid_input_is_refused(invoke, tmp_path, line):
    (tmp_path / "malformed.toml").write_text("[space\n")
    (tmp_path / "empty").touch()
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "short").write_bytes(b"short" * 100)
    (tmp_path / "notes.db").write_text("a shopping list, and no database\n" * 50)
    (tmp_path / "text").write_bytes(TEXT * 1000)
    words = shlex.split(line.format(tmp=tmp_path))
    if words[:1] == ["run"] and "--corpus" not in words:
        words += ["--corpus", str(tmp_path / "text")]  # the default one takes long to read
    with unchanged(tmp_path):
        done = invoke(*words, RNN_SEARCH_STORAGE=f"sqlite:///{tmp_path}/studies.db")
    require_refused(done, INVALID[line])
    assert done.stdout == ""


SEARCH = f"run {QUICK} --corpus {{tmp}}/text {shlex.join(ONE_TRIAL)}"
JOIN = f"{SEARCH} --precision fp32"
EXTEND = f"{JOIN} --extend"
REFINE = f"refine quick-refined {shlex.join(TINY)}"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder with the finished study 'quick' of one trial, and the new one 'wide' of two."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "text").write_bytes(TEXT)
    (folder / "reversed").write_bytes(TEXT[::-1])
    storage = ("--storage", f"sqlite:///{folder}/studies.db")
    done = invoke_command(*shlex.split(JOIN.format(tmp=folder)), *storage, cwd=folder, report=False)
    assert done.returncode == 0, done.stderr
    settings = (*ONE_TRIAL_OVERRIDES, "space.layers=[1, 2]")
    named = {"name": "wide", "precision": "fp32"}
    join_study(QUICK, storage[1], settings, folder / "text", **named).storage.close()
    return folder


REFUSED = {
    # A search with other settings than the study's.
    f"{SEARCH} --set=training.steps=6 --set=seed=3 --precision bf16": [
        "training.steps: 4 in the study, 6 here",
        "seed: 0 in the study, 3 here",
        "precision: 'fp32' in the study, 'bf16' here",
    ],
    f"{JOIN} --corpus {{tmp}}/reversed": ["task.corpus.sha256"],
    f"{JOIN} --set=space.layers=[1,2]": ["layers: [1] in the study, [1, 2] here", "--extend"],
    f"{JOIN} --name wide": ["space.layers: [1, 2] in the study, [1] here"],
    # An extension that would change what is recorded.
    f"{EXTEND} --set=space.layers=[2,1]": ["the same values in the same order"],
    f"{EXTEND} --set=space.layers=[1,2] --set=training.steps=6": ["training.steps"],
    f"{EXTEND} --set=space.layers=[1,2] --set=training.batch_size=6": ["training.batch_size"],
    f"""{EXTEND} --name wide --set=space.layers=[1,2] '--set=nuisance=["state_sise"]'""": [
        "'state_sise': did you mean 'state_size'?"
    ],
    # Stored studies by their names.
    "run quikc": ["found: did you mean 'quick'? ", "or a study in", "(quick, wide)"],
    "run wide --set=seed=5": ["seed: 0 in the study, 5 here"],
    """run wide '--set=refinement.source="quick"'""": ["has both of [space] and"],
    "refine wide": ["study 'wide' has no [refinement]"],
    # Refinements and reports of what is not there.
    f"""{REFINE} '--set=refinement.source="gone"'""": ["'gone' is not in", "studies: quick"],
    f"""{REFINE} '--set=refinement.source="wide"'""": ["finished 0 of 2 trials", "--partial"],
    "report gone": ["study 'gone' is not in"],
    "report wide": ["no complete trial"],
    "report quick --csv /proc/no/rows.csv": ["cannot write /proc/no/rows.csv"],
    "report quick --output {tmp}": ["is a directory"],
    "report quick --csv {tmp}/rows.csv --output {tmp}/page.html": ["does not go with --output"],
    "export wide {tmp}/network": ["no trial with stored weights"],
    # Studies as a whole.
    "continue gone": ["study 'gone' is not in"],
    "run gone --stored": ["study 'gone' is not in"],
    "retry wied": ["study 'wied' is not in", "did you mean 'wide'?"],
    "rename gone new": ["existing studies: quick, wide"],
    "rename quick wide": ["study 'wide' exists already"],
    "rename quick ''": ["study name '' is blank"],
    "delete quick": ["confirm with --yes"],
    "export-study quick new.csv": ["expected a name ending in .jsonl.gz or .jsonl"],
    "export-study quick /dev/null/new.jsonl": ["cannot write /dev/null/new.jsonl"],
    "import a.csv b.csv": ["a.csv does not exist: expected a file of a table"],
}
"""Command lines on the studies of :func:`stored`, and parts of the message of each."""


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line.removeprefix(SEARCH)[-80:])
def test_input_that_does_not_fit_the_stored_studies_is_refused(invoke, stored, line):
    with unchanged(stored):
        words = shlex.split(line.format(tmp=stored))
        done = invoke(*words, RNN_SEARCH_STORAGE=f"sqlite:///{stored}/studies.db")
    require_refused(done, *REFUSED[line])


def test_debug_shows_the_traceback(invoke, sqlite_url):
    done = invoke("run", QUICK, "--corpus", "missing", "--storage", sqlite_url, "--debug")
    assert "Traceback" in done.stderr
    assert "CorpusError" in done.stderr
