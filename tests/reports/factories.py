"""Studies that are made, not trained: what must come of them is known."""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from helpers import study_attributes
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from studies.attributes import OBJECTIVE_NAMES, TokenizerRecord
from studies.config import StudyConfig
from studies.space import GATED_PARAMS
from studies.storage.create import PlannedTrial, create_study
from studies.storage.open import open_storage
from studies.storage.storage import LeasedRDBStorage

RECORDED = {"host": "h", "device": "cpu", "threads": 1, "precision": "fp32", "seed": 0,
            "replicate": 0, "python": "3", "torch": "2", "code": "ab", "steps_per_second": 10.0,
            "validation_bits_per_byte": 2.5}  # fmt: skip
"""Of every finished trial."""


@cache
def database(make: Callable[..., object], settings: str = "{}") -> bytes:
    """Return an SQLite file that is made once: that takes longer than to look at it."""
    with tempfile.TemporaryDirectory() as folder:
        make(f"sqlite:///{folder}/studies.db", **json.loads(settings))
        return Path(folder, "studies.db").read_bytes()


def make_empty(url: str) -> None:
    """A storage of no study."""
    open_storage(url).close()


def new_file(url: str) -> Path | None:
    """Return the SQLite file of a URL if it is still to be made."""
    path = Path(url.removeprefix("sqlite:///"))
    return path if url.startswith("sqlite:") and not path.exists() else None


def open_new(url: str) -> LeasedRDBStorage:
    """Open a storage that may not be there yet."""
    if path := new_file(url):
        path.write_bytes(database(make_empty))
    return open_storage(url)


def make_study(url: str, name: str = "made", **settings: Any) -> None:
    """A study of eight points: 1.5, 1.6, …, the fourth diverged, the rest waiting.

    The settings are those of :func:`make_study_anew`.
    """
    if path := new_file(url):
        path.write_bytes(database(make_study_anew, json.dumps({"name": name} | settings)))
    else:
        make_study_anew(url, name, **settings)


def make_study_anew(
    url: str,
    name: str,
    report_threshold: float | None = 2.0,
    finished: int = 8,
    exclude: Sequence[dict] = (),
    diverged: int | None = 3,
    worker: str = "w",
    question: str = "",
    **config: Any,
) -> None:
    """Make the study; other settings are those of its definition."""
    space = {"layers": [1, 2], "state_size": [4, 8], "residual": [False, True]}
    space |= {p: [False] for p in GATED_PARAMS[:4]} | {"state_source": ["new"]}
    space |= {"exclude": list(exclude)}
    validated = StudyConfig.model_validate(
        {"space": space, "report_threshold": report_threshold, "question": question} | config
    )
    finished = min(finished, len(list(validated.space.combinations())))
    storage = open_new(url)
    create_study(
        storage,
        name,
        OBJECTIVE_NAMES["training"],
        study_attributes(validated),
        {n: CategoricalDistribution(tuple(validated.space.values(n))) for n in GATED_PARAMS},
        [PlannedTrial(point) for point in validated.space.combinations()],
    )
    study_id = storage.get_study_id_from_name(name)
    for i in range(finished):
        trial_id = storage.claim(study_id, "me")
        value = 1.5 + i / 10
        storage.report(trial_id, "me", {50: value + 1, 100: value})
        if i == diverged:
            storage.finish(
                trial_id, "me", TrialState.FAIL, None, {"failure": "diverged", **RECORDED}
            )
        else:
            attributes = RECORDED | {"seconds": 2.0, "parameter_count": 10 + i, "worker": worker}
            storage.finish(trial_id, "me", TrialState.COMPLETE, value, attributes)
    storage.engine.dispose()


def make_derived(sqlite_url: str) -> None:
    """A study whose points come from two of another's: as they were, and with 16 states."""
    make_study(sqlite_url, diverged=None)
    config = StudyConfig.model_validate(
        {"refinement": {"source": "made", "variants": [{}, {"state_size": 16}]}}
    )
    point = dict.fromkeys(GATED_PARAMS[:5], False) | {"state_source": "new", "layers": 1}
    points = [
        (point | {"state_size": 4}, [0], 1.4),
        (point | {"state_size": 8}, [1], 1.3),
        (point | {"state_size": 16}, [0, 1], 1.2),  # of both: the variants coincide
    ]
    storage = open_storage(sqlite_url)
    create_study(
        storage,
        "derived",
        OBJECTIVE_NAMES["training"],
        study_attributes(config, commands=["python refine.py derived --set 'refinement.top=2'"]),
        distributions_of([params for params, _, _ in points]),
        [PlannedTrial(params, {"source_trials": origin}) for params, origin, _ in points],
    )
    study_id = storage.get_study_id_from_name("derived")
    for _, _, value in points:
        curve = {50: value + 1, 100: value}
        trial_id = storage.claim(study_id, "me")
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {}, curve)
    storage.close()


