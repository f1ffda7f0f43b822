"""Studies of tasks other than text: which class and data are loaded, stored and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import join_study
from invocation import refused

import rnn.own_code
import search.create_or_join
from rnn.config import WHOLE_SEQUENCE
from rnn.errors import TaskError, UserError
from search.cells_tasks import load_task_of
from search.create_or_join import StudyHandle
from search.run_options import RunOptions
from studies.records import Floors, TaskSettings
from studies.trial_params import to_trial_config

TASK = """
import numpy as np


class Sum:
    input_size = 2
    output_size = 1

    def __init__(self, *, length: int = 6, noise: float = 0.0, shown: int = 6, folder=None):
        if length == 13:
            raise RuntimeError("unlucky")
        self.files = ["offset.npy"]
        self.offset = np.load(folder / "offset.npy")
        self.length, self.noise, self.shown = length, noise, shown

    def sample(self, split, rng, count):
        steps = self.shown if split == "train" else self.length
        values = rng.normal(self.offset, 1.0, (count, steps, 2))
        targets = values.sum((1, 2))
        if split == "train":
            values = values + self.noise * rng.normal(size=values.shape)
        return {"inputs": values, "targets": targets[:, None]}

    # a line to append to
"""

STUDY = """
[task]
source = "tasks/mine.py:Sum"

[training]
steps = 12
log_every = 6
batch_size = 4
bptt_steps = "sequence"

[evaluation]
windows = 8

[space]
cell = ["gru"]
layers = [1]
state_size = [4]

