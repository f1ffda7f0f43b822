"""Studies that cross architectures with several tasks: what is trained, kept, refused and found."""

import re
import shutil

import pytest
from invocation import invoke_command, refused, require_refused

import rnn.own_code
import rnn_search
from rnn.errors import TaskError, UserError
from search.create_or_join import create_or_join, open_study
from search.run_options import RunOptions
from search.stored_models import export_trial
from studies.records import Floors

SUM = """
class Sum:
    input_size = 2
    output_size = 1

    def sample(self, split, rng, count):
        values = rng.normal(size=(count, 10, 2))
        return {"inputs": values, "targets": values.sum((1, 2))[:, None]}
"""

STUDY = """
keep_weights = 1
precision = "fp32"

[training]
steps = 40
log_every = 20
batch_size = 4
bptt_steps = 5
update_every = 5

[evaluation]
windows = 8

[space]
task = [{ source = "adding", length = 10 }, "my_tasks.py:Sum"]
cell = ["elman", "gru"]
layers = [1]
state_size = [3, 4]
"""

TASKS = {"adding(length=10)": "adding:10", "Sum": "my_tasks.py:Sum"}
"""Source of each task of the study by its name."""

TEXT_SETTINGS = {
    "task.corpus": "text.txt",
    "task.tokenizer": "bpe:300",
    "training.sequence_length": 11,
    "evaluation.window_length": 20,
}

WITH_TEXT = {"space.task": ["adding:10", "text"], "space.state_size": [3], **TEXT_SETTINGS}
"""Settings of a study with a text among its tasks."""

PLACE = ("--storage", "sqlite:///studies.db")

FLOORS = Floors(constant={"loss": 2.0}, memoryless={"loss": 1.5}, recurrent={"loss": 0.5})


