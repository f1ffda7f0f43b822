"""The plan of a study: what it costs on this machine and what it can find; nothing is written."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from reports.stats.power import POWER
from rnn.config import count_updates
from rnn.engines import build_network
from rnn.errors import CellError, UserError, find_user_line, is_out_of_memory
from rnn.network import count_parameters
from rnn.own_code import describe_error
from rnn.training.loop import TrainLoop
from search.cells_tasks import build_task, spec_of
from search.planned_effects import PlannedEffect, list_shortages, plan_effects, shows_shares
from search.planned_study import PlannedStudy, plan_study
from search.run_options import RunOptions
from search.worker.cpu_budget import cores
from search.worker.lockstep import LockstepPlan, to_train_config
from studies.config import StudyConfig
from studies.messages import format_bytes, format_count, format_duration, format_value
from studies.space import COST_PARAMS, REPLICATE, TASK, Params, SearchSpace
from studies.study_settings import OPTIMIZER_PARAMS
from studies.trial_params import to_trial_config

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")

_SECONDS = 1.0
"""Time for which the networks of a shape are trained."""

_MAX_SECONDS = 30.0
"""Time for which all of them are."""

_EXAMPLES = 3
"""Architectures of a shape that are counted and timed: the least and the most of its options, and
one between."""

_MAX_COUNTED = 300
"""Architectures whose weights are counted, if there are more."""

_ENDLESS = 10**9
"""Steps of a training that is broken off."""

_BYTES_PER_TRIAL = 4000
_BYTES_PER_LOG_POINT = 80
_BYTES_PER_WINDOW = 12
"""Size of a trial in an SQLite file."""

_COPIES = 4
"""Numbers of a checkpoint for each weight: the weight, two moments and an average."""


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """What a study costs on this machine and what it can find, printed as lines and tables.

    Attributes:
        name: name of the study.
        config: its config.
        networks: a frame of one row per shape of networks: the parameters that determine the cost,
            such as ``cell``, ``layers`` and ``state_size``; the number of ``trials``;
            ``least_parameters`` and ``most_parameters``, numbers of weights of a network; the
            ``updates`` of a training; how many networks train together (``lockstep``); and the
            ``seconds`` of one trial on one worker, NaN if they were not measured. A study with a
            loop has one row, of its ``trials``.
        effects: what can be found of each parameter, in each task by name.
        workers: number of workers of which :attr:`hours` is the time.
        threads: threads of each.
        device: device on which the networks were timed.
        notices: what is said of the study when it is created.
    """

    name: str
    config: StudyConfig
    networks: "pd.DataFrame"
    effects: Mapping[str, Sequence[PlannedEffect]]
    workers: int
    threads: int
    device: str
    notices: Sequence[str]

    @property
    def trials(self) -> int:
        """Number of trials."""
        return int(self.networks["trials"].sum())

    @property
    def hours(self) -> float:
        """Time of all trials, without pruning; NaN if it was not measured."""
        seconds = self.networks["trials"] * self.networks["seconds"]
        return float(seconds.sum(skipna=False)) / self.workers / 3600

    @property
    def size(self) -> float:
        """Bytes of the weights that are kept, of checkpoints and of the trials' rows, estimated."""
        config = self.config
        running = self.workers * self.networks["lockstep"].max()
        lengths = [config.length_of({TASK: task}) for task in config.list_tasks()]
        log_points = max(length.steps // length.log_every for length in lengths)
        row = _BYTES_PER_TRIAL + _BYTES_PER_LOG_POINT * log_points
        row += _BYTES_PER_WINDOW * config.evaluation.windows
        weights = config.keep_weights + _COPIES * min(running, self.trials)
        return float(4 * self.networks["most_parameters"].max() * weights + row * self.trials)

    def to_frame(self) -> "pd.DataFrame":
        """Return what can be found, one row per task and change of a parameter.

        - ``task``: name of the task, "" for the only one
        - ``parameter``, ``before``, ``after``: the change
        - ``pairs``, ``seeds``: number of pairs of architectures, and of runs of each
        - ``smallest_effect``: smallest effect found with a power of 80%, in standard deviations of
          a run within a replicate; infinite for none
        - ``smallest_share``: the same of the share of solved networks; missing for a task that does
          not say when it is solved
        """
        import pandas as pd

        rows = []
        for task, effects in self.effects.items():
            has_shares = shows_shares(task, self.config)
            for effect in effects:
                row = {
                    "task": task,
                    "parameter": effect.contrast.parameter,
                    "before": effect.contrast.before,
                    "after": effect.contrast.after,
                    "pairs": effect.pairs,
                    "seeds": effect.seeds,
                    "smallest_effect": effect.smallest_effect,
                    "smallest_share": effect.smallest_share if has_shares else math.nan,
                }
                rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else ["task"])

    def list_lines(self) -> list[str]:
        """Return the plan in sentences, without its tables."""
        config = self.config
        if config.loop is not None:
            first = (
                f"study {self.name}: {format_count(self.trials, 'trial')} of "
                f"{format_count(config.loop.steps, 'step')} of the loop; nothing is written"
            )
            return [first, *self.notices, *list_shortages(self.effects, config)]
        networks = self.networks
        updates = _format_range([*networks["updates"]])
        parameters = _format_range([*networks["least_parameters"], *networks["most_parameters"]])
        lines = [
            f"study {self.name}: {format_count(self.trials, 'trial')} of {updates} updates, "
            f"networks of {parameters} parameters; nothing is written",
            *self.notices,
        ]
        if not math.isnan(self.hours):
            lines.append(
                f"about {format_duration(3600 * self.hours)} of training by "
                f"{format_count(self.workers, 'worker')} of {format_count(self.threads, 'thread')} "
                f"on {self.device}, timed alone"
            )
        if config.pruning.enabled:
            lines.append("pruning trains about a third of it; shares of solved runs need all runs")
        lines.append(f"at most about {format_bytes(self.size)} on disk")
        return lines + list_shortages(self.effects, config)

    def __repr__(self) -> str:
        """Return the lines and the tables as text."""
        parts = ["\n".join(self.list_lines())]
        if self.config.has_networks:
            networks = self.networks.dropna(axis=1, how="all")
            counts = (networks.pop(name) for name in ("least_parameters", "most_parameters"))
            ranges = zip(*counts, strict=True)
            parts.append(
                _format_table(networks.assign(parameters=list(map(_format_range, ranges))))
            )
        tables: dict[str, list[str]] = {}  # tasks by their table
        for task, effects in self.to_frame().groupby("task", sort=False):
            shown = effects[["parameter", "before", "after", "pairs", "seeds"]].copy()
            shown["seeds"] = shown["seeds"].map("{:.3g}".format)
            shown["effect"] = [_format_least(size, ".2g") for size in effects["smallest_effect"]]
            if effects["smallest_share"].notna().any():
                shown["solved"] = [_format_least(size, ".0%") for size in effects["smallest_share"]]
            tables.setdefault(_format_table(shown.map(format_value)), []).append(str(task))
        for table, tasks in tables.items():
            title = f"smallest effect that is found with a power of {POWER:.0%}"
            title += f" on {', '.join(tasks)}" if any(tasks) else ""
            title += ", in standard deviations of a run"
            title += " and as a share of solved runs" if " solved\n" in table else ""
            parts.append(f"{title}:\n{table}")
        return "\n\n".join(parts)