def make_runs(
    url: str,
    name: str,
    raw: dict,
    runs: Sequence[tuple[dict, float, dict]],
    text: str = "ab",
    tokenizer: dict | None = None,
    sources: Sequence[int] = (),
) -> None:
    """A finished study of these runs: a point, its value, and what was recorded of it beside.

    All points come from the same trials of its source.

    Its curves fall to the ``training_loss``, or else to the value.
    """
    storage = open_new(url)
    config = StudyConfig.model_validate(raw)
    create_study(
        storage,
        name,
        OBJECTIVE_NAMES[config.objective],
        study_attributes(config, text, tokenizer=TokenizerRecord(**tokenizer or {})),
        distributions_of([point for point, _, _ in runs]),
        [PlannedTrial(point, {"source_trials": list(sources)}) for point, _, _ in runs],
    )
    study_id = storage.get_study_id_from_name(name)
    for _, value, recorded in runs:
        trial_id = storage.claim(study_id, "me")
        own = RECORDED | {"seconds": 2.0, "parameter_count": 10, "worker": "w"} | recorded
        least = own.get("training_loss", value)
        curve = {50: least + 1, 100: least}
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, own, curve)
    storage.close()


SWITCHED_OFF = dict.fromkeys(GATED_PARAMS[:5], False) | {"state_source": "new"}


def own_point(layers: int = 1, state_size: int = 4, **more) -> dict:
    """A point of our own cell, no switch on."""
    return SWITCHED_OFF | {"layers": layers, "state_size": state_size} | more


def make_replicates(
    url: str,
    name: str = "replicates",
    split: str | None = "test",
    gap: float = 0.5,
    replicates: int = 3,
    windows: int = 4,
) -> None:
    """Two architectures that differ by a twentieth of a gap and a third that is worse by all of it.

    The first, of two layers, is the best on the held-out text and the worst by its value; the
    second, of one layer, has half its parameters.
    """
    runs = []
    shapes = ((2, 4, 0.0, 2.0, 200), (1, 4, gap / 20, 1.9, 100), (1, 8, gap, 1.8, 150))
    for layers, size, worse, value, count in shapes:
        for run in range(replicates):
            # What runs and lanes have in common, and a little that is each one's own.
            own = [
                2
                + worse
                + run / 10
                + lane / 5
                + ((7 * run + 3 * lane + 5 * size * layers) % 11) / 200
                for lane in range(windows)
            ]
            recorded: dict = {"parameter_count": count, "training_loss": value + run / 100}
            if split:
                recorded |= {f"{split}_windows": own, f"{split}_stderr": 0.125}
                recorded[f"{split}_bits_per_byte"] = sum(own) / windows
            runs.append((own_point(layers, size, replicate=run + 1), value + run / 100, recorded))
    raw = {"refinement": {"source": "made", "replicates": replicates}}
    make_runs(url, name, raw, runs)


def make_known(url: str, name: str = "cells", text: str = "ab", **raw) -> None:
    """Two sizes each of two known cells, with gradients through one step and through sixteen."""
    space = {"cell": ["gru", "lstm"], "layers": [1], "state_size": [4, 8]}
    config = {"space": space | {"bptt_steps": [1, 16]}} | raw
    points = StudyConfig.model_validate(config).space.combinations()
    runs = [
        (point, 1.5 + i / 10, {"training_loss": 1.4 + i / 10, "validation_bits_per_byte": 3.5})
        for i, point in enumerate(points)
    ]
    make_runs(url, name, config, runs, text)


def distributions_of(points: list[dict]) -> dict[str, CategoricalDistribution]:
    values = {name: dict.fromkeys(point[name] for point in points) for name in points[0]}
    return {name: CategoricalDistribution(tuple(found)) for name, found in values.items()}
