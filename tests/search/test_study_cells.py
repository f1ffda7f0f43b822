"""Studies of users' own cells: which source is loaded, kept, executed and refused."""

import shutil
import sys
from pathlib import Path

import optuna
import pytest
from click import UsageError
from click.testing import CliRunner
from helpers import TINY, TINY_OVERRIDES, join_study
from invocation import refused, unchanged

import rnn.own_code
from rnn.engines import build_network
from rnn.errors import CellError, CorpusError, UserError
from rnn.network import count_parameters, network_shapes
from rnn_search.commands.models import check
from search.cells_tasks import load_cells
from studies.loader import ConfigFile, load_config_file
from studies.study_settings import TrainingSettings
from studies.trial_params import to_trial_config

SETTINGS = (*TINY_OVERRIDES, "precision='fp32'")

STUDY = """
[space]
cell = ["cells/mine.py:Mine"]
layers = [1]
state_size = [4]
{more}
"""

CELL = """
from typing import Literal

import torch
from torch import nn


class Mine(nn.Module):
    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        tanh: bool = False,
        kind: Literal["a", "b"] = "a",
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.tanh = tanh
        self.update = nn.Linear(input_size + state_size, state_size)

    def forward(self, x, state):
        state = self.update(torch.cat((x, state), 1))
        state = state.tanh() if self.tanh else state.sigmoid()
        return state, state


class Other(Mine):
    pass
"""


@pytest.fixture
def folder(tmp_path, text) -> Path:
    """A folder with a study file, its cell and the corpus ``text``."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mine.py").write_text(CELL)
    (tmp_path / "mine.toml").write_text(STUDY.format(more=""))
    return tmp_path


@pytest.fixture
def few_checks(monkeypatch) -> None:
    """Check no cell in other processes, which takes seconds: tests here are about its source."""
    monkeypatch.setattr("search.cell_check.check_export", lambda network: None)


@pytest.fixture
def create(folder, few_checks):

    return lambda: open_study(folder)


def config_file(folder: Path, more: str = "", cells: str = "") -> ConfigFile:
    text = STUDY.format(more=more)
    (folder / "mine.toml").write_text(text.replace('Mine"]', f'Mine"{cells}]'))
    return load_config_file(str(folder / "mine.toml"), SETTINGS)


def open_study(folder: Path, more: str | None = "", cells: str = "", overrides=SETTINGS, **options):
    """Create or join the study of the file, which is written first, unless ``more`` is None."""
    if more is not None:
        config_file(folder, more, cells)
    url = f"sqlite:///{folder}/studies.db"
    joined = join_study(folder / "mine.toml", url, overrides, folder / "text", **options)
    joined.storage.close()
    return joined


def kept_copies(folder: Path) -> list[Path]:
    return sorted((folder / "studies.db.cells").rglob("*"))


def test_paths_are_relative_to_the_file_that_names_them(folder, few_checks, monkeypatch):
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    (folder / "mine.toml").write_text(f'{STUDY.format(more="")}\n[task]\ncorpus = "text"\n')
    url = f"sqlite:///{folder}/studies.db"

    def open_with(*overrides: str, study: str = "../mine.toml", name: str = "mine") -> tuple:
        settings = (*SETTINGS[:-1], *overrides)
        joined = join_study(study, url, settings, name=name, partial=True)
        joined.storage.close()
        config = joined.record.config
        return config.task.corpus, config.task_record.text.corpus, config.cells["Mine"].spec

    found, cell, elsewhere = str(folder / "text"), "cells/mine.py:Mine", "../elsewhere/mine.py:Mine"
    assert open_with() == open_with(study="mine") == ("text", found, cell)
    (folder / "cells").rename(folder / "elsewhere")
    cells = f"space.cell=['{elsewhere}']"
    assert open_with(cells) == ("text", found, cell)
    given = ("../text", found, elsewhere)
    assert open_with(cells, "task.corpus='../text'", name="given") == given
    source = optuna.load_study(study_name="mine", storage=url)
    complete(source)
    Path("next.toml").write_text("[refinement]\nsource = 'mine'\ntop = 1\nreplicates = 2\n")
    assert open_with(study="next.toml", name="next") == (found, found, cell)
    (folder / "text").rename("text")
    with pytest.raises(CorpusError, match=rf"or a file {found}$"):
        open_with(cells)
    for study in ("mine", "next.toml"):
        with pytest.raises(CorpusError, match=rf"or a file {found}; study 'mine' .* with --corpus"):
            open_with(study=study)
    assert open_with("task.corpus='text'", study="mine") == ("text", found, cell)


def complete(study):
    """Complete a trial as a worker does, which records who trained it."""
    trial = study.ask()
    trial.set_user_attr("worker", "w")
    trial.set_user_attr("seconds", 1.0)
    study.tell(trial, 1.0)


def test_two_cells_of_one_name_and_unusable_names_are_rejected(folder):
    shutil.copy(folder / "cells" / "mine.py", folder / "copy.py")
    with pytest.raises(UserError, match="is named Mine as well: expected distinct class"):
        load_cells(config_file(folder, cells=', "copy.py:Mine"')).resolve()
    builtin = config_file(folder).with_overrides({"space": {"cell": ["cells/mine.py:gru"]}})
    with pytest.raises(UserError, match="has the name of a built-in cell: rename the class"):
        load_cells(builtin).resolve()


def test_option_with_the_name_of_a_parameter_setting_or_result_is_rejected(folder):
    for name in (*TrainingSettings.model_fields, "layers", "block", "exclude", "threads"):
        (folder / "cells" / "mine.py").write_text(CELL.replace("depth", name))
        message = f"cell Mine has an option {name}, which is the name of another parameter or res"
        with pytest.raises(CellError, match=message):
            load_cells(config_file(folder))


def test_changed_source_of_a_study_is_rejected(folder, create):
    create()
    path = folder / "cells" / "mine.py"
    path.write_text(f"{CELL}\n# changed\n")
    version = "study 'mine' was created with another version of Mine (cells/mine.py, "
    with refused(UserError, version, folder):
        create()
    path.write_text(CELL)
    create()


FROM_PACKAGE = """
from based import Base


