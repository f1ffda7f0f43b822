"""Extension of a study to more steps: its complete trials continue from their checkpoints."""

from collections.abc import Set
from dataclasses import replace
from fractions import Fraction

import optuna

from search.worker.checkpoints import TrialFiles
from search.worker.lockstep import to_train_config
from studies.artifacts import Store, store_errors
from studies.attributes import EarlierEnd, StudyRecord
from studies.config import StudyConfig, training_settings
from studies.errors import ArtifactsError, ConfigMismatchError
from studies.storage.changes import NewEnd


def plan_new_end(
    study: optuna.Study, record: StudyRecord, config: StudyConfig, command: str, store: Store
) -> NewEnd | None:
    """Plan the extension of a study to the steps of a config.

    Args:
        study: the study.
        record: what it stores about itself.
        config: config with the new number of steps.
        command: command line to record.
        store: store of the checkpoints.

    Returns:
        None if the study has, or had, that number of steps.

    Raises:
        ConfigMismatchError: if there are fewer, learning rates depend on the number of steps, or
            the weights of the last steps before it would have to be averaged: a checkpoint does not
            hold them.
        ArtifactsError: if the checkpoints cannot be listed.
    """
    name, old, new = study.study_name, record.config.training.steps, config.training.steps
    if new in record.steps:
        return None
    if new < old:
        raise ConfigMismatchError(
            f"study {name!r} has training.steps = {old}, not {new}: --extend expected more steps"
        )
    for trial in study.get_trials(deepcopy=False):
        schedule = training_settings(trial.params, record.config).schedule
        if schedule != "constant":
            raise ConfigMismatchError(
                f"study {name!r} has the schedule {schedule!r}, whose learning rates depend on "
                f"training.steps = {old}: --extend expected a constant one; train longer under "
                "another --name"
            )
    settings = to_train_config(config)
    start = settings.averaging_start_step
    if start < old and start != replace(settings, steps=old).averaging_start_step:
        average = config.evaluation.average
        # The least number whose average begins at the old end or later.
        least = int((old - 1) / (1 - Fraction(str(average)))) + 1
        raise ConfigMismatchError(
            f"study {name!r} would average weights of step {start + 1:,} and later (evaluation."
            f"average = {average}), which checkpoints of step {old:,} do not hold: --extend "
            f"expected training.steps of {least} or more"
        )
    return NewEnd(new, old, command, _list_checkpoints(record, store))


def _list_checkpoints(record: StudyRecord, store: Store) -> Set[int]:
    """Return the numbers of the trials whose checkpoints at the end are kept."""
    checkpoints = TrialFiles(store, record.artifact_folder, "final")
    try:
        return checkpoints.list_trials()
    except ArtifactsError:
        raise
    except store_errors() as error:
        raise ArtifactsError(
            f"checkpoints in {checkpoints.location} cannot be listed ({error}): expected those "
            "from which trials continue"
        ) from error


def describe_new_end(earlier_end: EarlierEnd, new_end: NewEnd) -> str:
    """Return a notice on how many trials continue."""
    values = earlier_end.values
    continued = len(values.keys() & new_end.checkpointed)
    restarted = len(values) - continued
    notice = f"extended from {new_end.old_steps:,} to {new_end.steps:,} steps"
    if continued:
        notice += f"; trials that continue from their checkpoints: {continued:,}"
    if restarted:
        notice += f"; trials that restart from step 0, because they have none: {restarted:,}"
    return notice