[space.task]
noise = [0, 0.5]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a study file, and its task and data in another; tasks are not checked."""
    monkeypatch.setattr("search.task_check.check_task", lambda *_: (None, ""))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(TASK)
    np.save(tmp_path / "tasks" / "offset.npy", 1.0)
    (tmp_path / "mine.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def open_study(*overrides: str, study: str = "mine.toml", **options) -> StudyHandle:
    settings = (*overrides, "precision='fp32'")
    joined = join_study(study, options.pop("storage", "sqlite:///studies.db"), settings, **options)
    joined.storage.close()
    return joined


def forget_loaded(monkeypatch) -> None:
    """Forget which sources are loaded, as another process would not know."""
    monkeypatch.setattr(rnn.own_code, "_loaded", {})


def draw(handle: StudyHandle, *options) -> np.ndarray:
    return handle.task_of(options).train_batch(0, 0, 0, 4, 0).inputs


def test_trials_have_the_options_that_vary_and_one_update_for_each_sequence(folder):
    handle = open_study("space.task.shown=[3, 6]", "task.length=12")
    record = handle.record.config.task_record
    assert (record.values, record.steps, record.loss) == ({"length": 12}, 6, "squared error")
    trials = [to_trial_config(trial.params, handle.config) for trial in handle.study.trials]
    assert {each.task_options for each in trials} == {
        (("noise", noise), ("shown", shown)) for noise in (0.0, 0.5) for shown in (3, 6)
    }
    assert {(each.bptt_steps, each.update_every) for each in trials} == {(WHOLE_SEQUENCE,) * 2}
    assert "1×4 GRU, noise 0.5, shown 3" in {each.label for each in trials}
    assert record.text is None
    assert draw(handle, ("noise", 0.0), ("shown", 3)).shape == (3, 4, 2)
    assert not np.array_equal(draw(handle, ("noise", 0.5)), draw(handle))


@pytest.mark.parametrize(
    ("override", "error", "reason"),
    [
        ("task.lengths=3", UserError, "no option lengths: did you mean 'length'? expected one"),
        ("task.length=2.5", UserError, "task Sum has length = 2.5: expected an integer"),
        ("task.length=13", TaskError, "code raises RuntimeError (unlucky) in line 11"),
        ("task.source='tasks/mine.py:Some'", TaskError, "has no class Some: expected Sum"),
        ("task.source='tasks/none.py:Sum'", TaskError, "expected a file"),
        ("task.source='adding:5'", UserError, "has the option task.noise of the task adding:5"),
        ("task.corpus='enwik8'", UserError, "because the task has its own data"),
        ("task.tokenizer='bpe:300'", UserError, "because the task has no text"),
        ("space.training.sequence_length=[9]", UserError, "because the task decides its length"),
        ("evaluation.window_length=9", UserError, "because the task decides its length"),
        ("space.task.length=[5, 6]", UserError, "length = 5 changes the held-out data, the size"),
        ("space.task.shown=[6, 11]", UserError, "expected multiples of 66, because"),
        ("space.task.noise=[1, 1.0]", UserError, "expected distinct values"),
        ("space.noise=[1]", UserError, "space has noise: expected it in [space.task]"),
        ("space.exclude=[{noise=0.1}]", UserError, "noise = 0.1: expected one of 0.0, 0.5"),
        ("training.warmup_steps=3", UserError, "which have 2 updates"),
        ("task_record={}", UserError, "unknown key task_record"),
    ],
)
def test_setting_that_does_not_suit_the_task_is_rejected_in_one_line(
    folder, override, error, reason
):
    with refused(error, reason, folder):
        open_study(override)


def test_task_is_checked_once_in_a_storage(folder, monkeypatch):
    """Until its class or options, the held-out data or the versions of the code change."""
    checked = []
    floors = Floors(constant={"loss": 2.0}, memoryless={"loss": 1.5}, recurrent={"loss": 0.5})

    def check(task, count):
        checked.append(task.record.name)
        return floors, ""

    monkeypatch.setattr("search.task_check.check_task", check)
    assert open_study().record.floors == floors
    assert open_study(name="second", study="mine.toml").record.floors == floors
    assert len(checked) == 1
    open_study("task.length=12", name="longer")
    open_study("evaluation.windows=9", name="more")
    assert len(checked) == 3
    monkeypatch.setattr("rnn.training.checkpoint.torch_version", lambda: "0.1")
    open_study(name="other-version")
    assert len(checked) == 4


def test_list_of_names_is_joined_for_an_option_that_takes_several(folder):
    (folder / "s.csv").write_text("load,wind,x\n" + "1.5,2,0\n2,1,0\n" * 40)
    series = TaskSettings(source="series:s.csv", columns=["load", "wind"])
    assert series.options == {"columns": "load,wind"}
    task = load_task_of("series:s.csv", {"columns": ["load", "wind"], "length": 4}, folder)
    assert task.record.inputs == 2
    with pytest.raises(UserError, match=r"task adding:5: length is \[3, 4\]: expected one value"):
        load_task_of("adding:5", {"length": [3, 4]}, folder)


def test_stored_task_is_loaded_from_its_copy_and_its_files_where_they_were(folder, monkeypatch):
    handle = open_study("task.length=12")
    trial = handle.study.ask()
    trial.set_user_attr("seconds", 1.0)  # as if this program had trained it
    handle.study.tell(trial, 1.0)
    expected = draw(handle, ("noise", 0.5))
    (folder / "tasks" / "mine.py").unlink()
    (folder / "next.toml").write_text(
        "[refinement]\nsource = 'mine'\ntop = 1\nvariants = [{}, {shown = 3, noise = 1}]\n"
    )
    with pytest.raises(TaskError, match=r"expected a file .*mine.py; check the path"):
        open_study()
    forget_loaded(monkeypatch)
    assert np.array_equal(draw(open_study(study="mine"), ("noise", 0.5)), expected)
    derived = open_study(study="next.toml", partial=True)
    assert [trial.params["shown"] for trial in derived.study.trials] == [6, 3]
    assert {type(trial.params["noise"]) for trial in derived.study.trials} == {float}
    assert derived.config.task_record == handle.record.config.task_record
    with pytest.raises(UserError, match="a variant has shown = 'a': expected an integer"):
        open_study("refinement.variants=[{shown='a'}]", study="next.toml", name="a", partial=True)
    # Of the second variant alone, the length contradicts the number of steps.
    with pytest.raises(UserError, match="expected multiples of 30, because"):
        open_study("refinement.variants=[{shown=5}, {}]", study="next.toml", name="b", partial=True)

    (copy,) = (folder / "studies.db.cells").glob("mine-*/task-Sum.py")
    copy.write_text(f"raise SystemExit\n{TASK}")
    forget_loaded(monkeypatch)
    with pytest.raises(TaskError, match="is not the file that the study was created with"):
        open_study(study="mine")


def test_worker_whose_task_or_data_differ_is_refused(folder, monkeypatch):
    open_study()
    shutil.copytree(folder / "tasks", folder / "elsewhere")
    place = "task.source='elsewhere/mine.py:Sum'"
    assert open_study(place).notice == open_study(place, study="mine").notice == ""

    def refuse(reason: str, *overrides: str) -> None:
        with pytest.raises(UserError, match=reason):
            open_study(place, *overrides)

    refuse("task.length: None in the study, 6 here", "task.length=6")
    np.save(folder / "elsewhere" / "offset.npy", 2.0)
    refuse("task.data_sha256: '")
    np.save(folder / "elsewhere" / "offset.npy", 1.0)
    (folder / "elsewhere" / "mine.py").write_text(f"{TASK}    version = 2\n")
    refuse("with another version of Sum .*: restore the file")
    (folder / "elsewhere" / "mine.py").write_text(TASK)
    monkeypatch.setattr("rnn.tasks.sequence_task._HELD_OUT_SEED", 7)  # as another version of NumPy
    refuse("with other held-out data of task Sum, although its source")
    (folder / "tasks" / "offset.npy").unlink()
    with pytest.raises(TaskError, match=r"FileNotFoundError .*offset.npy.* its present place with"):
        open_study(study="mine")


def test_file_of_a_built_in_task_is_found_again(folder, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(200, 2))
    np.savetxt(folder / "data.csv", rows, delimiter=",", header="a,b", comments="")
    (folder / "here").mkdir()
    text = STUDY.replace("tasks/mine.py:Sum", "series:data.csv").partition("[space.task]")[0]
    (folder / "mine.toml").write_text(text.replace("[training]", "length = 6\n\n[training]"))
    monkeypatch.chdir(folder / "here")
    url = f"sqlite:///{folder}/studies.db"

    def join(study: str, *overrides: str) -> StudyHandle:
        return open_study(*overrides, study=study, storage=url)

    handle = join("../mine.toml")
    assert handle.record.config.task_record.loss == "standardized squared error"
    assert np.array_equal(draw(join("mine")), draw(handle))
    (folder / "data.csv").rename("moved.csv")
    with pytest.raises(TaskError, match="study 'mine' was trained on it: give its present place"):
        join("mine")
    moved = join("mine", "task.source='series:moved.csv'")
    assert np.array_equal(draw(moved), draw(handle))
    worker = moved.for_worker(RunOptions(study="mine", storage=url))
    monkeypatch.chdir(folder)
    opened = search.create_or_join.open_study("mine", url, worker)
    opened.storage.close()
    assert np.array_equal(draw(opened), draw(handle))
