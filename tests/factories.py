"""Studies with made-up results, of which the statistics are known."""

import json
import math
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

from helpers import study_attributes, with_text
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from reports import study_reader
from reports.results import Results
from studies.attributes import OBJECTIVE_NAMES, PAUSED, AuditState, is_result
from studies.config import StudyConfig
from studies.space import GATED_PARAMS
from studies.stated_hypotheses import HypothesisRecord
from studies.storage.edits import create_study
from studies.storage.leases import PendingWrite
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.trials import StoredStudy, StoredTrial

RECORDED = {"host": "h", "device": "cpu", "threads": 1, "precision": "fp32", "seed": 0,
            "replicate": 0, "python": "3", "torch": "2", "code": "ab", "steps_per_second": 10.0,
            "validation_bits_per_byte": 2.5}  # fmt: skip
"""Attributes of every finished trial."""


BEGIN = datetime(2026, 11, 26, 16)
"""When every trial started, UTC."""

NO_GATES = {name: [False] for name in GATED_PARAMS[:4]} | {"state_source": ["new"]}
"""Part of a search space: the switches that do not vary in a small grid."""

SMALL_GRID = NO_GATES | {"layers": [1, 2], "state_size": [4, 8], "residual": [False, True]}
"""Search space of eight gated networks."""

RATES = [0.001, 0.003, 0.01]


def created_once(make: Callable[..., None]) -> Callable[..., None]:
    """Copy the SQLite file that a function of a URL has created, where there is none yet."""
    files: dict[str, bytes] = {}

    @wraps(make)
    def create(url: str, *arguments: Any, **options: Any) -> None:
        path = Path(url.removeprefix("sqlite:///"))
        key = json.dumps([arguments, options], default=list)
        if not url.startswith("sqlite:") or path.exists():
            make(url, *arguments, **options)
        elif key in files:
            path.write_bytes(files[key])
        else:
            make(url, *arguments, **options)
            files[key] = path.read_bytes()

    return create


@created_once
def make_empty(url: str) -> None:
    """Create a storage without studies."""
    open_storage(url).close()


@created_once
def make_study(
    url: str,
    name: str = "made",
    report_threshold: float | None = 2.0,
    finished: int = 8,
    exclude: Sequence[dict] = (),
    diverged: int | None = 3,
    worker: str = "w",
    **config: Any,
) -> None:
    """Create a study of eight trials with values 1.5, 1.6, …; the fourth one diverged.

    Some may be unfinished; ``config`` has all other settings.
    """
    space = SMALL_GRID | {"exclude": list(exclude)}
    raw = {"space": space, "report_threshold": report_threshold} | config
    runs: list = []
    for i, params in enumerate(StudyConfig.model_validate(raw).grid.combinations()):
        value = 1.5 + i / 10
        recorded = {"parameter_count": 10 + i, "worker": worker}
        if i == diverged:
            value, recorded = math.nan, {"training_loss": value}
        runs.append((params, value if i < finished else None, recorded))
    make_runs(url, name, raw, runs)


@created_once
def make_refinement(url: str) -> None:
    """Create a refinement of two trials of ``made``: unchanged, and with a state size of 16."""
    raw = {"refinement": {"source": "made", "variants": [{}, {"state_size": 16}]}}
    runs = [
        (gated_params(state_size=4), 1.4, {"source_trials": [0]}),
        (gated_params(state_size=8), 1.3, {"source_trials": [1]}),
        (gated_params(state_size=16), 1.2, {"source_trials": [0, 1]}),  # derived from both
    ]
    commands = ["python refine.py derived --set 'refinement.top=2'"]
    make_runs(url, "derived", raw, runs, commands=commands)


