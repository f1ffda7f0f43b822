"""Studies in TensorBoard, W&B and MLflow, written and read back with their own libraries.

W&B is offline: what it would upload is read from its files.
"""

import json
import math
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from factories import loop_value, make_loop, make_pruned, make_runs, make_study
from invocation import require_refused
from managed_studies import dump
from optuna.trial import TrialState

from rnn.errors import UserError
from rnn_search import import_results, load, trackers
from studies.config import StudyConfig
from studies.storage.leases import PendingWrite
from studies.storage.open import load_study, open_storage

EXPORTS = Path(__file__).parent / "data" / "imports"


@dataclass
class Run:
    """What a tracker shows of a trial; numbers are rounded to six digits."""

    params: dict
    points: dict
    group: str
    status: str = ""


def rounded(points):
    return {key: float(f"{value:.6g}") for key, value in points.items()}


def as_text(value):
    return str(int(value) if type(value) is float and value.is_integer() else value)


# ------------------------------------------------------------------ the trackers, read back


class TensorBoard:
    def __init__(self, folder, monkeypatch):
        self.folder = folder / "tb"
        self.target = f"tensorboard:{self.folder}"

    def read(self):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata

        runs = {}
        for path in self.folder.glob("*/*/trial-*"):
            events = EventAccumulator(str(path)).Reload()
            points = {
                (tag, event.step): event.value
                for tag in events.Tags()["scalars"]
                for event in events.Scalars(tag)
            }
            assert len(points) == sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"])
            found = events.PluginTagToContent("hparams")
            start = metadata.parse_session_start_info_plugin_data(
                found[metadata.SESSION_START_INFO_TAG]
            )
            params = {
                name: getattr(value, value.WhichOneof("kind"))
                for name, value in start.hparams.items()
            }
            number = int(path.name.partition("-")[2])
            runs[number] = Run(params, rounded(points), path.parent.name)
        return runs

    def fail(self, monkeypatch, after):
        from tensorboard.summary.writer.record_writer import RecordWriter

        break_after(monkeypatch, RecordWriter, "write", 6 * after, OSError("no space left"))


