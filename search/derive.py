"""Plan the trials of a study: of its grid, of a refinement, and of further replicates."""

import random
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from optuna.trial import TrialState

from rnn.config import GATED_CELL
from rnn.errors import UserError
from search.run_options import MAX_UNCONFIRMED
from studies.attributes import COPIED_FROM, CURVE, LONG_RESULTS, SOURCE_TRIALS
from studies.best import rank_trials, split_by_task, top_count
from studies.config import StudyConfig
from studies.grid import MAX_COMBINATIONS
from studies.loader import diff_configs
from studies.space import (
    BLOCK,
    CELL,
    REPLICATE,
    TASK,
    Params,
    Refinement,
    SearchSpace,
    architecture_key,
    observed_search_space,
    param_order,
    replicate_of,
    run_key,
)
from studies.storage.counts import count_statuses
from studies.storage.trials import StoredTrial
from studies.study_settings import TRAINING_PARAMS, used_params
from studies.trial_params import resolve_params


def list_combinations(config: StudyConfig) -> list[Params]:
    """Return the combinations of a study with a search space in the order in which they run.

    It is random, but every architecture gets a run before any gets two.
    """
    assert config.grid is not None
    runs: dict[Hashable, list[Params]] = {}
    for params in config.grid.combinations():
        runs.setdefault(architecture_key(params), []).append(params)
    architectures = list(runs.values())
    random.Random(config.seed).shuffle(architectures)
    return sorted(chain.from_iterable(architectures), key=replicate_of)


def find_space(trials: Iterable[StoredTrial], config: StudyConfig) -> SearchSpace:
    """Return the values of the parameters of a derived study; it has the tasks in their order."""
    space = observed_search_space(trial.params for trial in trials)
    return space | {TASK: [*config.task_names]} if config.task_names else space


def subtract(grid: Iterable[Params], other: Iterable[Params]) -> list[Params]:
    """Return the combinations of a grid that another does not have, in linear time."""
    present = set(map(run_key, other))
    return [params for params in grid if run_key(params) not in present]


def derive_trials(
    trials: Sequence[StoredTrial],
    config: StudyConfig,
    source: StudyConfig,
    partial: bool = False,
    confirmed: bool = False,
) -> list[StoredTrial]:
    """Apply a refinement's variants and replicates to the best architectures of its source.

    They are the best in each of its tasks, or in all tasks those of the best mean rank. A
    refinement that names a trial derives that one as it is. An architecture is judged at its best
    values of the nuisance parameters, and its derived trials have these. A variant is applied to
    the architectures that have its parameters. Equal combinations become one trial that lists all
    source trials that led to it.

    A source may be unfinished if ``partial``.

    Returns:
        Trials derived from the best source trial first.

    Raises:
        UserError: if the source does not have the trial.
        UserError: if the source is unfinished, or has too few complete or kept trials.
        UserError: if a variant names a parameter that the source's trials lack, or the trials are
            too many.
    """
    refinement = config.refinement
    assert refinement is not None
    if refinement.trial is not None:
        trial = find_trial(trials, refinement.trial, refinement.source)
        return [StoredTrial(trial.params, {SOURCE_TRIALS: [trial.number]})]
    counts = count_statuses(Counter(trial.status for trial in trials))
    if counts.finished < counts.planned and not partial:
        raise UserError(
            f"study {refinement.source!r} has finished {counts.finished} of {counts.planned} "
            f"trials ({counts.running} running, {counts.waiting} waiting): finish it first, or use "
            "--partial"
        )
    best = _choose_best(trials, config, source, partial)
    count = sum(map(len, best.values())) * len(refinement.variants) * refinement.replicates
    check_count(count, confirmed)
    # All trials of the source count, so that those of the best have the same names for any top.
    present = {name for trial in trials for name in trial.params}
    settings = present & set(TRAINING_PARAMS)
    # Replicates must be new runs: the source's were selected for their values. A study without
    # replicates runs replicate 0.
    first = 1 + max(replicate_of(trial.params) for trial in trials)
    derived = [
        _derive(chosen, first, settings, refinement, config.at_task(task))
        for task, chosen in best.items()
    ]
    # The best of each task before the second of any.
    return [trial for trials in zip_longest(*derived) for trial in trials if trial is not None]


def _choose_best(
    trials: Sequence[StoredTrial], config: StudyConfig, source: StudyConfig, partial: bool
) -> dict[str, list[list[StoredTrial]]]:
    """Return the complete runs of the best architectures of each task, the best first.

    Arguments and errors are those of :func:`derive_trials`.
    """
    refinement = config.refinement
    assert refinement is not None
    of_tasks = split_by_task(trials, config)
    ranked = {
        task: _rank_architectures(found, config.nuisance, source.at_task(task))
        for task, found in of_tasks.items()
    }
    if refinement.rank == "mean":
        ranked = _order_by_mean_rank(ranked, config.nuisance)
    best = {}
    for task, found in of_tasks.items():
        groups = group_by_architecture(found, config.nuisance)
        wanted = top_count(refinement.top, len(groups))
        if any(trial.state is TrialState.PRUNED for trial in found):
            largest = max(map(_count_candidates, groups.values()))
            planned = _count_candidates(found)
            kept = top_count(source.pruning.keep, planned)
            _require_kept(refinement, planned, kept, wanted, largest)
        if len(ranked[task]) < wanted and not (partial and ranked[task]):
            of_task = f" of the task {task}" if task else ""
            raise UserError(
                f"study {refinement.source!r} has {len(ranked[task])} complete trials{of_task}, "
                f"but refinement.top = {refinement.top} needs {wanted}: "
                + ("lower it" if ranked[task] else "use another source")
            )
        best[task] = ranked[task][:wanted]
    return best