def make_runs(
    url: str,
    name: str,
    raw: dict,
    runs: Sequence[tuple[dict, float | None, dict]],
    text: str = "ab",
    tokenizer: dict | None = None,
    sources: Sequence[int] = (),
    **record: Any,
) -> None:
    """Create a study.

    Args:
        url: URL of the storage.
        name: name of the study.
        raw: its configuration.
        runs: (parameters, value, recorded attributes) of each trial. A value of NaN is that of a
            diverged trial; None that of a waiting one. The attributes may
            have ``source_trials`` of this trial alone, whether it is ``audited``, its ``state`` if
            it is pruned or, as WAITING, paused, and its ``curve``, which otherwise falls to the
            recorded ``training_loss`` or to the value.
        text: SHA-256 of the corpus.
        tokenizer: size of the vocabulary, and what the record of the text has of the tokenizer.
        sources: numbers of the source trials, of all other trials alike.
        record: other attributes of the study.
    """
    config = StudyConfig.model_validate(raw)
    registered = datetime(2026, 11, 26, 17, tzinfo=UTC)
    record["hypotheses"] = [
        HypothesisRecord(hypothesis=stated, registered=registered, results=0)
        for stated in config.hypothesis
    ]
    attributes = study_attributes(with_text(config, text, **tokenizer or {}), **record)
    distributions = distributions_of([params for params, _, _ in runs])
    trials = [_store_run(config, *run, sources) for run in runs]
    if not Path(url.removeprefix("sqlite:///")).exists():
        make_empty(url)
    with closing(open_storage(url)) as storage:
        objective = OBJECTIVE_NAMES[config.objective]
        create_study(storage, StoredStudy(name, objective, attributes, distributions, trials))


def _store_run(
    config: StudyConfig, params: dict, value: float | None, recorded: dict, sources: Sequence[int]
) -> StoredTrial:
    """Return a trial as its worker would have stored it; see :func:`make_runs`."""
    derived = {"source_trials": recorded.get("source_trials", list(sources))}
    audit = AuditState() if recorded.get("audited") else None
    if value is None:
        return StoredTrial(params, derived, audit)
    known = RECORDED | {"seconds": 2.0, "parameter_count": 10, "worker": "w"}
    if config.token_name == "step":
        known["validation_bits_per_byte"] = None
    found = known | derived | recorded
    least = found.get("training_loss", value)
    curve = found.pop("curve", {} if math.isnan(least) else {50: least + 1, 100: least})
    state = found.pop("state", TrialState.COMPLETE)
    found.pop("audited", None)
    if math.isnan(value):
        state, found = TrialState.FAIL, RECORDED | derived | {"failure": "diverged"}
    is_ended = state.is_finished()
    return StoredTrial(
        params,
        {key: each for key, each in found.items() if not is_result(key)},
        audit,
        state,
        value if state is TrialState.COMPLETE else None,
        started=BEGIN,
        completed=BEGIN + timedelta(seconds=2) if is_ended else None,
        system_attributes={key: each for key, each in found.items() if is_result(key)}
        | ({} if is_ended else {PAUSED: BEGIN.isoformat()}),
        curve=curve,
    )


def state(statement: str, parameter: str, before: Any, after: Any, **settings: Any) -> dict:
    """Return a hypothesis that a change lowers the loss, as a study file states it."""
    change = {"parameter": parameter, "before": before, "after": after}
    return {"statement": statement, **change, "expect": "lower", **settings}


@created_once
def make_stated(url: str, name: str = "stated", **config: Any) -> None:
    """Create a finished study of 48 networks with hypotheses and a threshold.

    The residual lowers the loss of wide networks by 0.6 and raises that of narrow ones by 0.3; the
    new state lowers it by 0.4. The first trial diverged.
    """
    hypotheses = [
        state("The residual lowers the loss.", "residual", False, True),
        state("A higher rate is better.", "learning_rate", 0.001, 0.003),
        state("In narrow networks reading the new state lowers the loss.", "state_source", "old",
              "both", where={"state_size": 8}),
    ]  # fmt: skip
    space = {"layers": [1], "state_size": [8, 16], "output_gate": [False], "state_gate": [False]}
    raw = {"space": space, "report_threshold": 1.7, "hypothesis": hypotheses} | config
    generator = random.Random(0)
    runs = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        value = 2 + generator.gauss(0, 0.005) - 0.4 * (params["state_source"] != "old")
        value += params["residual"] * (0.3 if params["state_size"] == 8 else -0.6)
        runs.append((params, value if runs else math.nan, {}))
    make_runs(url, name, raw, runs)