class WandB:
    def __init__(self, folder, monkeypatch):
        import wandb

        wandb.teardown()  # the folder of earlier runs
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_DIR", str(folder))
        self.folder = folder / "wandb"
        self.target = "wandb:team/project"

    def read(self):
        sys.modules["wandb"].teardown()  # waits until the files are written
        runs = {}
        for path in self.folder.glob("offline-run-*/run-*.wandb"):
            number = int(path.stem.rpartition("-")[2])
            assert number not in runs, "a trial has two runs"
            runs[number] = self.read_run(path)
        return runs

    def read_run(self, path):
        points = {}
        summary = {}
        params = {}
        step = None
        ended = "running"
        for record in read_wandb_file(path):
            if record.HasField("run"):
                assert (record.run.entity, record.run.project) == ("team", "project")
                group = record.run.run_group
                params = {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    points[name, record.history.step.num] = json.loads(item.value_json)
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            assert not record.environment.args, "a command line may have passwords"
            if record.HasField("exit"):
                ended = "failed" if record.exit.exit_code else "ended"
        if summary["status"] in ("RUNNING", "WAITING"):
            ended = "running"
        step = max((step for _, step in points), default=0)
        results = {(k, step): v for k, v in summary.items() if k.startswith("result/")}
        params = {name: value for name, value in params.items() if name != "_wandb"}
        return Run(params, rounded(points | results), group, ended)

    def fail(self, monkeypatch, after):
        import wandb

        error = wandb.errors.CommError("no connection")
        break_after(monkeypatch, wandb.Run, "log", 2 * after, error)


def read_wandb_file(path):
    """Yield the records of a file of W&B: in blocks of 32 KiB, with a header of 7 bytes each."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    place = 7
    parts = b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


EMPTY_MLFLOW: dict[str, bytes] = {}


class MLflow:
    def __init__(self, folder, monkeypatch):
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        path = folder / "mlflow.db"
        self.target = f"mlflow:sqlite:///{path}"
        if EMPTY_MLFLOW:
            path.write_bytes(EMPTY_MLFLOW["empty"])
        self.client = MlflowClient(f"sqlite:///{path}")
        self.client.search_experiments()
        EMPTY_MLFLOW.setdefault("empty", path.read_bytes())  # to create one takes seconds

    def read(self):
        runs = {}
        for experiment in self.client.search_experiments(filter_string="name != 'Default'"):
            for run in self.client.search_runs([experiment.experiment_id]):
                history = [
                    ((name, metric.step), metric.value)
                    for name in run.data.metrics
                    for metric in self.client.get_metric_history(run.info.run_id, name)
                ]
                assert len(history) == len(dict(history))
                number = int(run.info.run_name.partition(":")[0])
                assert number not in runs, "a trial has two runs"
                status = {"FINISHED": "ended", "FAILED": "failed", "RUNNING": "running"}
                runs[number] = Run(
                    run.data.params,
                    rounded(dict(history)),
                    run.data.tags["architecture"],
                    status[run.info.status],
                )
        return runs

    def fail(self, monkeypatch, after):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        error = MlflowException("no connection")
        break_after(monkeypatch, MlflowClient, "log_batch", after, error)


def break_after(monkeypatch, owner, name, calls, error):
    """Let a method raise an error from a call on."""
    method = getattr(owner, name)
    made = []

    def call(*arguments, **options):
        made.append(name)
        if len(made) > calls:
            raise error
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


@pytest.fixture(
    params=[
        "tensorboard",
        pytest.param("wandb", marks=pytest.mark.extended),
        pytest.param("mlflow", marks=pytest.mark.extended),
    ]
)
def tracker(request, tmp_path, monkeypatch):
    yield TRACKERS[request.param](tmp_path, monkeypatch)
    if request.param == "wandb":
        sys.modules["wandb"].teardown()


@pytest.fixture
def log(sqlite_url, tracker):
    """Log a study once; return the number of trials that were new or had changed."""

    def log_once(name="made"):
        return sum(trackers.log_study(sqlite_url, name, tracker.target))

    return log_once


@pytest.fixture
def log_anew(sqlite_url, tracker, tmp_path, monkeypatch):
    """Log a study to another place; return what is there."""

    def log_elsewhere():
        folder = tmp_path / "anew"
        folder.mkdir()
        place = type(tracker)(folder, monkeypatch)
        assert sum(trackers.log_study(sqlite_url, "made", place.target))
        return place.read()

    return log_elsewhere


# ------------------------------------------------------------------ studies

SPACE = {"layers": [1], "state_size": [4, 8], "state_source": ["new"], "residual": [False]}
SPACE |= {f"{gate}_gate": [False] for gate in ("input", "forget", "output", "state")}


@pytest.fixture
def study(sqlite_url):
    """A study of a complete trial and one that waits."""
    first, second = StudyConfig.model_validate({"space": SPACE}).grid.combinations()
    curve = {50: 2.5, 100: 1.5, 150: math.nan}
    recorded = {"curve": curve, "curve:validation_loss": [[100, 1.75], [150, None]]}
    make_runs(sqlite_url, "made", {"space": SPACE}, [(first, 1.5, recorded), (second, None, {})])
    return sqlite_url


class Worker:
    """Trains the waiting trial."""

    def __init__(self, url):
        self.url = url
        with closing(open_storage(url)) as storage:
            study_id = load_study(storage, "made")._study_id
            self.trial_id = storage.claim(study_id, "w")

    def write(self, curve, **options):
        metrics = {"curve:validation_loss": [[step, value + 0.5] for step, value in curve.items()]}
        write = PendingWrite(self.trial_id, "w", curve, metrics=metrics, **options)
        with closing(open_storage(self.url)) as storage:
            assert storage.flush([write]) == []

    def finish(self, value):
        with closing(open_storage(self.url)) as storage:
            recorded = {"parameter_count": 7, "seed": 3, "seconds": 1.0}
            storage.finish(self.trial_id, "w", TrialState.COMPLETE, value, recorded)


def test_run_holds_parameters_curves_results_group_and_outcome(log, tracker, sqlite_url):
    make_study(sqlite_url, finished=5)
    before = dump(sqlite_url)
    assert log() == 5
    assert dump(sqlite_url) == before
    runs = tracker.read()
    assert sorted(runs) == [*range(5)]
    assert [runs[number].status for number in range(5)] in (
        ["ended", "ended", "ended", "failed", "ended"],
        [""] * 5,  # TensorBoard shows none
    )
    table = load("made", storage=sqlite_url).results
    for number, run in runs.items():
        assert run.group == table.architecture[number]
        expected = {name: str(table.at[number, name]) for name in run.params}
        assert {name: as_text(value) for name, value in run.params.items()} == expected
    value = table.value[4]
    assert runs[4].points == rounded(
        {
            ("curve/smoothed_training_loss", 50): value + 1,
            ("curve/smoothed_training_loss", 100): value,
            ("result/value", 100): value,
            ("result/parameter_count", 100): 14,
            ("result/seconds", 100): 2,
            ("result/steps_per_second", 100): 10,
            ("result/validation_bits_per_byte", 100): 2.5,
        }
    )
    assert log() == 0
    assert tracker.read() == runs


def test_call_adds_what_a_trial_got_since_the_last_one(log, log_anew, tracker, study):
    assert log() == 1
    worker = Worker(study)
    assert log() == 1
    worker.write({50: 2.75})
    assert log() == 1
    worker.write({50: 2.75, 100: 2.25})
    assert log() == 1
    assert tracker.read()[1].status in ("running", "")
    assert log() == 0
    worker.finish(2.0)
    assert log() == 1
    runs = tracker.read()
    assert runs[1].points["curve/validation_loss", 100] == 2.75
    assert runs[1].points["result/value", 100] == 2.0
    assert runs == log_anew()


def test_points_that_a_resumed_trial_has_lost_are_removed(log, log_anew, tracker, study):
    worker = Worker(study)
    worker.write({50: 2.75, 100: 2.25, 150: 2.125})
    log()
    worker.write({50: 2.75}, replace_all=True)
    log()
    worker.write({50: 2.75, 100: 2.375})
    worker.finish(2.0)
    log()
    runs = tracker.read()
    assert ("curve/smoothed_training_loss", 150) not in runs[1].points
    assert runs == log_anew()


def test_tracker_that_fails_leaves_the_study_and_is_completed(
    log, log_anew, tracker, sqlite_url, monkeypatch
):
    make_study(sqlite_url, finished=4)
    before = dump(sqlite_url)
    with monkeypatch.context() as patch:
        tracker.fail(patch, after=2)
        with pytest.raises(UserError, match=r"^\w+ failed \(no .*\); the study is unchanged: .*"):
            log()
    assert dump(sqlite_url) == before
    assert 1 <= log() < 4
    assert tracker.read() == log_anew()


def test_study_is_followed_until_it_is_finished(study, tracker, log_anew, monkeypatch):
    worker = Worker(study)
    curve = {0: 3.0, 50: 2.75, 100: 2.25}
    steps = [
        lambda: worker.write({0: 3.0}),
        lambda: worker.write(curve),
        lambda: worker.write({0: 3.0, 50: 2.5}, replace_all=True),
        lambda: None,
        lambda: worker.finish(2.0),
    ]
    monkeypatch.setattr(trackers.time, "sleep", lambda seconds: steps.pop(0)())
    counts = trackers.log_study(study, "made", tracker.target, follow=True)
    assert [*counts] == [2, 1, 1, 1, 0, 1]
    monkeypatch.undo()
    assert tracker.read() == log_anew()


def test_imported_results_are_logged(log, tracker, sqlite_url):
    import_results(EXPORTS / "sklearn.csv", storage=sqlite_url, value="mean_test_score")
    assert log("sklearn") == 6
    table = load("sklearn", storage=sqlite_url).results
    runs = tracker.read()
    for number, run in runs.items():
        assert run.points == rounded({("result/value", 0): table.value[number]})
        assert run.params["kernel"] == table.kernel[number]
        assert run.group == table.architecture[number]
    assert log("sklearn") == 0


def test_curves_and_last_values_of_a_training_loop_are_logged(log, tracker, sqlite_url):
    params = {"optimizer": "sgd", "layers": 2, "cell": "attention", "learning_rate": 0.01}
    make_loop(sqlite_url, "made", space={name: [choice] for name, choice in params.items()})
    assert log() == 1
    (run,) = tracker.read().values()
    value = loop_value(params)
    curves = {("curve/accuracy", 100): value / 2, ("curve/accuracy", 200): value - 5}
    curves |= {("curve/accuracy", 300): value, ("curve/loss", 100): 2.0, ("curve/loss", 200): 1.5}
    assert rounded(curves).items() <= run.points.items()
    assert run.points["result/value", 300] == rounded({0: value})[0]
    assert run.points["result/last_number", 300] == 1.0
    assert run.params["optimizer"] == "sgd"


def test_trial_that_goes_on_has_no_results(sqlite_url, tmp_path, monkeypatch):
    tracker = TensorBoard(tmp_path, monkeypatch)
    make_pruned(sqlite_url, finished=False)
    assert [*trackers.log_study(sqlite_url, "made", tracker.target)] == [32]
    runs = tracker.read()
    assert ("result/seconds", 200) in runs[4].points
    assert {name for name, _ in runs[31].points} == {"curve/smoothed_training_loss"}


def test_tasks_are_groups(sqlite_url, tmp_path, monkeypatch):
    tracker = TensorBoard(tmp_path, monkeypatch)
    record = {"steps": 30, "inputs": 10, "outputs": 8, "reads_tokens": True,
              "predicts_classes": True, "loss": "cross-entropy"}  # fmt: skip
    tasks = ["copy:10", "copy:20"]
    raw = {"space": SPACE | {"state_size": [4], "task": tasks}}
    raw["task_records"] = {task: record | {"source": task} for task in tasks}
    trials = StudyConfig.model_validate(raw).grid.combinations()
    metrics = {"metrics": {"accuracy": 0.5}}
    make_runs(sqlite_url, "made", raw, [(params, 1.5, metrics) for params in trials])
    assert [*trackers.log_study(sqlite_url, "made", tracker.target)] == [2]
    runs = tracker.read()
    groups = {run.params["task"]: run.group for run in runs.values()}
    assert groups["copy:10"].startswith("copy_10_ 1×4")
    assert groups["copy:20"].startswith("copy_20_ 1×4")
    assert runs[0].points["result/validation_accuracy", 100] == 0.5


def test_file_that_ends_within_a_record_is_completed(study, tmp_path, monkeypatch):
    tracker = TensorBoard(tmp_path, monkeypatch)
    assert [*trackers.log_study(study, "made", tracker.target)] == [1]
    runs = tracker.read()
    (path,) = tracker.folder.glob("*/*/*/*")
    path.write_bytes(path.read_bytes()[:-5])
    assert [*trackers.log_study(study, "made", tracker.target)] == [1]
    assert tracker.read() == runs


def test_run_of_wandb_is_continued_behind_its_last_step(study, tmp_path, monkeypatch):
    """A stand-in for a run that is online, which says at which step it continues."""
    tracker = WandB(tmp_path, monkeypatch)
    import wandb

    monkeypatch.setattr(wandb.Run, "step", 51)
    assert [*trackers.log_study(study, "made", tracker.target)] == [1]
    curves = [key for key in tracker.read()[0].points if key[0].startswith("curve/")]
    assert sorted(curves) == [
        ("curve/smoothed_training_loss", 100),
        ("curve/validation_loss", 100),
    ]


def test_last_step_of_a_running_trial_waits_for_more_values(study, tmp_path, monkeypatch):
    """W&B refuses values of a step that it has."""
    tracker = WandB(tmp_path, monkeypatch)
    Worker(study).write({50: 2.75, 100: 2.25})
    assert [*trackers.log_study(study, "made", tracker.target)] == [2]
    assert {step for _, step in tracker.read()[1].points} == {50}


# ------------------------------------------------------------------ the command


def test_command_says_how_many_trials_it_logged(invoke, study, tmp_path):
    command = ("log", "made", "--to", f"tensorboard:{tmp_path}/tb", "--storage", study)
    for count, noun in ((1, "trial"), (0, "trials")):
        done = invoke(*command)
        assert done.returncode == 0, done.stderr
        logged = f"study 'made': logged {count} new or changed {noun} to tensorboard:{tmp_path}/tb"
        assert done.stdout == f"{logged}\n"


def test_follower_ends_at_ctrl_c(invoke, study, tmp_path, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(trackers.time, "sleep", interrupt)
    to = f"tensorboard:{tmp_path}/tb"
    done = invoke("log", "made", "--to", to, "--storage", study, "--follow")
    assert done.returncode == 130
    assert done.stdout.startswith("study 'made': logged 1 ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("aim:runs", "--to starts with 'aim': expected tensorboard:DIR, wandb:PROJECT or"),
        ("tensorboard", "--to starts with 'tensorboard': expected tensorboard:DIR"),
        ("tensorboard:{tmp}/studies.db", "tensorboard failed ([Errno 20] Not a directory"),
        ("http://me:s3cret@host", "--to starts with 'http': expected"),
    ],
)
def test_target_that_cannot_be_used_is_refused(invoke, study, tmp_path, target, problem):
    to = target.replace("{tmp}", str(tmp_path))
    require_refused(invoke("log", "made", "--to", to, "--storage", study), problem)


@pytest.mark.parametrize("extra", TRACKERS)
def test_library_that_is_missing_is_named(invoke, study, monkeypatch, extra):
    for module in [name for name in sys.modules if name.partition(".")[0] == extra]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, extra, None)
    done = invoke("log", "made", "--to", f"{extra}:place", "--storage", study)
    require_refused(done, f"--to {extra} needs a library", f"pip install 'rnn-search[{extra}]'")


@pytest.mark.extended
def test_secrets_in_a_uri_are_not_printed(invoke, study):
    uri = "http://me:s3cret@localhost:9/a?key=hunter2"
    variables = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = invoke("log", "made", "--to", f"mlflow:{uri}", "--storage", study, **variables)
    require_refused(done, "mlflow failed (API request to http://***@localhost:9/a")