def enter(folder, patch):
    """Enter a folder with a study file and a task; tasks are not checked."""
    patch.setattr("search.task_check.check_task", lambda *_: (FLOORS, ""))
    (folder / "my_tasks.py").write_text(SUM)
    (folder / "mine.toml").write_text(STUDY)
    (folder / "text.txt").write_text("what is read and " * 4000)
    patch.chdir(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the finished study."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter(tmp_path_factory.mktemp("trained"), patch)
        run()
    return folder


@pytest.fixture
def study(folder, trained):
    """The finished study, in a copy of its folder."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    return rnn_search.load("mine", storage="sqlite:///studies.db")


def run(study="mine.toml", **options):
    return rnn_search.run(study, storage="sqlite:///studies.db", device="cpu", **options)


def join(*overrides, **options):
    given = {"study": "mine.toml", "storage": "sqlite:///studies.db", "overrides": overrides}
    handle = create_or_join(RunOptions(**given | options))
    handle.storage.close()
    return handle


def test_each_architecture_is_trained_once_on_each_task_as_in_a_study_of_the_task(study):
    results = study.results
    combinations = results[["task", "cell", "state_size"]]
    assert len(combinations) == len(combinations.drop_duplicates()) == 8
    assert set(results["task"]) == {*TASKS}
    assert "solved_at" in study.at_task("adding(length=10)").results
    assert "solved_at" not in study.at_task("Sum").results
    assert study.counts.complete == 8
    for number, (task, source) in enumerate(TASKS.items()):
        # In lockstep or not, with whatever is trained before.
        alone = run(
            name=f"alone-{number}",
            overrides={"space.task": {}, "task.source": source},
            lockstep=1,
        )
        require_same_results(results[results["task"] == task], alone.results)


def require_same_results(found, expected):
    columns = ["cell", "state_size", "value", "training_loss", "parameter_count"]
    rows, others = (
        table[columns].sort_values(columns[:2]).to_numpy().tolist() for table in (found, expected)
    )
    for row, other in zip(rows, others, strict=True):
        assert row[:2] == other[:2]
        assert row[2:] == pytest.approx(other[2:], rel=1e-5)


def test_results_say_at_which_update_a_trial_solved_its_task(folder):
    training = {"updates": 60, "batch_size": 32, "learning_rate": 0.03, "eval_every": 15}
    study = run(
        {
            "task": {"source": "induction", "length": 8, "vocabulary": 8},
            "space": {"cell": ["gru"], "layers": [1], "state_size": [16]},
            "training": training | {"bptt_steps": "sequence"},
        },
        name="induction",
    )
    points = study.curves.dropna(subset=["validation_accuracy"])
    solved = points["step"][points["validation_accuracy"] >= 0.99].min()
    assert 15 < solved / 8 <= 60
    assert study.results["solved_at"].tolist() == [solved / 8]


def test_text_is_one_of_several_tasks_with_settings_of_its_own(folder):
    study = run(overrides=WITH_TEXT)
    text = study.at_task("text")
    alone = run(
        name="alone",
        overrides={"space.task": {}, "space.state_size": [3], **TEXT_SETTINGS},
        lockstep=1,
    )
    require_same_results(text.results, alone.results)
    assert text.results["validation_bits_per_byte"].notna().all()
    assert "validation_bits_per_byte" not in study.at_task("adding:10").results
    assert "validation_mae" not in text.results
    assert "bits per byte" in study.report("mine.html").read_text()
    place = {"storage": "sqlite:///studies.db"}
    rnn_search.export_study("mine", folder / "mine.jsonl", **place)
    rnn_search.import_study(folder / "mine.jsonl", name="imported", **place)
    assert join(study="imported").tasks.keys() == {"adding:10", "text"}


def test_extension_that_adds_a_text_learns_its_tokenizer(folder):
    lengths = "training.sequence_length=1000", "evaluation.window_length=1000"
    join("space.task=['adding:10']", *lengths)
    added = "space.task=['adding:10', 'text']", "task.tokenizer='bpe:300'", "task.corpus='text.txt'"
    for tasks in (added[0], "space.task=['adding:10', 'text', 'adding:5']"):
        handle = join(tasks, *added[1:], *lengths, extend=True)
        record = handle.record.config.task_records["text"]
        assert record.text.tokenizer is not None
        assert 256 < record.outputs <= 300
        assert handle.task_of((("task", "text"),)).spec.outputs == record.outputs


def test_weights_of_the_best_of_each_task_are_kept_and_exported(study, folder):
    best = study.status.best_by_task
    assert list(best) == list(TASKS)
    for task, each in best.items():
        assert each.value == study.results.query("task == @task")["value"].min()
        assert study.at_task(task).best.number == each.number
        assert study.trial(each.number).network() is not None
    export_trial("mine", folder / "exported", best["Sum"].number, study.storage, None)
    assert (folder / "exported" / "README.md").read_text().count("Sum") > 0
    assert invoke_command("export", "mine", "by-task", "--task", "Sum", *PLACE, cwd=folder)
    description = (folder / "by-task" / "README.md").read_text()
    assert re.search(rf"trial\W+{best['Sum'].number}\b", description)
    names = "adding(length=10), Sum"
    for task, expected in (("", f"at_task: {names}"), ("Som", "did you mean 'Sum'?")):
        done = invoke_command("export", "mine", "other", "--task", task, *PLACE, cwd=folder)
        require_refused(done, expected)
    for what in (lambda: study.best, study.pareto, study.hypotheses, study.verdicts):
        with refused(UserError, f"--task, in Python with at_task: {names}"):
            what()
    with refused(UserError, "no effects in task 'Som': did you mean 'Sum'?"):
        study.effects().plot(task="Som")
    loaded = rnn_search.load("mine", storage=study.storage, task="Sum")
    assert loaded.optuna.best_value == loaded.best.value
    assert set(loaded.optuna.best_params) == {"cell", "layers", "state_size"}
    assert loaded.best.number == best["Sum"].number


def test_each_task_trains_whole_updates_of_its_own_sequences(folder):
    """Also when a task is added, and when the same file is run again."""
    stated = {
        "length = 10 }": "length = 7 }",
        "steps = 40\nlog_every = 20": "updates = 3\nlog_every = 8",
        "bptt_steps = 5\nupdate_every = 5": 'bptt_steps = "sequence"\nsequence_length = 5',
        "windows = 8": "windows = 8\nwindow_length = 20",
        '"my_tasks.py:Sum"]': '"my_tasks.py:Sum", "text"]',
        "[space]": '[task]\ncorpus = "text.txt"\n\n[space]',
        "state_size = [3, 4]": "state_size = [3]",
    }
    text = STUDY
    for old, new in stated.items():
        text = text.replace(old, new)
    (folder / "mine.toml").write_text(text)
    steps = dict(run().results[["task", "steps"]].itertuples(index=False, name=None))
    assert steps == {"adding(length=7)": 21, "Sum": 30, "text": 12}
    (folder / "mine.toml").write_text(text.replace('"text"]', '"text", "copy:2"]'))
    study = run(extend=True)
    assert set(study.results["updates"]) == {3}
    assert {task: length.log_every for task, length in study.config.lengths.items()} == {
        "adding(length=7)": 14, "Sum": 10, "text": 8, "copy:2": 22
    }  # fmt: skip
    assert len(run().results) == 8


@pytest.mark.parametrize(
    ("override", "error", "reason"),
    [
        ("space.task=['adding:10', {source='adding:10'}]", UserError, "expected distinct values"),
        (
            "space.task=['adding:10', {source='adding', length=10}]",
            TaskError,
            "tasks adding:10 and adding(length=10) are the same",
        ),
        ("space.task=[{source='adding', size=10}]", UserError, "adding has no option size"),
        ("space.task=[{length=10}]", UserError, "space.task.1.source: field required"),
        (
            "space.task=[{source='adding', length=[10, 20]}]",
            UserError,
            "length is [10, 20]: expected one value; write an entry for each",
        ),
        ("space.task=[10]", UserError, "expected a task such as"),
        (
            "space.task=[{source='text', corpus='a.txt'}]",
            UserError,
            "corpus or tokenizer in [task]",
        ),
        ("task.corpus='text.txt'", UserError, "because the task has its own data"),
        ("space.training.sequence_length=[11, 21]", UserError, "the task decides its length"),
        ("space.task=['a/x.py:Sum', 'my_tasks.py:Sum']", TaskError, "expected a file"),
        ("space.task=['nothing:1']", TaskError, "task 'nothing:1' not found"),
        ("task.source='copy:10'", UserError, "and a list of tasks in space.task"),
        ("nuisance=['task']", UserError, "nuisance names 'task' of several tasks"),
        ("report_threshold=0.5", UserError, "report_threshold = 0.5 for tasks whose losses have"),
        ("report_threshold={Som=0.5}", UserError, "for the task 'Som': did you mean 'Sum'?"),
        (
            "report_threshold={Sum=-1.0}",
            UserError,
            "report_threshold is -1.0: expected a number ab",
        ),
        ("space.task='parity'", UserError, "expected a list of tasks, or a table of options"),
        ("training.warmup_steps=9", UserError, "which have 8 updates"),
        ("space.exclude=[{task='Sum'}]", UserError, "no combination of task Sum that exclude"),
        ("space.exclude=[{task='Som'}]", UserError, "excludes task = 'Som': expected one of"),
        (
            "hypothesis=[{statement='c', parameter='layers', before=1, after=2, expect='lower'}]",
            UserError,
            "no margin",
        ),
    ],
)
def test_setting_that_does_not_suit_several_tasks_is_rejected_in_one_line(
    folder, override, error, reason
):
    with refused(error, reason, folder):
        join(override)


def test_options_of_a_task_are_no_axes_next_to_several_tasks(folder):
    table = "\n[[space]]\ncell = ['gru']\nlayers = [1]\nstate_size = [5]\n"
    text = STUDY.replace("[space]", "[[space]]") + table
    (folder / "mine.toml").write_text(f"{text}task = {{ length = [4] }}\n")
    with refused(UserError, "space 2 has the option task.length of the task text", folder):
        join()
    (folder / "mine.toml").write_text(text)
    with refused(UserError, "space 2 has no list of tasks, but another table has", folder):
        join()


def test_tasks_are_part_of_what_makes_results_comparable(folder, monkeypatch):
    join()
    with pytest.raises(UserError, match=r"space\.task: \['adding\(length=10\)', 'Sum'\] in the"):
        join("space.task=['adding:10', 'adding:20']")
    (folder / "my_tasks.py").write_text(f"{SUM}    # other\n")
    with pytest.raises(UserError, match="with another version of Sum"):
        join()
    # By its name a worker opens the copy of the class.
    (folder / "my_tasks.py").unlink()
    monkeypatch.setattr(rnn.own_code, "_loaded", {})
    options = RunOptions(study="mine", storage="sqlite:///studies.db")
    handle = open_study("mine", options.storage, options)
    handle.storage.close()
    assert handle.task_of((("task", "Sum"),)).spec.outputs == 1


def test_extension_adds_a_task(study, folder):
    before = study.results
    tasks = [{"source": "adding", "length": 10}, "my_tasks.py:Sum", "adding:5"]
    run(overrides={"space.task": tasks}, extend=True)
    assert study.counts.complete == 12
    assert study.results.loc[before.index, "value"].equals(before["value"])
    handle = join()  # with the file of before
    assert "was extended: using its stored trials" in handle.notice
    assert set(handle.tasks) == set(handle.record.task_floors) == {*before["task"], "adding:5"}


def test_study_of_several_tasks_is_exported_imported_and_continued(trained, folder):
    join()
    study = rnn_search.load("mine", storage=f"sqlite:///{trained}/studies.db")
    place = {"storage": "sqlite:///studies.db"}
    rnn_search.export_study("mine", folder / "mine.jsonl", **place)
    assert str(folder) not in (folder / "mine.jsonl").read_text()
    rnn_search.import_study(folder / "mine.jsonl", name="imported", **place)
    continued = run(name="imported")
    values, others = (each.results.sort_index()["value"].tolist() for each in (continued, study))
    assert values == pytest.approx(others, rel=1e-5)
    assert join(study="imported").tasks.keys() == TASKS.keys()


def test_trial_of_one_task_runs_once_more(study):
    again = run("mine", trial=7)
    (row,) = again.results.to_dict("records")
    assert row["value"] == pytest.approx(study.results.loc[7, "value"], rel=1e-5)
    assert again.best.value == row["value"]


NEXT = """
[refinement]
source = "mine"
top = 1
variants = [{ state_size = 5 }]
replicates = 2
margin = { "adding(length=10)" = 0.1, Sum = 0.2 }
"""


def test_refinement_derives_from_the_best_of_each_task(study, folder):
    (folder / "next.toml").write_text(NEXT)
    derived = run("next.toml")
    table = derived.results
    assert sorted(zip(table["task"], table["replicate"], strict=True)) == sorted(
        (task, replicate) for task in TASKS for replicate in (1, 2)
    )
    for task in TASKS:
        part = derived.at_task(task)
        best = study.at_task(task).best
        assert set(part.results["cell"]) == {best.params["cell"]}
        assert part.results["source_trials"].tolist() == [[best.number]] * 2
        # The task adding says when it is solved.
        mean_of = "mean of 2 runs" if task == "Sum" else "solved 0 of 2, median"
        assert derived.status.best_by_task[task].mean_of == mean_of
        assert part.best.number in part.results.index
        judgement = part.verdicts().findings.summary.judgement
        if task == "Sum":
            assert judgement.margin == 0.2
        else:  # it is judged by the runs that are solved
            assert judgement is None
        assert part.best.network() is not None
    assert "next, task Sum" in derived.report("next.html", ["mine"]).read_text()
    run("next.toml", extend=True, overrides={"refinement.replicates": 3})
    assert set(derived.at_task("Sum").results["replicate"]) == {1, 2, 3}


def test_refinement_can_derive_in_all_tasks_from_the_best_mean_rank(study, folder):
    (folder / "next.toml").write_text(NEXT)
    results = study.results
    ranks = results.assign(rank=results.groupby("task")["value"].rank())
    means = ranks.groupby(["cell", "state_size"])["rank"].mean().sort_values()
    best = means.index[0]
    settings = ("refinement.rank='mean'", "refinement.variants=[{layers=2}]")
    handle = join(*settings, study="next.toml", is_refinement=True)
    chosen = [(trial.params["cell"], trial.params["state_size"]) for trial in handle.study.trials]
    assert means[chosen[0]] == means[best]
    assert chosen == [chosen[0]] * len(chosen)
    assert {trial.params["task"] for trial in handle.study.trials} == {*TASKS}


def test_threshold_is_that_of_a_task(study):
    run(overrides={"report_threshold": {"Sum": 1e9}}, extend=True)
    solved = {task: study.at_task(task).effects().to_frame() for task in TASKS}
    assert set(solved["Sum"]["threshold_before"]) == {1.0}
    own = solved["adding(length=10)"]  # which has a threshold of its own
    assert "threshold_before" not in own
    assert set(own["solved_before"]) == {0.0}