SWITCHED_OFF = dict.fromkeys(GATED_PARAMS[:5], False) | {"state_source": "new"}


def gated_params(layers: int = 1, state_size: int = 4, **more) -> dict:
    """Return parameters of a gated network with all switches off."""
    return SWITCHED_OFF | {"layers": layers, "state_size": state_size} | more


@created_once
def make_replicates(
    url: str, name: str = "replicates", split: str = "test", gap: float = 0.5, **refinement: Any
) -> None:
    """Create two architectures that hardly differ, and a third one worse by a gap; three runs each.

    The first, of two layers, is the best on the held-out text and the worst by its value; the
    second, of one layer, has half its parameters.
    """
    runs = []
    shapes = (
        (2, 4, 0.0, 0.0, 2.0, 200),
        (1, 4, gap / 200, 0.004, 1.9, 100),
        (1, 8, gap, 0.0, 1.8, 150),
    )
    for layers, size, worse, scatter, value, count in shapes:
        for run in range(3):
            # Effects of the run and of the window, and some noise.
            noise = [(7 * run + 3 * window + 5 * size * layers) % 11 / 700 for window in range(4)]
            mean = 2 + worse + run / 10 + scatter * (run - 1)
            losses = [mean + window / 5 + noise[window] for window in range(4)]
            recorded = {
                "parameter_count": count,
                "training_loss": value + run / 100,
                f"{split}_windows": losses,
                f"{split}_stderr": 0.125,
                f"{split}_bits_per_byte": sum(losses) / 4,
            }
            params = gated_params(layers, size, replicate=run + 1)
            runs.append((params, value + run / 100, recorded))
    raw = {"refinement": {"source": "made", "replicates": 3} | refinement}
    make_runs(url, name, raw, runs)


@created_once
def make_baselines(url: str, name: str = "cells", text: str = "ab", **raw) -> None:
    """Create a study of two baseline cells in two sizes, with 1 and 16 BPTT steps."""
    space = {"cell": ["gru", "lstm"], "layers": [1], "state_size": [4, 8]}
    config = {"space": space | {"training": {"bptt_steps": [1, 16]}}} | raw
    trials = StudyConfig.model_validate(config).grid.combinations()
    runs = [
        (params, 1.5 + i / 10, {"training_loss": 1.4 + i / 10, "validation_bits_per_byte": 3.5})
        for i, params in enumerate(trials)
    ]
    make_runs(url, name, config, runs, text)


MIN_GRU = {
    "spec": "cells/min_gru.py:MinGRU",
    "sha256": "ab" * 32,
    "options": {
        "norm": {"type": "bool", "default": False},
        "expansion": {"type": "float", "default": 1.0},
    },
}
"""Record of a user's cell; reports read no source."""

UNION = {
    "cells": {"MinGRU": MIN_GRU},
    "nuisance": ["learning_rate"],
    "space": [
        {
            "cell": ["gated", "gru", "cells/min_gru.py:MinGRU"],
            **NO_GATES,
            "layers": [1, 2],
            "state_size": [4, 8],
            "norm": [False, True],
            "training": {"learning_rate": RATES},
        },
        {
            "cell": ["cells/min_gru.py:MinGRU"],
            "layers": [1],
            "state_size": [4],
            "expansion": [0.5],
            "training": {"learning_rate": RATES},
        },
    ],
}
"""Config of a union of three cells at three learning rates; ``residual`` and ``norm`` vary."""


