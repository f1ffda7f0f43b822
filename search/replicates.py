"""Replicates with planned looks: their settings, and the runs that a look adds."""

from collections.abc import Collection, Sequence

import optuna
from pydantic import ValidationError

from search.refinement import group_by_architecture
from studies.attributes import LOOKS, SOURCE_TRIALS, LookRecord, StudyRecord
from studies.config import DEFAULT_LOOKS, StudyConfig
from studies.errors import ConfigError, ConfigMismatchError
from studies.records import first_message
from studies.space import REPLICATE, distributions, observed_search_space
from studies.storage.changes import extend_study
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial


def plan_looks(config: StudyConfig, until_decided: bool) -> StudyConfig:
    """Return the config of a new study with its planned looks, or with none.

    The number of replicates becomes that of the last look.

    Args:
        config: config of a study file; its looks are the planned ones, if it has any.
        until_decided: whether runs are added until the architectures are decided.

    Raises:
        ConfigError: if the study derives from no other one, or contradicts its looks.
    """
    refinement = config.refinement
    if refinement is None:
        if until_decided:
            raise ConfigError(
                "--until-decided adds runs of replicated architectures: expected a study with "
                "[refinement]"
            )
        return config
    looks, replicates = [], refinement.replicates
    if until_decided:
        looks = refinement.looks or list(DEFAULT_LOOKS)
        replicates = looks[-1]
    planned = refinement.model_copy(update={"looks": looks, "replicates": replicates})
    try:
        return StudyConfig.model_validate({**dict(config), "refinement": planned})
    except ValidationError as error:
        option = f"with{'' if until_decided else 'out'} --until-decided"
        raise ConfigError(f"{option}: study {first_message(error)}") from error


def join_looks(
    name: str, stored: StudyConfig, config: StudyConfig, until_decided: bool
) -> StudyConfig:
    """Return a worker's config with the planned looks of the study that it joins.

    A worker that does not ask for looks trains the runs that there are.

    Raises:
        ConfigMismatchError: if the worker asks for looks and the study was created without.
    """
    if until_decided and stored.refinement is None:
        raise ConfigMismatchError(
            f"study {name!r} is a grid, each architecture of which is trained once: expected a "
            "study with [refinement] for --until-decided"
        )
    if stored.refinement is None or config.refinement is None:
        return config
    if until_decided and not stored.refinement.looks:
        raise ConfigMismatchError(
            f"study {name!r} was created with one comparison of all runs, which spends the whole "
            "error: expected no --until-decided, or another --name"
        )
    if until_decided or not stored.refinement.looks:
        return config
    kept = {name: getattr(stored.refinement, name) for name in ("looks", "replicates")}
    return config.model_copy(update={"refinement": config.refinement.model_copy(update=kept)})


def record_look(
    storage: LeasedRDBStorage, study: optuna.Study, record: StudyRecord, look: LookRecord
) -> int | None:
    """Store a planned look, and the trials of the runs that it adds, in one transaction.

    Args:
        storage: storage that holds the study.
        study: the study.
        record: what it stored about itself when the look was taken.
        look: the look.

    Returns:
        The number of trials added; None, without any change, if another process recorded a look
        meanwhile.

    Raises:
        StudiesError: if a worker holds a trial.
    """
    looks = [each.model_dump(mode="json") for each in record.looks]
    expected = {LOOKS: looks}
    written = {LOOKS: [*looks, look.model_dump(mode="json")]}
    trials: list[StoredTrial] = []
    if look.continued:
        refinement = record.config.refinement
        assert refinement is not None
        runs = next(each for each in refinement.looks if each > look.runs)
        trials = plan_runs(
            read_trials(storage, study._study_id, is_strict=True), look.continued, runs
        )
    if not trials:
        is_done = extend_study(storage, study._study_id, expected, written)
    else:
        space = observed_search_space(trial.params for trial in trials)
        is_done = extend_study(
            storage, study._study_id, expected, written, distributions(space), trials
        )
    return len(trials) if is_done else None


def plan_runs(
    trials: Sequence[StoredTrial], continued: Collection[int], runs: int
) -> list[StoredTrial]:
    """Return the trials that some architectures lack to a number of runs.

    Runs of the same number read the text in the same order, so all architectures have the same
    numbers, in the order of which the trials are returned.

    Args:
        trials: trials of the study.
        continued: number of the first trial of each architecture that continues.
        runs: number of runs of each of them.
    """
    groups = [
        group
        for group in group_by_architecture(trials).values()
        if min(trial.number for trial in group) in continued
    ]
    first = min(int(trial.params[REPLICATE]) for trial in trials)
    return [
        StoredTrial(
            group[0].params | {REPLICATE: number},
            {SOURCE_TRIALS: group[0].attributes.get(SOURCE_TRIALS, [])},
        )
        for number in range(first, first + runs)
        for group in groups
        if number not in {trial.params[REPLICATE] for trial in group}
    ]
