"""Log the trials of a study to TensorBoard, Weights & Biases or MLflow, one run each.

Trials are read from the storage, which is never written: a tracker that fails harms no trial.
"""

import hashlib
import math
import re
import shutil
import time
import traceback
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from reports.trial_table import build_table
from rnn.errors import UserError
from studies.attributes import CURVE
from studies.config import StudyConfig
from studies.measure import find_measure
from studies.messages import shorten, to_line
from studies.storage.open import load_study, read_record, read_storage
from studies.storage.reads import RECORDS, TrialReader
from studies.storage.tables import INTERMEDIATE_VALUES
from studies.storage.trials import StoredTrial, TrialStatus

FOLLOW_SECONDS = 10.0
"""Interval between reads of a study that is followed."""

_NO_RESULTS = {"seed", "replicate", "threads", "lockstep", "rung", "keep_probability"}
_NO_RESULTS |= {"predicted_value", "predicted_scale", "copied_from", "bptt_steps"}
"""Numbers in the table of trials that say how one was run or pruned."""

_MAX_NAME = 128
"""Characters of the name of a run or a group in W&B."""

Points = dict[tuple[str, int], float]
"""Finite values by name and step."""


@dataclass(frozen=True)
class TrialLog:
    """What a tracker shows of a trial.

    Attributes:
        key: name of the trial that is unique among all studies; it ends in its number.
        group: architecture, or another configuration, after the task if there are several.
        exit_code: 0 or 1 of a trial that has ended; None if it goes on.
        points: curves as ``curve/NAME``, in the order of steps; of a trial that has ended its value
            and other numbers as ``result/NAME``, at its last step.
    """

    key: str
    name: str
    group: str
    status: str
    exit_code: int | None
    params: dict[str, Any]
    points: Points

    @property
    def digest(self) -> str:
        """Hash of all of it."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


class Tracker(Protocol):
    """Program that shows runs, created with a place, and the name and the unique key of a study.

    What it has, it asks the place, so that a call after one that was killed adds the rest. It may
    raise whatever the program's library raises.
    """

    def __init__(self, place: str, name: str, key: str) -> None: ...

    def log(self, trial: TrialLog) -> bool:
        """Add what is new of a trial, and return whether anything was.

        A trial may have lost points: those behind the checkpoint from which it was resumed, or all
        of them if it was retried.
        """


# ------------------------------------------------------------------ studies


def log_study(url: str, name: str, target: str, follow: bool = False) -> Iterator[int]:
    """Log the trials of a study that have begun, and yield how many are new or have changed.

    Args:
        url: URL of the storage.
        name: name of the study.
        target: tracker and place, as in ``tensorboard:runs``.
        follow: whether to log again and again, until the study is finished.

    Raises:
        UserError: if the study or the target cannot be used, or the tracker fails.
    """
    kind, _, place = target.partition(":")
    if kind not in _TRACKERS or not place:
        expected = "tensorboard:DIR, wandb:PROJECT or mlflow:URI"
        raise UserError(f"--to starts with {shorten(repr(kind))}: expected {expected}")
    with closing(read_storage(url)) as storage:
        study = load_study(storage, name)
        key = read_record(study).artifact_folder
        reader = TrialReader(storage, study._study_id, (*RECORDS, INTERMEDIATE_VALUES))
        with _reporting_failures(target):
            tracker = _TRACKERS[kind](place, name, key)
        logged: dict[int, StoredTrial] = {}
        while True:
            config = read_record(load_study(storage, name)).config
            trials = reader.read()
            changed = [trial for trial in trials if logged.get(trial.number) is not trial]
            logs = _describe_trials(changed, trials, config, key)
            with _reporting_failures(target):
                count = sum(tracker.log(log) for log in logs)
            logged = {trial.number: trial for trial in trials}
            yield count
            if not follow or all(trial.state.is_finished() for trial in trials):
                return
            time.sleep(FOLLOW_SECONDS)


def _describe_trials(
    chosen: Sequence[StoredTrial], trials: Sequence[StoredTrial], config: StudyConfig, key: str
) -> list[TrialLog]:
    """Return the logs of some trials, without those that have not begun; all decide on names."""
    begun = [trial for trial in chosen if trial.started or trial.curve or trial.values]
    if not begun:
        return []
    rows = build_table(trials, config).loc[[trial.number for trial in begun]].to_dict("index")
    curve = find_measure(config).curve.replace(" ", "_")
    logs = []
    for trial in begun:
        task = f"{config.task_of(trial.params)}: " if config.task_names else ""
        row = rows[trial.number]
        is_failed = trial.status in (TrialStatus.FAIL, TrialStatus.DIVERGED)
        log = TrialLog(
            key=f"{key[-80:]}-{trial.number}",
            name=shorten(f"{trial.number}: {row['label']}", _MAX_NAME),
            group=shorten(f"{task}{row['architecture']}", _MAX_NAME),
            status=trial.status.value,
            exit_code=int(is_failed) if trial.state.is_finished() else None,
            params={
                _clean(name): value if isinstance(value, int | float) else str(value)
                for name, value in trial.params.items()
            },
            points=_list_points(trial, curve, row),
        )
        logs.append(log)
    return logs


def _list_points(trial: StoredTrial, curve: str, row: Mapping[Hashable, Any]) -> Points:
    points = {(f"curve/{curve}", step): value for step, value in trial.curve.items()}
    for name, held_out in trial.system_attributes.items():
        if name.startswith(CURVE):
            points |= {(f"curve/{name[len(CURVE) :]}", step): value for step, value in held_out}
    if trial.state.is_finished():
        last = max((step for _, step in points), default=0)
        for column in row.keys() - trial.params.keys() - _NO_RESULTS:
            points[f"result/{column}", last] = row[column]
    ordered = sorted(points.items(), key=lambda point: (point[0][1], point[0][0]))
    return {
        (_clean(name), step): float(value)  # an integer or not, as other trials have it
        for (name, step), value in ordered
        if type(value) in (int, float) and math.isfinite(value)
    }


def _clean(name: str) -> str:
    """Return a name with characters that all trackers accept."""
    return re.sub(r"[^\w./ -]", "_", name)


@contextmanager
def _reporting_failures(target: str) -> Iterator[None]:
    """Raise whatever the library of a tracker raises as a UserError, without secrets."""
    kind = target.partition(":")[0]
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--to {kind} needs a library ({error}): install it with pip install "
            f"'rnn-search[{kind}]', or pip install '.[{kind}]' in a clone"
        ) from error
    except Exception as error:  # of any kind: a library raises what it likes
        if traceback.extract_tb(error.__traceback__)[-1].filename == __file__:
            raise  # a bug of this module
        reason = hide_secrets(to_line(str(error)) or type(error).__name__, target)
        has_secrets = hide_secrets(target, target) != target
        raise UserError(
            f"{kind} failed ({shorten(reason, 500)}); the study is unchanged: the same command "
            "adds what is missing"
        ) from (None if has_secrets else error)


def hide_secrets(text: str, target: str) -> str:
    """Return a text without the user, the password and the options of the URI in a target."""
    user = re.search("://(.*)@", target)
    secrets = [user[1], user[1].partition(":")[2]] if user else []
    for secret in filter(None, [*secrets, target.partition("?")[2]]):
        text = text.replace(secret, "***").replace(unquote(secret), "***")
    return text


# ------------------------------------------------------------------ trackers


class _TensorBoard:
    """A file for each trial in ``DIR/STUDY/ARCHITECTURE/trial-N``, a function of the trial.

    The file that is there, even one that ends within a record, is continued if it is the beginning
    of the new one, and replaced otherwise. Parameters are data of the tab HParams.
    """

    def __init__(self, place: str, name: str, key: str) -> None:
        self._folder = Path(place, key)
        self._runs = {path.name: path for path in self._folder.glob("*/trial-*")}

    def log(self, trial: TrialLog) -> bool:
        name = f"trial-{trial.key.rpartition('-')[2]}"
        group = re.sub(r"[^\w.,+=× -]", "_", trial.group)[:80]
        folder = self._runs.setdefault(name, self._folder / group / name)
        folder.mkdir(parents=True, exist_ok=True)
        new_path = folder / f"events.out.tfevents.{time.time():.0f}"
        path = next(folder.glob("events.out.tfevents.*"), new_path)
        old = path.read_bytes() if path.exists() else b""
        content = self._encode(trial, float(path.suffix[1:]))
        if not content.startswith(old):
            path.unlink()
            return self.log(trial)
        with path.open("ab") as file:
            file.write(content[len(old) :])
        return content != old

    def _encode(self, trial: TrialLog, wall_time: float) -> bytes:
        """Return what the file of a trial holds, all of it with one time."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from tensorboard.summary.writer.record_writer import RecordWriter

        data = HParamsPluginData()
        data.session_start_info.SetInParent()
        for name, param in trial.params.items():
            kind = {bool: "bool_value", str: "string_value"}.get(type(param), "number_value")
            setattr(data.session_start_info.hparams[name], kind, param)
        start = Event()
        value = start.summary.value.add(tag=metadata.SESSION_START_INFO_TAG)
        value.tensor.CopyFrom(metadata.NULL_TENSOR)
        value.metadata.plugin_data.plugin_name = metadata.PLUGIN_NAME
        value.metadata.plugin_data.content = data.SerializeToString(deterministic=True)
        events = [Event(file_version="brain.Event:2"), start]
        for (name, step), number in trial.points.items():
            events.append(Event(step=step))
            events[-1].summary.value.add(tag=name, simple_value=number)
        file = BytesIO()
        for event in events:
            event.wall_time = wall_time
            RecordWriter(file).write(event.SerializeToString())
        return file.getvalue()