def union_value(params: dict) -> float:
    """Return a trial's value: each cell has its best learning rate, less wide networks a lower."""
    best = {"gated": 0.003, "gru": 0.01, "MinGRU": 0.001}[params["cell"]]
    distance = abs(RATES.index(params["learning_rate"]) - RATES.index(best))
    value = {"gated": 2.0, "gru": 1.9, "MinGRU": 1.8}[params["cell"]] + 0.1 * distance
    value -= 0.05 * params["layers"] + 0.01 * params["state_size"]
    value -= 0.2 * params.get("residual", False) + 0.03 * params.get("norm", False)
    return round(value + 0.1 * (params.get("expansion") == 0.5), 6)


@created_once
def make_union(url: str, name: str = "union", missing: Sequence[int] = (), **raw: Any) -> None:
    """Create a finished study of :data:`UNION`; some trials, by number, have diverged."""
    config = UNION | raw
    trials = list(StudyConfig.model_validate(config).grid.combinations())
    runs = [
        (params, math.nan if number in missing else union_value(params), {})
        for number, params in enumerate(trials)
    ]
    make_runs(url, name, config, runs)


PRUNED_REASON = "at step 100 of 200: predicted 2.000 ± 0.100"
PREDICTION_ERROR = -0.05
"""Value minus prediction of each pruned trial."""


PRUNED_SPACE = {"layers": [1, 2], "state_size": [4, 8], "state_source": ["new"]}
PRUNED_SPACE |= {name: [False, True] for name in ("residual", "input_gate", "forget_gate")}
PRUNED_SPACE |= {name: [False] for name in ("output_gate", "state_gate")}


