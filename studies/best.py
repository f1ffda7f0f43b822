"""The best of a study: one definition for status, report, exports and refinements.

Without replicates it is the trial of the best value. Of replicates it is the architecture of the
best mean over its complete runs, because the best single run is partly luck. If the task says when
it is solved, it is that of which most runs are, and of these that of the least median. The mean is
that of the loss on unseen text, on the test split if all runs have it, else on the validation
split, else of the value; it is adjusted for the replicates that each architecture has
(:mod:`reports.stats.run_means`). The run that stands for an architecture is that of the best value,
which is independent of the test text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import optuna

from reports.stats.run_means import RankedArchitecture, Run, rank_runs
from studies.config import StudyConfig
from studies.measure import Measure, find_measure
from studies.records import TaskRecord
from studies.space import REPLICATE, architecture_key, replicate_of
from studies.storage.counts import has_replicates, top_trials
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial, TrialStatus
from studies.trial_params import label_trial


def split_by_task(
    trials: Iterable[StoredTrial], config: StudyConfig
) -> dict[str, list[StoredTrial]]:
    """Return the trials of each of a study's tasks by its name, of the only one as ``""``."""
    found: dict[str, list[StoredTrial]] = {name: [] for name in config.task_names or ("",)}
    for trial in trials:
        found[config.task_of(trial.params)].append(trial)
    return found


def rank_trials(trials: Sequence[StoredTrial], config: StudyConfig) -> list[RankedArchitecture]:
    """Rank the architectures of a study of one task, each at each value of nuisance parameters.

    Args:
        trials: all grid trials of the study, or of one of its tasks.
        config: its config, or that of the task.
    """
    value_measure = find_measure(config)
    measure = _find_metric(trials, value_measure)
    is_repeated = len({replicate_of(trial.params) for trial in trials}) > 1
    task = config.task_record if is_repeated else None
    runs = []
    for trial in trials:
        if trial.status is not TrialStatus.COMPLETE or trial.value is None:
            continue
        value = value_measure.to_loss(trial.value)
        loss = value if measure.is_value else trial.attributes[measure.column]
        replicate = replicate_of(trial.params)
        key = architecture_key(trial.params)
        is_solved = _has_solved(trial, task) if task is not None and task.solved else None
        runs.append(Run(key, trial.number, replicate, value, loss, is_solved))
    return rank_runs(runs)


def _has_solved(trial: StoredTrial, task: TaskRecord) -> bool | None:
    """Return whether a complete trial solved a task that says when; None if that is not known."""
    measured = {"loss": trial.attributes.get("validation_loss")}
    measured |= trial.attributes.get("metrics") or {}
    known = {name: value for name, value in measured.items() if value is not None}
    return task.has_solved(known) if task.solved.keys() <= known.keys() else None


def _find_metric(trials: Sequence[StoredTrial], measure: Measure) -> Measure:
    """Return the number that ranks the architectures: a loss on a held-out split, or the value."""
    if len({replicate_of(trial.params) for trial in trials}) <= 1:
        return measure
    complete = [trial for trial in trials if trial.status is TrialStatus.COMPLETE]
    return measure.choose_metric(lambda name: all(name in trial.attributes for trial in complete))


@dataclass(frozen=True)
class Best:
    """The best of a study.

    Attributes:
        trial: the best trial; of replicates the run of the best value of the best architecture.
        architecture: label of the trial; of replicates without their number.
        value: the trial's value; of replicates the mean over the runs of the architecture, or the
            median if they are solved or not.
        metric: name, unit and format of the value.
        runs: number of runs of which the value is the mean; None without replicates.
        is_adjusted: whether the mean is adjusted for runs that are missing.
        solved: number of the runs that are solved; None if the mean ranks the architectures.
    """

    trial: StoredTrial
    architecture: str
    value: float
    metric: Measure
    runs: int | None = None
    is_adjusted: bool = False
    solved: int | None = None

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number

    @property
    def mean_of(self) -> str:
        """What the value is the mean of: ``mean of 3 runs``; "" without replicates."""
        if self.runs is None:
            return ""
        if self.solved is not None:
            return f"solved {self.solved} of {self.runs}, median"
        adjusted = "adjusted " if self.is_adjusted else ""
        return f"{adjusted}mean of {self.runs} run{'s' * (self.runs != 1)}"

    @property
    def text(self) -> str:
        """The value for a line of text; of a mean with what it is the mean of."""
        if self.runs is None:
            return self.metric.describe(self.value)
        return f"{self.mean_of} {self.metric.format(self.value)}, {self.metric.name}"

    def as_json(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {
            "number": self.number,
            "value": self.value,
            "unit": self.metric.unit,
            "measure": self.metric.name,
            "runs": self.runs,
            "architecture": self.architecture,
        }


class BestReader:
    """Reads what is best in a study, of replicates only the trials that may have changed."""

    def __init__(self, study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig) -> None:
        self._study = study
        self._storage = storage
        self._config = config
        self._trials = storage.reader(study._study_id)

    @cached_property
    def has_replicates(self) -> bool:
        """Whether architectures have several runs."""
        return has_replicates(self._storage, self._study._study_id)

    def read_tasks(self) -> dict[str, Best]:
        """Read what is best now in each of several tasks that has a complete trial, by name."""
        best = {name: self.read(name) for name in self._config.task_names}
        return {name: found for name, found in best.items() if found is not None}

    def read(self, task: str = "") -> Best | None:
        """Read what is best now, of several tasks in one of them.

        Returns:
            None before the first complete trial, and where a task of several is not named.
        """
        config = self._config
        if config.task_names and not task:
            return None
        if not self.has_replicates:
            return self._read_trial(task)
        trials, ranking = self.read_ranking(task)
        if not ranking:
            return None
        config = config.at_task(task)
        best = ranking[0]
        (trial,) = (trial for trial in trials if trial.number == best.runs[0].number)
        metric = _find_metric(trials, find_measure(config))
        params = {name: value for name, value in trial.params.items() if name != REPLICATE}
        loss = metric.to_loss(best.loss)
        label = label_trial(params, config)
        runs = len(best.runs)
        return Best(trial, label, loss, metric, runs, best.is_adjusted, best.solved)

    def _read_trial(self, task: str) -> Best | None:
        place = self._config.task_names.index(task) if task else None
        with self._storage.reading():
            ranking = top_trials(self._storage, self._study._study_id, 1, place)
            if not ranking:
                return None
            ((trial_id, _, value),) = ranking
            (trial,) = read_trials(self._storage, self._study._study_id, [trial_id])
        config = self._config.of_trial(trial.params)
        return Best(trial, label_trial(trial.params, config), value, find_measure(config))

    def read_ranking(self, task: str = "") -> tuple[list[StoredTrial], list[RankedArchitecture]]:
        """Read the grid trials, by number, and the ranking of their architectures, of a task."""
        trials = split_by_task(self._trials.read(), self._config)[task]
        return trials, rank_trials(trials, self._config.at_task(task))


def top_count(top: float | int, total: int) -> int:
    """Return the number of trials that ``top`` stands for.

    Args:
        top: a fraction below 1, rounded down but at least one trial, or a number of trials.
        total: number of the study's grid trials.
    """
    # Exact in decimal: 0.29 of 100 is 29, but the nearest binary fraction gives 28.9999….
    return max(1, int(Fraction(str(top)) * total)) if top < 1 else int(top)
