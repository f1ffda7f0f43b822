"""Optuna's tables through the life of a small study: the rows that each operation changes.

The rows are read by plain SQL, as ``study/trial/table/name/column`` and what follows in a JSON
object. Values that differ between runs, such as times, are replaced.
"""

import contextlib
import io
import itertools
import json
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from golden import Golden
from helpers import TEXT
from optuna.trial import TrialState

import rnn_search
from search.create_or_join import StudyHandle, create_or_join
from search.run_options import RunOptions
from studies.attributes import Failure
from studies.storage.leases import LeaseMonitor, PendingWrite

HYPOTHESIS = {
    "statement": "More states help.",
    "parameter": "state_size",
    "before": 2,
    "after": 3,
    "expect": "lower",
}

SETTINGS: dict[str, Any] = {
    "space": {"cell": ["gru"], "layers": [1], "state_size": [2, 3, 4, 5]},
    "training": {"steps": 4, "batch_size": 2, "sequence_length": 8, "log_every": 2},
    "evaluation": {"windows": 2, "window_length": 16},
    "precision": "fp32",
    "keep_weights": 9,
    "pruning": {"enabled": True},
    # So long that no write depends on the speed of the machine.
    "lease": {"seconds": 86400.0},
    "checkpoint": {"seconds": 86400.0},
    "hypothesis": [HYPOTHESIS],
}

DERIVED: dict[str, Any] = {
    "refinement": {"source": "first", "top": 1, "replicates": 2},
    "training": {"bptt_steps": 2},
    "pruning": {"enabled": False},
}

LARGER = DERIVED | {"refinement": DERIVED["refinement"] | {"replicates": 3}}

RESULTS = {"validation_loss": 2.25, "validation_windows": [3.0, 3.5], "worker": "w", "seconds": 1.0}

SOURCES = {"derive": ("study 1/study_", "study 2/study_")}
"""What a new study is compared with, and which of its rows, by operation."""

VARYING = re.compile(
    "attributes/(seconds|steps_per_second|host|worker|python|torch|code|sample)$"
    "|/created_with/|/lease/heard$|/version_info/|/alembic_version/"
)
"""Paths of values that differ between runs; their type is shown."""

PATTERNS = {
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(\+00:00|Z)?": "TIME",
    r"-[0-9a-f]{12}$": "-RANDOM",
    r"/\S*/reports/out/": "FOLDER/",
    r"[^/]+/\d+/[0-9a-f]{32}$": "HOST/PROCESS/TOKEN",
}


class _Options(RunOptions):
    """Options with a command that does not depend on where the study is."""

    recorded: str

    @property
    def command(self) -> str:
        return self.recorded