def _format_table(frame: "pd.DataFrame") -> str:
    return frame.to_string(index=False, na_rep="", float_format="{:.3g}".format)


def _format_least(size: float, kind: str) -> str:
    return "none" if math.isinf(size) else format(size, kind)


def _format_range(numbers: Sequence[int]) -> str:
    least = min(numbers)
    most = max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def plan_search(options: RunOptions, is_timed: bool = True) -> StudyPlan:
    """Plan a study that a user asks for, whether or not it exists; nothing is written.

    If it ``is_timed``, networks of each shape are trained for a second, half a minute in all.

    Raises:
        UserError: for invalid input.
    """
    study = plan_study(options)
    device = study.device
    if device is None:
        return _plan_loop(study, options)
    threads = options.threads or max(1, cores() // options.workers)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        networks = _list_networks(study, options, device, is_timed)
    finally:
        torch.set_num_threads(before)
    effects = plan_effects(study.params, study.config)
    workers = options.workers
    return StudyPlan(
        study.name, study.config, networks, effects, workers, threads, str(device), study.notices
    )


def _plan_loop(study: PlannedStudy, options: RunOptions) -> StudyPlan:
    """Plan a study with a loop, which is not timed: it has one row in place of networks."""
    import pandas as pd

    networks = pd.DataFrame([{"trials": len(study.trials), "seconds": math.nan}])
    effects = plan_effects(study.params, study.config)
    threads = max(1, cores() // options.workers)
    return StudyPlan(
        study.name, study.config, networks, effects, options.workers, threads, "", study.notices
    )


def _list_networks(
    study: PlannedStudy, options: RunOptions, device: torch.device, is_timed: bool
) -> "pd.DataFrame":
    import pandas as pd

    config = study.config
    known = {TASK, *COST_PARAMS}.union(*(task.options for task in config.list_tasks().values()))
    names = [name for name in study.space if name in known]
    groups: dict[tuple[Any, ...], list[Params]] = {}
    for trial in study.trained or study.trials:
        groups.setdefault(tuple(map(trial.params.get, names)), []).append(trial.params)
    lockstep = LockstepPlan(config, device, partial(spec_of, study.tasks), options.lockstep)
    limit = max(_EXAMPLES, _MAX_COUNTED // len(groups))
    shapes = sorted(groups.values(), key=lambda trials: _find_places(trials[0], names, study.space))
    examples = [_choose_examples(trials, study, limit) for trials in shapes]
    seconds = min(_SECONDS, _MAX_SECONDS / sum(map(len, examples)))
    rows = []
    for trials, counted in zip(shapes, examples, strict=True):
        batches = [_choose_batch(params, trials, lockstep) for params in counted.values()]
        times = [_time_trial(batch, study, device, seconds) for batch in batches if is_timed]
        settings = to_train_config(config, trials[0])
        costs: dict[str, Any] = {
            "trials": len(trials),
            "least_parameters": min(counted),
            "most_parameters": max(counted),
            "updates": count_updates(settings.steps, *_find_window(trials[0], study)),
            "lockstep": max(map(len, batches)),
            "seconds": statistics.fmean(times) if times else math.nan,
        }
        rows.append({name: trials[0][name] for name in names if name in trials[0]} | costs)
    return pd.DataFrame(rows)


def _find_places(params: Params, names: Iterable[str], space: SearchSpace) -> list[int]:
    """Return the places of a trial's values among those of some parameters; -1 for a lack."""
    return [space[name].index(params[name]) if name in params else -1 for name in names]


def _choose_examples(
    trials: Sequence[Params], study: PlannedStudy, limit: int
) -> dict[int, Params]:
    """Return examples of the trials of one shape by the number of weights, the least first.

    The weights of ``limit`` architectures are counted.
    """
    config = study.config
    architectures: dict[tuple[Any, ...], Params] = {}
    names = [name for name in study.space if name not in (*OPTIMIZER_PARAMS, REPLICATE)]
    for params in trials:
        architectures.setdefault(tuple(map(params.get, names)), params)
    # The first has the first values of all parameters, the last the last ones.
    ordered = sorted(
        architectures.values(), key=lambda params: sum(_find_places(params, params, study.space))
    )
    counts = {}
    for params in _pick(ordered, limit):
        trial_config = to_trial_config(params, config)
        spec = spec_of(study.tasks, trial_config.task_options)
        counts[count_parameters(trial_config.architecture, spec)] = params
    return {count: counts[count] for count in _pick(sorted(counts), _EXAMPLES)}


def _pick(items: Sequence[_T], count: int) -> list[_T]:
    """Return some of the items in their order, the first and the last included."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def _choose_batch(params: Params, trials: Sequence[Params], lockstep: LockstepPlan) -> list[Params]:
    """Return the trials of a shape that a worker would train together with one of them."""
    names = lockstep.common_params(params)
    alike = [other for other in trials if all(other.get(n) == params.get(n) for n in names)]
    return alike[: lockstep.size(params)]


def _find_window(params: Params, study: PlannedStudy) -> tuple[int, int]:
    """Return the steps of a training sequence, and of an update, of a trial."""
    trial_config = to_trial_config(params, study.config)
    task = build_task(study.tasks, trial_config.task_options)
    length = task.steps_per_sequence(to_train_config(study.config, params).sequence_length)
    return length, min(length, trial_config.update_every)


def _time_trial(
    batch: Sequence[Params], study: PlannedStudy, device: torch.device, seconds: float
) -> float:
    """Return the time of the training of one of some trials that train together.

    They train for some seconds after a first update.
    """
    config = study.config
    trial_configs = [to_trial_config(params, config) for params in batch]
    settings = to_train_config(config, batch[0])
    options = trial_configs[0].task_options
    assert config.precision != "auto"
    network = build_network(
        trial_configs, config.seed, config.precision, spec_of(study.tasks, options), device
    )
    # A log point waits for the device.
    every = _find_window(batch[0], study)[1] * (1 if device.type == "cpu" else 20)
    endless = replace(settings, steps=_ENDLESS, log_every=every)
    loop = TrainLoop(network, build_task(study.tasks, options), endless)
    points = loop.train()
    architecture = trial_configs[0].architecture
    try:
        next(points)
    except Exception as error:  # a user's cell may raise any
        is_of_user = not architecture.is_built_in and find_user_line(error) > 0
        if not is_of_user or isinstance(error, UserError) or is_out_of_memory(error):
            raise
        line = f"cell {architecture.cell} raises {describe_error(error)}"
        raise CellError(f"{line}: test it with rnn-search check") from error
    first = loop.step
    started_at = time.monotonic()
    for _ in points:
        elapsed = time.monotonic() - started_at
        if elapsed >= seconds:
            break
    return elapsed / (loop.step - first) * settings.steps / len(batch)
