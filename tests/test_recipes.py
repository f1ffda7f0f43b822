"""The recipes of CONTRIBUTING.md name all places: a change of these alone works."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import optuna
import pytest
from helpers import ONE_TRIAL, QUICK, ROOT, copy_checkout

OPTIMIZERS = "OPTIMIZERS = {\n"
UPDATES = "UPDATES: dict[str, Callable[..., None]] = {\n"
TRAITS = '    "signum": OptimizerTraits("Signum", ("beta1", "boost"), ("first",)),\n'
LAST_SETTING = '    warmup_steps: Annotated[int, {"ge": 0}] = 0\n'
SETTING = '    boost: Annotated[float, {"gt": 0}] = 1.0\n'
ENTRY = '    "signum": _update_signum,\n'
SIGNUM = """\
def _update_signum(group: _Group, first: list[Tensor]) -> None:
    torch._foreach_lerp_(first, group.grads, 1 - group.config.beta1)
    rate = group.learning_rate * group.config.boost
    steps = torch._foreach_mul(torch._foreach_sign(first), rate)
    torch._foreach_sub_(group.values, steps)


"""

ADDED_SWITCH = tomllib.loads(Path(__file__).with_name("added_switch.toml").read_text("utf-8"))

NETWORKS_WITHOUT_IT = """\
import itertools
from rnn.config import GATED_OPTIONS, GatedOptions
from rnn.network import network_shapes
options = {name: values for name, values in GATED_OPTIONS.items() if name != "shortcut"}
for values in itertools.product(*options.values()):
    config = GatedOptions(**dict(zip(options, values))).network(2, 8)
    print(config.label, config.init_key, network_shapes(config).parameters)
"""


def insert(path: Path, place: str, before: str, after: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count(place) == 1, f"{path} has not one place {place!r}"
    path.write_text(source.replace(place, before + place + after), encoding="utf-8")


def run(folder: Path, *arguments: str) -> str:
    """Run Python with the project of a folder; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.extended
def test_optimizer_with_a_setting_of_its_own_is_added_in_two_files(tmp_path, sqlite_url, text):
    copy_checkout(tmp_path)
    insert(tmp_path / "rnn/config.py", OPTIMIZERS, "", TRAITS)
    insert(tmp_path / "rnn/config.py", LAST_SETTING, "", SETTING)
    insert(tmp_path / "rnn/training/optimizer.py", UPDATES, SIGNUM, ENTRY)
    run(
        tmp_path, "-m", "rnn_search", "run", QUICK, *ONE_TRIAL,
        "--set=space.training.optimizer=['sgd', 'signum']",
        "--set=space.training.boost=[1, 4]", "--set=training={beta1=0.5, schedule='cosine'}",
        "--name=added", f"--corpus={text}", f"--storage={sqlite_url}",
    )  # fmt: skip
    trials = optuna.load_study(study_name="added", storage=sqlite_url).trials
    assert {trial.params.get("boost") for trial in trials} == {None, 1.0, 4.0}
    assert len({trial.value for trial in trials}) == 3
    report = tmp_path / "reports/out/added.html"
    assert "SGD and Signum with" in report.read_text(encoding="utf-8")


@pytest.fixture
def with_switch(tmp_path) -> Path:
    """Add the made-up switch to a copy of the project."""
    copy_checkout(tmp_path / "copy")
    for name, edits in ADDED_SWITCH.items():
        for edit in edits:
            insert(tmp_path / "copy" / name, edit["after"], "", edit["text"])
    return tmp_path / "copy"


@pytest.mark.extended
def test_switch_is_added_in_the_files_of_its_recipe(with_switch, invoke, sqlite_url, text):
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipe = guide.partition("A switch of the gated cell itself")[2].partition("All else")[0]
    assert set(re.findall(r"`([\w/]+\.\w+)`", recipe)) == ADDED_SWITCH.keys()
    assert run(with_switch, "-c", NETWORKS_WITHOUT_IT) == run(ROOT, "-c", NETWORKS_WITHOUT_IT)

    search = (
        "run", QUICK, *ONE_TRIAL, "--name=added", f"--corpus={text}", f"--storage={sqlite_url}",
    )  # fmt: skip
    assert invoke(*search, report=False).returncode == 0
    run(with_switch, "-m", "rnn_search", *search, "--set=space.shortcut=[false, true]", "--extend")
    before, added = optuna.load_study(study_name="added", storage=sqlite_url).trials
    assert added.params == before.params | {"shortcut": True}
    assert added.value != before.value
    report = with_switch / "reports/out/added.html"
    assert "shortcut" in report.read_text(encoding="utf-8")


@pytest.mark.extended
def test_added_switch_trains_in_every_engine_as_its_exported_code_does(with_switch):
    engines = "of_the_plain_module and fp and (native or stacked or (autograd and shortcut))"
    words = f"({engines}) or (no_trace and state)"
    files = "tests/rnn/test_contract.py", "tests/rnn/test_codegen.py"
    run(with_switch, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", words)
