"""What the parameters of a trial mean in its study: its network, its label, and what is fixed."""

from collections.abc import Collection, Mapping
from typing import Any

from rnn.config import (
    BASELINE_CELLS,
    BLOCKS,
    GATED_CELL,
    GATED_OPTIONS,
    NetworkConfig,
    ParamValue,
    TrialConfig,
)
from studies.config import StudyConfig, select_params, training_settings
from studies.errors import StudyFormatError
from studies.messages import shorten
from studies.space import BLOCK, CELL, REPLICATE, TASK, param_order, replicate_of
from studies.study_settings import TRAINING_PARAMS, used_params


def to_trial_config(params: Mapping[str, Any], config: StudyConfig) -> TrialConfig:
    """Resolve a trial's parameters over its study's config.

    Raises:
        StudyFormatError: if one is missing, or its cell or task unknown.
    """
    if config.task_records:
        resolved = to_trial_config(params, config.of_trial(params))
        return resolved._replace(task_options=select_params(params, (TASK,)))
    try:
        architecture = _to_network_config(params, config)
    except KeyError as error:
        raise StudyFormatError(
            f"a trial has no parameter {error}, only {shorten(repr(dict(params)), 300)}: restore "
            "the storage from a backup, or choose another study"
        ) from error
    training = training_settings(params, config)
    window, update_every = training.gradient_window
    varied = [name for name in TRAINING_PARAMS if name in params and config.varies(name)]
    return TrialConfig(
        architecture,
        replicate_of(params),
        window,
        training.optimizer_config,
        select_params(params, varied),
        update_every,
        select_params(params, config.task_record.options if config.task_record else ()),
    )


def _to_network_config(params: Mapping[str, Any], config: StudyConfig) -> NetworkConfig:
    cell = params.get(CELL, GATED_CELL)
    options: tuple[tuple[str, ParamValue], ...] = ()
    sha256 = None
    if cell == GATED_CELL:
        values = {**params, "gate_inputs": config.gate_inputs}
        options = tuple((name, values[name]) for name in GATED_OPTIONS)
    elif cell in config.cells:
        options = select_params(params, config.cells[cell].options)
        sha256 = config.cells[cell].sha256
    elif cell not in BASELINE_CELLS:
        raise StudyFormatError(
            f"a trial has the cell {shorten(repr(cell))}, which its study does not know: restore "
            "the storage from a backup, or choose another study"
        )
    block = params.get(BLOCK, BLOCKS[0])
    return NetworkConfig(cell, params["layers"], params["state_size"], options, sha256, block)


def label_trial(params: Mapping[str, Any], config: StudyConfig) -> str:
    """Describe a trial by its network, or, if it is none of this program, by its parameters."""
    if config.has_networks:
        return to_trial_config(params, config).label
    replicate = f" #{params[REPLICATE]}" if REPLICATE in params else ""
    named = (f"{name} {params[name]}" for name in config.list_params() if name in params)
    return ", ".join(named) + replicate


def resolve_params(
    params: Mapping[str, Any], config: StudyConfig, names: Collection[str]
) -> dict[str, Any]:
    """Return a trial's parameters, and of other names those that its study's config fixes.

    A trial that has no number of its replicate is replicate 0. What a trial lacks that is no
    network of this program, no config fixes.
    """
    if not config.has_networks:
        known = (*config.list_params(), REPLICATE)
        return {name: params[name] for name in known if name in params}
    config = config.of_trial(params)
    cell = config.cells.get(params.get(CELL, GATED_CELL))
    task = config.task_record
    resolved = dict(params)
    if REPLICATE in names:
        resolved.setdefault(REPLICATE, 0)
    if BLOCK in names:
        resolved.setdefault(BLOCK, BLOCKS[0])
    settings = {name: getattr(config.training, name) for name in names if name in TRAINING_PARAMS}
    used = used_params(settings | resolved, config.training)
    for name in names:
        if name in used:
            resolved.setdefault(name, used[name])
        elif cell is not None and name in cell.options:
            resolved.setdefault(name, cell.options[name].default)
        elif task is not None and name in task.options:
            resolved.setdefault(name, task.value(name))
    return {name: resolved[name] for name in param_order(resolved)}
