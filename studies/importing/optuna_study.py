"""Results of a study of plain Optuna, which is read without changing it."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.attributes import is_grid_trial
from studies.errors import ConfigError
from studies.importing.options import ImportOptions
from studies.importing.rows import ResultRow, ResultTable
from studies.storage.engine import parse_url, redact
from studies.storage.open import list_study_names, load_study, read_storage
from studies.text import to_line

_OBJECTIVE = "values_"
"""Beginning of the name of an objective, as in Optuna's tables."""

_GRID = "grid_id"
"""System attribute of the trials of Optuna's GridSampler."""


def read_optuna_study(url: str, name: str | None, options: ImportOptions) -> ResultTable:
    """Read the results of a study of plain Optuna.

    Args:
        url: URL of its storage, opened read-only.
        name: name of the study; None if the storage has one only.
        options: choices of the user.

    Raises:
        ConfigError: if the study is one of this program, has several objectives of which none is
            chosen, or none of several studies is named.
        StudiesError: if the storage or the study does not exist.
    """
    with closing(read_storage(url)) as storage:
        study = load_study(storage, name or _find_only(list_study_names(storage), url))
        trials = study.get_trials(deepcopy=False)
        names = study.metric_names
        directions = study.directions
    source = f"study {study.study_name!r} of {redact(parse_url(url))}"
    if any(map(is_grid_trial, trials)):
        raise ConfigError(
            f"{to_line(source)} is one of this program: copy it with rnn-search copy "
            f"{study.study_name} --to URL"
        )
    place = _find_objective(source, directions, names, options)
    finished = [trial for trial in trials if trial.state.is_finished()]
    notes = []
    if left_out := len(trials) - len(finished):
        notes.append(f"Trials that are not finished were left out: {left_out:,}.")
    if not finished:
        raise ConfigError(f"{to_line(source)} has no finished trial: expected one or more")
    chosen = _check_parameters(source, finished, options)
    maximize = options.maximize
    if maximize is None:
        maximize = directions[place] == StudyDirection.MAXIMIZE
    metric = options.metric or (names[place] if names else "value")
    rows = [_to_row(trial, place, chosen, options) for trial in finished]
    return ResultTable(
        source, metric, maximize, rows, notes,
        numbers_repeats=True,
        is_adaptive=not all(_GRID in trial.system_attrs for trial in finished),
        distributions=_find_distributions(finished, chosen), study=study.study_name,
    )  # fmt: skip


def _find_only(names: Sequence[str], url: str) -> str:
    if len(names) == 1:
        return names[0]
    listed = ", ".join(map(to_line, names)) or "none"
    raise ConfigError(
        f"storage {redact(parse_url(url))} has {len(names)} studies: choose one with --study, of "
        f"{listed}"
    )


def _find_objective(
    source: str,
    directions: Sequence[StudyDirection],
    names: Sequence[str] | None,
    options: ImportOptions,
) -> int:
    """Return the place of the objective to import."""
    known = [f"{_OBJECTIVE}{place}" for place in range(len(directions))]
    if options.value is None:
        if len(directions) == 1:
            return 0
        raise ConfigError(
            f"{to_line(source)} has {len(directions)} objectives: choose one with --value, of "
            f"{', '.join([*known, *(names or [])])}"
        )
    if options.value in known:
        return known.index(options.value)
    if names and options.value in names:
        return names.index(options.value)
    if options.value == "value" and len(directions) == 1:
        return 0
    raise ConfigError(
        f"{to_line(source)} has no objective {to_line(options.value)!r}: expected --value "
        f"{' or '.join(known)}"
    )


def _check_parameters(
    source: str, trials: Sequence[FrozenTrial], options: ImportOptions
) -> list[str]:
    """Return the names of the parameters to import."""
    known = list(dict.fromkeys(name for trial in trials for name in trial.params))
    replicate = [options.replicate] if options.replicate else []
    for name in (*options.parameters, *options.ignore, *replicate):
        if name not in known:
            raise ConfigError(
                f"{to_line(source)} has no parameter {to_line(name)!r}: expected one of "
                f"{', '.join(map(to_line, known))}"
            )
    chosen = list(options.parameters or known)
    return [name for name in chosen if name not in (*options.ignore, *replicate)]


def _to_row(
    trial: FrozenTrial, place: int, names: Sequence[str], options: ImportOptions
) -> ResultRow:
    value, state = None, trial.state
    if state is TrialState.COMPLETE:
        value = trial.values[place]
    replicate = trial.params.get(options.replicate) if options.replicate else None
    return ResultRow(
        f"trial {trial.number}",
        {name: _to_scalar(trial.params[name]) for name in names if name in trial.params},
        value,
        state,
        replicate if type(replicate) is int else None,
        trial.intermediate_values,
        trial.datetime_start,
        trial.datetime_complete,
    )


def _to_scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _find_distributions(
    trials: Sequence[FrozenTrial], names: Sequence[str]
) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter, the same in all trials, with scalar choices."""
    found: dict[str, BaseDistribution] = {}
    for name in names:
        distinct = {
            repr(trial.distributions[name]): trial.distributions[name]
            for trial in trials
            if name in trial.distributions
        }
        if len(distinct) == 1:
            (distribution,) = distinct.values()
            if isinstance(distribution, CategoricalDistribution):
                choices = list(dict.fromkeys(map(_to_scalar, distribution.choices)))
                distribution = CategoricalDistribution(choices)
            found[name] = distribution
    return found