def live(folder: Path) -> Iterator[str]:
    """Lead a study through its life; yield the name of each operation after it."""
    url, corpus = f"sqlite:///{folder}/studies.db", str(folder / "text")
    place = {"storage": url, "artifacts": str(folder / "artifacts")}
    Path(corpus).write_bytes(TEXT)

    def join(name: str, settings: dict[str, Any], **options: Any) -> StudyHandle:
        text = None if "refinement" in settings else corpus
        given = {"corpus": text, "recorded": f"create {name}", "settings": settings, **place}
        return create_or_join(_Options(study=name, **given | options))

    def claim(token: str, paused_ids: list[int] | None = None) -> int:
        trial_id = storage.claim(study_id, token, 60, paused_ids=paused_ids)
        assert trial_id is not None
        return trial_id

    study = join("first", SETTINGS)
    storage, study_id = study.storage, study.study_id
    yield "create"
    one = claim("w/1")
    two, *_ = storage.claim_matching(one, "w/1", 1, ["layers"])
    yield "claim two trials to train together"
    first = PendingWrite(one, "w/1", {2: 2.5}, heartbeat=True, checkpointed=True)
    storage.flush([first, PendingWrite(two, "w/1", {2: float("nan")})])
    yield "write values, a heartbeat and that there is a checkpoint"
    storage.requeue_all([PendingWrite(two, "w/1", {4: 2.0})], Failure.EXCEPTION, "ValueError: x")
    yield "requeue after an exception"
    storage.pause(one, "w/1", {"rung": 2, "keep_probability": 0.25}, {4: 2.25})
    yield "pause"
    claim("w/2", [one])
    yield "resume"
    monitor = LeaseMonitor()
    for now in (0.0, 40.0, 80.0):  # longer gaps are those of a suspended observer
        expired = storage.expire_leases(study_id, monitor, lambda now=now: now)
    assert expired == [one]
    yield "requeue after the lease"
    claim("w/3")
    storage.pause(one, "w/3", {"rung": 2})
    claim("w/4")
    storage.finish(two, "w/4", TrialState.FAIL, None, {"failure": "exception", "error": "y"})
    three = claim("w/5")
    storage.finish(three, "w/5", TrialState.FAIL, None, {"failure": "diverged"}, {2: 9.0})
    yield "pause one; fail another, and diverge"
    rnn_search.retry_trials("first", storage=url, diverged=True)
    yield "retry both"
    for trial_id, value in ((two, 2.25), (three, 2.5)):
        claim("w/6")
        storage.finish(trial_id, "w/6", TrialState.COMPLETE, value, RESULTS, {4: value})
    yield "complete both"
    four = claim("w/7")
    storage.finish(four, "w/7", TrialState.PRUNED, None, {"reason": "slow"})
    yield "prune"
    terms = {"corpus": corpus, "threads": 1, "lockstep": 1}
    rnn_search.run(SETTINGS, name="first", **place, **terms)
    yield "train what waits, and decide on what is paused"
    join("second", DERIVED).storage.close()
    yield "derive"
    join("second", LARGER, extend=True, recorded="extend second").storage.close()
    yield "extend by a replicate"
    rnn_search.run(LARGER, name="second", **place, **terms)
    yield "train the derived trials"
    rnn_search.rename_study("first", "renamed", storage=url)
    yield "rename"
    rnn_search.delete_study("second", **place)
    yield "delete"
    storage.close()


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each value in a database, with the path to it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        owners = {
            row["trial_id"]: f"study {row['study_id']}/trial {row['number']}"
            for row in connection.execute("SELECT * FROM trials")
        }
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        counts = Counter[str]()
        for (table,) in tables.fetchall():
            for row in map(dict, connection.execute(f"SELECT * FROM {table}")):
                study = f"study {row['study_id']}" if "study_id" in row else "storage"
                owner = owners.get(row.get("trial_id"), study)
                columns = {name: each for name, each in row.items() if not name.endswith("_id")}
                keys = [columns.pop(key) for key in ("key", "param_name", "step") if key in row]
                place = "/".join(map(str, (owner, table, *keys)))
                counts[place] += 1
                place += f" #{counts[place]}" if counts[place] > 1 else ""
                attribute = columns.get("value_json")
                yield from flatten(place, json.loads(attribute) if attribute else columns)


def flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values in nested dictionaries and lists by their paths; short lists as JSON."""
    if isinstance(value, list) and any(isinstance(each, dict | list | float) for each in value):
        value = dict(enumerate(value))
    elif isinstance(value, list):
        value = json.dumps(value)
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from flatten(f"{path}/{key}", each)
    else:
        yield path, value


def find_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of ``after`` is new or changed, and the names of what it lacks by their place."""
    unchanged = {path for path, value in after.items() if path in before and before[path] == value}
    changes = {path: value for path, value in after.items() if path not in unchanged}
    remaining = {prefix for path in after for prefix in list_prefixes(path)}
    removed: dict[str, set[str]] = {}
    for path in before:
        gone = [prefix for prefix in list_prefixes(path) if prefix not in remaining]
        if gone:
            place, _, name = gone[0].rpartition("/")
            removed.setdefault(place, set()).add(name)
    return changes | {
        f"removed from {place}": ", ".join(sorted(names)) for place, names in removed.items()
    }


def list_prefixes(path: str) -> list[str]:
    """Return a path and the paths to it, the shortest first."""
    return list(itertools.accumulate(path.split("/"), "{}/{}".format))


def compute() -> dict[str, Any]:
    """Return the changes of each operation by its name."""
    changes: dict[str, Any] = {}
    before: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        for operation in live(folder):
            rows = read_rows(folder / "studies.db")
            after = {path: normalize(path, value, folder) for path, value in rows}
            for path, value in list(before.items()):
                if operation in SOURCES and path.startswith(SOURCES[operation][0]):
                    before[path.replace(*SOURCES[operation], 1)] = value
            changes[operation] = find_changes(before, after)
            before = after
    return changes


def normalize(path: str, value: Any, folder: Path) -> Any:
    """Replace a value that differs between runs."""
    if VARYING.search(path) and value is not None:
        return type(value).__name__.upper()
    if isinstance(value, str):
        value = value.replace(str(folder), "FOLDER")
        for pattern, replacement in PATTERNS.items():
            value = re.sub(pattern, replacement, value)
    return value


GOLDEN = [Golden("storage", compute, relative=1e-5, absolute=2e-5)]
"""The tolerance is for the losses of trained networks, some of which are stored with five decimals;
engines and CPUs change them by 2e-7."""