class Mine(Base):
    pass
"""

BASE = f"""{CELL}

class Base(Mine):
    def forward_sequence(self, x, state):
        ys = []
        for step in x:
            y, state = self.forward(step, state)
            ys.append(y)
        return torch.stack(ys), state
"""


def test_study_is_joined_only_where_its_cell_has_the_form_that_trains(folder, monkeypatch, create):
    """The file is the same; the package that its class comes from is another version."""
    (folder / "based.py").write_text(BASE)
    (folder / "cells" / "mine.py").write_text(FROM_PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    record = create().record
    assert record.config.cells["Mine"].has_sequence_form
    create()
    monkeypatch.delattr("based.Base.forward_sequence")
    line = "cell Mine had a sequence form when its study was created, and has none here: expected"
    with refused(CellError, line, folder):
        create()


MARKED = f"open(MARKER, 'a').write('executed ')\n{CELL}"
"""A cell whose file leaves a trace when it is executed."""


@pytest.fixture
def marker(folder) -> Path:
    """File that exists once the source of the cell was executed."""
    marker = folder / "marker"
    (folder / "cells" / "mine.py").write_text(MARKED.replace("MARKER", repr(str(marker))))
    return marker


def test_a_copy_is_executed_where_there_is_no_file_if_it_is_that_of_the_study(
    folder, marker, create, monkeypatch
):
    """In a study that is opened by its name, and in a refinement."""
    source = create().study
    complete(source)
    path = folder / "cells" / "mine.py"
    _, copy = kept_copies(folder)
    assert copy.read_text() == path.read_text()
    path.unlink()
    (folder / "next.toml").write_text("[refinement]\nsource = 'mine'\ntop = 1\nreplicates = 2\n")
    studies = {"mine": "mine", "new": folder / "next.toml"}

    def build(name: str) -> None:
        """Build a network of a study as in another process."""
        monkeypatch.setattr(rnn.own_code, "_loaded", {})
        for module in [each for each in sys.modules if each.startswith("cell_")]:
            monkeypatch.delitem(sys.modules, module)
        url = f"sqlite:///{folder}/studies.db"
        joined = join_study(studies[name], url, corpus=folder / "text", name=name, partial=True)
        build_network([to_trial_config(joined.study.trials[0].params, joined.config)], 0, "fp32")

    marker.unlink()
    changed = "is not the file that the study was created with (SHA-256 "
    missing = "cannot be read (No such file or directory): check --artifacts, or use"
    copy.write_text(f"{copy.read_text()}\n")
    for name in studies:
        with refused(CellError, changed, folder):
            build(name)
    content = copy.read_text().removesuffix("\n")
    copy.unlink()
    for name in studies:
        with refused(CellError, missing, folder):
            build(name)
    assert not marker.exists()
    copy.write_text(content)
    for name in studies:
        build(name)
        assert marker.exists()
        marker.unlink()


def test_missing_or_damaged_copy_is_written_by_a_worker_that_joins(folder, create):
    create()
    _, copy = kept_copies(folder)
    for damage in (copy.unlink, lambda: copy.write_text("class Mine: pass")):
        damage()
        create()
        assert copy.read_text() == CELL


def test_study_is_extended_by_a_cell_which_a_worker_without_it_loads(folder, monkeypatch, create):
    create()
    wider = ', "cells/mine.py:Other"'
    with pytest.raises(UserError, match=r"space.cell: .* or --extend to add the new trials"):
        open_study(folder, cells=wider)
    broken = f"{CELL}\n    def forward(self, x, state):\n        return x, x[:, :1]\n"
    (folder / "cells" / "other.py").write_text(broken)
    other = ', "cells/other.py:Other"'
    with pytest.raises(CellError, match=r"cell Other: forward returned a tensor .* as the state"):
        open_study(folder, cells=other, extend=True)
    extended = open_study(folder, cells=wider, extend=True)
    assert {trial.params["cell"] for trial in extended.study.trials} == {"Mine", "Other"}
    for extend in (False, True):  # with True, it asks for less than the study has
        monkeypatch.setattr(rnn.own_code, "_loaded", {})  # as in another process
        network_shapes.cache_clear()
        joined = open_study(folder, extend=extend)
        assert list(joined.config.cells) == ["Mine", "Other"]
        for trial in joined.study.trials:
            assert count_parameters(to_trial_config(trial.params, joined.config).architecture) > 0
    names = [path.name for path in kept_copies(folder) if path.is_file()]
    assert names == ["cell-Mine.py", "cell-Other.py"]


def test_new_values_of_an_option_are_checked_before_a_study_is_extended(folder, few_checks):
    """The constructor takes any depth; a forward pass fails with 3. Other extensions are free."""
    cell = CELL.replace("self.tanh = tanh", "self.tanh = tanh; self.size = (2, 1, 1, None)[depth]")
    cell = cell.replace("else state.sigmoid()", "else state.sigmoid() / self.size")
    (folder / "cells" / "mine.py").write_text(cell)
    open_study(folder, "depth = [0, 1]")
    config_file(folder, "depth = [0, 1, 3]")
    reason = r"cell Mine raises TypeError.*depth = 3"
    with unchanged(folder), pytest.raises(CellError, match=reason):
        open_study(folder, None, extend=True)
    extended = open_study(folder, "depth = [0, 1, 2]", extend=True)
    assert {trial.params["depth"] for trial in extended.study.trials} == {0, 1, 2}


def test_cell_is_checked_once_in_a_storage(folder, few_checks, monkeypatch):
    open_study(folder, "depth = [0, 1]")

    def refuse(networks) -> None:
        raise CellError("checked again")

    monkeypatch.setattr("search.cell_check.check_networks", refuse)
    open_study(folder, "depth = [0, 1]", name="second")
    with pytest.raises(CellError, match="checked again"):
        open_study(folder, "depth = [0, 2]", name="third")
    (folder / "cells" / "mine.py").write_text(f"{CELL}\n# changed")
    with pytest.raises(CellError, match="checked again"):
        open_study(folder, "depth = [0, 1]", name="third")


def test_check_prints_what_a_cell_passed_and_its_options(folder, few_checks):
    words = [f"{folder}/cells/mine.py:Mine", "--set", "depth=2"]
    done = CliRunner().invoke(check, words, standalone_mode=False)
    assert done.exit_code == 0, done.output
    *passed, form, lockstep, last = done.output.splitlines()
    assert form == "it has no method forward_sequence: it reads one step after another"
    assert len(passed) == 5
    assert all(line.startswith("passed: ") for line in passed)
    assert lockstep == (
        "networks that differ in settings of the optimizer can be trained in lockstep"
    )
    assert last == (
        "Mine passed all checks with 3 combinations of options; options: tanh (true or false, "
        "default false), kind (one of 'a', 'b', default 'a'), depth (an integer of 64 bits, "
        "default 1)"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("cells/none.py:Mine",), "source 'cells/none.py:Mine' not found: expected a file"),
        (
            ("cells/mine.py",),
            "source 'cells/mine.py' not understood: expected path/to/file.py:Class",
        ),
        (("addin:5",), "task 'addin:5' not found: did you mean adding:T?"),
        (("gru",), "gru is a built-in cell: expected a cell of your own"),
        (
            ("cells/mine.py:Mine", "--set", "size=3"),
            "cell Mine has no option size: expected one of tanh",
        ),
        (("cells/mine.py:Mine", "--set", "kind=b"), "is not a TOML value"),
        (("cells/mine.py:Mine", "--set", "kind='c'"), "cell Mine has kind = 'c': expected one of"),
    ],
)
def test_invalid_input_of_check_is_rejected_in_one_line(folder, monkeypatch, words, reason):
    monkeypatch.chdir(folder)
    with refused((UserError, UsageError), reason, folder):
        check.main([*words], standalone_mode=False)


@pytest.mark.extended
def test_reports_and_exports_execute_no_source(run, folder, marker, sqlite_url, create):
    """They need neither the file nor its copy."""
    create()
    places = ("--storage", sqlite_url, "--corpus", str(folder / "text"))
    settings = (*TINY, "--set=precision='fp32'")
    done = run("run", str(folder / "mine.toml"), *places, *settings, report=False)
    assert done.returncode == 0, done.stderr
    (folder / "cells" / "mine.py").unlink()
    shutil.rmtree(folder / "studies.db.cells")
    marker.unlink()
    common = ("mine", "--storage", sqlite_url)
    for command in (
        ("report", *common, "--csv", str(folder / "trials.csv")),
        ("report", *common, "--output", str(folder / "page.html")),
        ("status", *common),
        ("export", "mine", str(folder / "exported"), *common[1:]),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stderr
    assert not marker.exists()
    done = run("sample", *common, "--length", "3")
    assert done.returncode == 0, done.stderr
    assert marker.exists()