def _order_by_mean_rank(
    ranked: Mapping[str, list[list[StoredTrial]]], nuisance: Sequence[str]
) -> dict[str, list[list[StoredTrial]]]:
    """Order the architectures that are complete on all tasks by their mean rank over the tasks.

    Each keeps its runs at its best values of nuisance parameters, which may differ among tasks.
    """
    runs_of: dict[str, dict[Hashable, list[StoredTrial]]] = {
        task: {architecture_key(runs[0].params, (*nuisance, TASK)): runs for runs in found}
        for task, found in ranked.items()
    }
    first, *others = runs_of.values()
    common = [key for key in first if all(key in other for other in others)]
    total = dict.fromkeys(common, 0)
    for of_task in runs_of.values():
        for rank, key in enumerate(key for key in of_task if key in total):
            total[key] += rank
    order = sorted(common, key=lambda key: total[key])
    return {task: [of_task[key] for key in order] for task, of_task in runs_of.items()}


def find_repeats(
    derived: Sequence[StoredTrial],
    trials: Iterable[StoredTrial],
    source: StudyConfig,
    config: StudyConfig,
) -> dict[int, StoredTrial]:
    """Find the complete runs of the source that derived trials would repeat exactly.

    A refinement that names a trial repeats it on purpose.

    Returns:
        The trial of the source by the place of the derived one.
    """
    assert config.refinement is not None
    if config.refinement.trial is not None:
        return {}
    varied = (f"training.{name}:" for name in TRAINING_PARAMS)
    resolved = ("space", "refinement", "pruning.", *varied)
    differences = [line for line in diff_configs(source, config) if not line.startswith(resolved)]
    if differences or source.precision != config.precision:
        return {}
    runs = {
        _identify_run(trial.params, source): trial
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.value is not None
    }
    keys = [_identify_run(trial.params, config) for trial in derived]
    return {place: runs[key] for place, key in enumerate(keys) if key in runs}


def _identify_run(params: Params, config: StudyConfig) -> Hashable:
    """Return what, besides the settings of its study, determines the result of a trial."""
    if not config.has_networks:
        return run_key(params)
    names = (BLOCK, *TRAINING_PARAMS, *config.options, REPLICATE)
    resolved = {CELL: GATED_CELL} | resolve_params(params, config, names)
    cell = config.cells.get(resolved[CELL])
    return frozenset(resolved.items()), config.length_of(params), cell and cell.sha256


def copy_results(derived: StoredTrial, run: StoredTrial) -> StoredTrial:
    """Return a derived trial with the results of the run of its source that it would repeat."""
    of_derived = {**derived.attributes, COPIED_FROM: run.number}
    recorded = run.system_attributes.items()
    results = {k: v for k, v in recorded if k in LONG_RESULTS or k.startswith(CURVE)}
    return replace(
        derived,
        state=run.state,
        value=run.value,
        started=run.started,
        completed=run.completed,
        attributes=run.attributes | of_derived,
        system_attributes=results,
        curve=run.curve,
    )


def _count_candidates(trials: Iterable[StoredTrial]) -> int:
    """Count what pruning decides about: all replicates of an architecture count once."""
    return len({architecture_key(trial.params) for trial in trials})


def _require_kept(
    refinement: Refinement, planned: int, kept: int, wanted: int, largest: int
) -> None:
    """Require that a source which was pruned has kept the wanted number of best architectures.

    Pruning keeps the best trials, of which an architecture has one for each combination of the
    nuisance parameters, at most ``largest``; replicates count once. Before the best trial of the
    k-th best architecture come at most all trials of the k - 1 better ones. With one fraction of
    each, enough are kept.
    """
    needed = (wanted - 1) * largest + 1
    if needed > kept:
        raise UserError(
            f"study {refinement.source!r} was pruned to its top {kept} of {planned}, but "
            f"refinement.top = {refinement.top} needs the top {needed}: expected at most "
            f"{(kept - 1) // largest + 1}"
        )


def check_count(count: int, confirmed: bool) -> None:
    """Require that the user confirms many new trials.

    Raises:
        UserError: if there are more than :data:`MAX_UNCONFIRMED` and the user has not, or more
            than a study can have.
    """
    if count > MAX_COMBINATIONS:
        raise UserError(f"{count:,} new trials are too many: expected at most {MAX_COMBINATIONS:,}")
    if count > MAX_UNCONFIRMED and not confirmed:
        raise UserError(
            f"{count:,} new trials: expected at most {MAX_UNCONFIRMED:,}; reduce them, or confirm "
            "with --yes"
        )