class _WandB:
    """Runs of a project, grouped by architecture, with the results in their summaries.

    W&B keeps the first value of a step, and says at which step a run continues. Offline it cannot
    continue one: a run whose trial has changed is written anew. The folder of each run has the
    digest of what was logged.
    """

    def __init__(self, place: str, name: str, key: str) -> None:
        import wandb

        self._wandb = wandb
        self._folder = Path(wandb.setup().settings.wandb_dir)
        self._entity, _, self._project = place.rpartition("/")
        self._study = name

    def log(self, trial: TrialLog) -> bool:
        folders = [*self._folder.glob(f"*run-????????_??????-{trial.key}")]
        marks = [folder / "rnn-search.digest" for folder in folders]
        if trial.digest in [mark.read_text() for mark in marks if mark.exists()]:
            return False
        for folder in folders:
            if folder.name.startswith("offline-"):
                shutil.rmtree(folder)
        rows: dict[int, dict[str, float]] = {}
        results: dict[str, Any] = {"status": trial.status}
        for (name, step), value in trial.points.items():
            if name.startswith("curve/"):
                rows.setdefault(step, {})[name] = value
            else:
                results[name] = value
        if trial.exit_code is None and rows:
            rows.popitem()  # more values of this step may come
        with self._start(trial) as run:
            first = run.step
            for step, row in rows.items():
                if step >= first:
                    run.log(row, step=step, commit=True)
            run.summary.update(results)
            run.finish(exit_code=trial.exit_code)
        Path(run.dir).with_name("rnn-search.digest").write_text(trial.digest)
        return True

    def _start(self, trial: TrialLog) -> Any:
        # Nothing of this process, which has not trained the trial: its arguments may be secret.
        settings = {"console": "off", "silent": True, "save_code": False, "disable_git": True}
        settings |= {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
        return self._wandb.init(
            entity=self._entity or None,
            project=self._project,
            id=trial.key,
            name=trial.name,
            group=trial.group,
            tags=[shorten(self._study, 64)],
            config=trial.params,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )


class _MLflow:
    """Runs of an experiment that is named as the study, with their architecture as a tag.

    The tag that is written last has the digest of what was logged. Of a run with another one the
    points are read. A run that has points which its trial lacks is deleted, and logged anew.
    """

    def __init__(self, place: str, name: str, key: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(place)
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        runs = self._client.search_runs([self._experiment], max_results=50_000)
        self._runs = {run.data.tags.get("rnn_search.trial"): run for run in runs}

    def log(self, trial: TrialLog) -> bool:
        from mlflow.entities import Metric, Param

        run = self._runs.get(trial.key)
        if run and run.data.tags.get("rnn_search.digest") == trial.digest:
            return False
        logged = self._read(run) if run else {}
        if run and not logged.items() <= trial.points.items():
            self._client.delete_run(run.info.run_id)
            run = None
            logged = {}
        if run is None:
            tags = {"rnn_search.trial": trial.key}
            run = self._client.create_run(self._experiment, tags=tags, run_name=trial.name)
        run_id = run.info.run_id
        now = int(1000 * time.time())
        params = [Param(name, str(value)) for name, value in trial.params.items()]
        metrics = [
            Metric(name, value, now, step)
            for (name, step), value in trial.points.items()
            if (name, step) not in logged
        ]
        for first in range(0, max(len(metrics), 1), 900):  # it takes 1000 with the parameters
            self._client.log_batch(run_id, metrics[first : first + 900], params)
        if trial.exit_code is None:
            self._client.update_run(run_id, "RUNNING")
        else:
            self._client.set_terminated(run_id, "FAILED" if trial.exit_code else "FINISHED")
        tags = {"architecture": trial.group, "status": trial.status}
        for name, text in (tags | {"rnn_search.digest": trial.digest}).items():
            self._client.set_tag(run_id, name, text)
        self._runs[trial.key] = self._client.get_run(run_id)
        return True

    def _read(self, run: Any) -> Points:
        return {
            (name, metric.step): metric.value
            for name in self._client.get_run(run.info.run_id).data.metrics
            for metric in self._client.get_metric_history(run.info.run_id, name)
        }


_TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}