@created_once
def make_pruned(
    url: str,
    name: str = "made",
    audited: Sequence[int] = range(10),
    finished: bool = True,
    scale: float = 0.1,
    drawn_over: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Store 32 trials of which every other one is pruned, with predictions that are too high.

    If the study is not finished, the last one is paused.

    With the residual a network is better by 0.4 nats, with the input gate by 0.2; those without
    residual are pruned, so that no pair of complete trials differs in it.
    """
    raw = {
        "space": PRUNED_SPACE,
        "pruning": {"enabled": True, "audit": 3},
        "training": {"steps": 200},
    }
    runs = []
    for i, params in enumerate(StudyConfig.model_validate(raw | settings).grid.combinations()):
        value = 2 - 0.4 * params["residual"] - 0.2 * params["input_gate"] + i / 1000
        found = {"audited": i in audited, "curve": {50: value + 1, 100: value + 0.5}}
        if not params["residual"]:
            found |= {"rung": 100, "keep_probability": 0.02, "predicted_scale": scale}
            found |= {"predicted_value": value - PREDICTION_ERROR, "reason": PRUNED_REASON}
        if not finished and i == 31:
            found |= {"rung": 100, "state": TrialState.WAITING}
        elif params["residual"] or i in audited:
            found["curve"] |= {150: value, 200: value}
        else:
            found["state"] = TrialState.PRUNED
        runs.append((params, value, found))
    make_runs(url, name, raw | settings, runs, audit_nuisance=drawn_over)


def finish_one(url: str, value: float, name: str = "made") -> int:
    """Train the next waiting trial of a study for 100 steps; return its number."""
    with closing(open_storage(url)) as storage:
        trial_id = storage.claim(load_study(storage, name)._study_id, "me")
        storage.flush([PendingWrite(trial_id, "me", {50: value + 1, 100: value})])
        recorded = {"parameter_count": 1, "replicate": 0, "seconds": 1.0}
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, recorded)
        return storage.get_trial_number_from_id(trial_id)


def read_studies(url: str, *names: str, **options: Any) -> list[Results]:
    """Read the results of studies, see :func:`reports.study_reader.read_studies`."""
    with closing(read_storage(url)) as storage:
        return study_reader.read_studies(storage, names, **options)


def results_of(url: str, name: str = "made", **options: Any) -> Results:
    (results,) = read_studies(url, name, **options)
    return results


def distributions_of(trials: list[dict]) -> dict[str, CategoricalDistribution]:
    names = dict.fromkeys(name for params in trials for name in params)
    values = {
        name: dict.fromkeys(params[name] for params in trials if name in params) for name in names
    }
    return {name: CategoricalDistribution(tuple(found)) for name, found in values.items()}


LOOP = {"metric": "accuracy", "unit": "%", "direction": "maximize", "steps": 300, "log_every": 100}
LOOP_SPACE = {
    "optimizer": ["adamw", "sgd"],
    "layers": [2, 4],
    "cell": ["attention", "mamba"],
    "learning_rate": [0.001, 0.01],
}
"""Settings of a training loop, whose parameters have names of those of networks."""


def loop_value(params: dict) -> float:
    """Return the accuracy of a trial: attention is better than mamba by 3, AdamW than SGD by 2."""
    value = 80 + 3 * (params["cell"] == "attention") + 2 * (params["optimizer"] == "adamw")
    value += params["layers"] / 4 - (params["learning_rate"] > 0.005)
    noise = random.Random(repr(sorted(params.items()))).gauss(0, 0.1)
    return round(value + noise, 3)


def make_loop(
    url: str,
    name: str = "loop",
    value: Callable[[dict], float] = loop_value,
    edit: Callable[[StoredTrial], object] = lambda trial: None,
    loop: dict | None = None,
    trials: Sequence[dict] = (),
    **settings: Any,
) -> None:
    """Store a finished study with a training loop.

    Args:
        url: URL of the storage.
        name: name of the study.
        value: value of a trial, given its parameters; that of the last log point.
        edit: changes a trial before it is stored.
        loop: further settings of the loop.
        trials: parameters of each trial, where there is no grid.
        settings: other settings.
    """
    raw = {"loop": LOOP | (loop or {}), "space": LOOP_SPACE} | settings
    config = StudyConfig.model_validate(raw)
    combinations = trials if config.grid is None else config.grid.combinations()
    runs = [_store_loop_trial(params, value(params)) for params in combinations]
    for number, run in enumerate(runs):
        run.number = number
        edit(run)
    registered = datetime(2026, 11, 26, 17, tzinfo=UTC)
    hypotheses = [
        HypothesisRecord(hypothesis=stated, registered=registered, results=0)
        for stated in config.hypothesis
    ]
    attributes = study_attributes(config, hypotheses=hypotheses, commands=["python train.py"])
    if not Path(url.removeprefix("sqlite:///")).exists():
        make_empty(url)
    distributions = distributions_of([run.params for run in runs])
    direction = StudyDirection[config.direction.upper()]
    study = StoredStudy(name, config.own_metric.metric, attributes, distributions, runs, direction)
    with closing(open_storage(url)) as storage:
        create_study(storage, study)


def _store_loop_trial(params: dict, value: float) -> StoredTrial:
    """Return a trial as a loop would have stored it, which has logged and set some numbers."""
    known = {name: RECORDED[name] for name in ("host", "seed", "replicate", "python", "code")}
    known |= {"steps_per_second": 150.0, "seconds": 2.0 + params.get("layers", 0), "worker": "w"}
    own = {"parameter_count": 1000 * params.get("layers", 1), "remark": {"mine": [1, "a"]}}
    curves = {"loss": [[100, 2.0], [200, 1.5], [300, 1 / value]], "number": [[300, 1.0]]}
    last = {name: points[-1][1] for name, points in curves.items()}
    return StoredTrial(
        params,
        known | own | {"metrics": last},
        state=TrialState.COMPLETE,
        value=value,
        started=BEGIN,
        completed=BEGIN + timedelta(seconds=2),
        system_attributes={f"curve:{name}": points for name, points in curves.items()},
        curve={100: value / 2, 200: value - 5, 300: value},
    )