def find_trial(trials: Iterable[StoredTrial], number: int, study: str) -> StoredTrial:
    """Return the trial of a number.

    Raises:
        UserError: if there is none.
    """
    by_number = {trial.number: trial for trial in trials}
    if number not in by_number:
        raise UserError(
            f"trial {number} not found in study {study!r}, which has {len(by_number):,} trials"
        )
    return by_number[number]


def group_by_architecture(
    trials: Iterable[StoredTrial], nuisance: Sequence[str] = ()
) -> dict[Hashable, list[StoredTrial]]:
    """Group the trials of each architecture, in the given order."""
    groups: dict[Hashable, list[StoredTrial]] = {}
    for trial in trials:
        groups.setdefault(architecture_key(trial.params, nuisance), []).append(trial)
    return groups


def _rank_architectures(
    trials: Sequence[StoredTrial], nuisance: Sequence[str], source: StudyConfig
) -> list[list[StoredTrial]]:
    """Return the complete runs of each architecture at its best values of nuisance parameters.

    The best architecture of the source comes first, by the definition of :mod:`studies.best`.
    """
    by_number = {trial.number: trial for trial in trials}
    best: dict[Hashable, list[StoredTrial]] = {}
    for architecture in rank_trials(trials, source):
        runs = [by_number[run.number] for run in architecture.runs]
        best.setdefault(architecture_key(runs[0].params, nuisance), runs)
    return list(best.values())


def _derive(
    best: list[list[StoredTrial]],
    first: int,
    settings: set[str],
    refinement: Refinement,
    config: StudyConfig,
) -> list[StoredTrial]:
    """Apply the variants to the best architectures, the best first; see :func:`derive_trials`.

    Replicates are numbered from ``first``. Some trials of the source vary in the ``settings``.
    """
    derived: dict[Hashable, StoredTrial] = {}
    varied = settings.union(*refinement.variants)
    applied = set()
    for runs in best:
        base = {name: value for name, value in runs[0].params.items() if name != REPLICATE}
        for number, variant in enumerate(refinement.variants):
            params = _apply(variant, base, varied, config)
            if params is None:
                continue
            applied.add(number)
            for replicate in range(first, first + refinement.replicates):
                run = params | ({REPLICATE: replicate} if refinement.replicates > 1 else {})
                trial = StoredTrial(run, {SOURCE_TRIALS: []})
                trial = derived.setdefault(tuple(run.items()), trial)
                numbers = trial.attributes[SOURCE_TRIALS]
                numbers += [run.number for run in runs if run.number not in numbers]
    for number, variant in enumerate(refinement.variants):
        if number not in applied:
            present = param_order(name for runs in best for name in runs[0].params)
            known = ", ".join(name for name in present if name != REPLICATE)
            raise UserError(
                f"unknown parameter in refinement.variants: {', '.join(variant)}; none of the best "
                f"{len(best)} of {refinement.source!r} has it: they have {known}"
            )
    return list(derived.values())


def _apply(
    variant: Params, base: Params, varied: Collection[str], config: StudyConfig
) -> Params | None:
    """Return a trial's parameters with a variant's; None if it lacks one of the variant's.

    Of the names that vary, those that the trial does not state have the study's value, or its
    cell's default: equal trials state the same, also where a variant changes the optimizer.
    """
    if not config.has_networks:
        return base | variant if variant.keys() <= base.keys() else None
    settings = {name: value for name, value in variant.items() if name in TRAINING_PARAMS}
    params = resolve_params(base | settings, config, varied)
    cell, task = config.cells.get(str(base.get(CELL))), config.task_record
    options = (cell.options if cell else {}) | (task.options if task else {})
    for name, value in variant.items():
        if name not in params:
            return None
        if name in options:
            if not options[name].fits(value):  # it is a value of another cell's option
                return None
            value = options[name].convert(value)
        params[name] = value
    used = used_params(params, config.training)
    return used if used.keys() >= variant.keys() else None


def add_replicates(trials: Sequence[StoredTrial], count: int) -> list[StoredTrial]:
    """Return the trials that each architecture of a study lacks to a number of replicates.

    They are those that a new study with as many replicates would have: replicates of the same
    number read the data in the same order. Every architecture gets a run before any gets two.
    """
    first = min(int(trial.params[REPLICATE]) for trial in trials)
    groups = group_by_architecture(trials).values()
    added = []
    for replicate in range(first, first + count):
        for group in groups:
            if all(trial.params[REPLICATE] != replicate for trial in group):
                sources = group[0].attributes.get(SOURCE_TRIALS, [])
                params = group[0].params | {REPLICATE: replicate}
                added.append(StoredTrial(params, {SOURCE_TRIALS: sources}))
    return added
