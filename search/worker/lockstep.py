"""Choice of the trials that a worker trains in lockstep, and what identifies their training."""

import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch

from rnn.autograd import lockstep_obstacle
from rnn.config import (
    BYTES,
    WHOLE_SEQUENCE,
    GatedOptions,
    Precision,
    TaskSpec,
    TrialConfig,
)
from rnn.errors import CellError
from rnn.native.engine import library_obstacle, pays_off
from rnn.network import estimate_memory
from rnn.stacked.engine import can_stack
from rnn.training.devices import available_memory
from rnn.training.loop import TrainConfig
from search.cells_tasks import TaskOptions
from search.pruning.policy import ALWAYS_CONTINUE
from studies.config import StudyConfig, training_settings
from studies.space import CELL, REPLICATE, SWITCHES, TASK
from studies.study_settings import OPTIMIZER_PARAMS
from studies.trial_params import to_trial_config

_MAX_CPU_LAYER_STATE = 256 * 48
"""Layer state of all streams, in numbers, up to which lockstep pays on a CPU: overhead other than
matrix products dominates such short steps."""

_MAX_CPU_LOCKSTEP = 32
"""Networks in lockstep on a CPU: more would gain little, and all of them would end at once."""

_MAX_NATIVE_LOCKSTEP = 8
"""The same where the library in C computes each network in turn, unless there are more threads:
weights and moments of more do not stay in the last cache. From 4 to 32 networks the time of each
differs by a fifth at most, so the best number is not measured when a worker starts."""

_MAX_CPU_BYTES = 256 * 2**20
"""Memory of networks in lockstep on a CPU: at most twice that of one large network."""

_MAX_AUTOGRAD_BYTES = 64 * 2**20
"""Memory of networks in lockstep on a CPU by the autograd engine: weights, moments and activations
of more do not stay in the caches, which one network after another uses better."""

_MIN_AUTOGRAD_LOCKSTEP = 8
"""Fewer networks train alone on a CPU by the autograd engine: ``torch.vmap`` adds overhead."""

_WINDOW_LOCKSTEP = 8
"""Networks in lockstep on a CPU where an update has several steps, if memory suffices: more were
not measured."""

_MEMORY_FRACTION = 0.8

_MIN_ON_GPU = 0.01
"""Keep probability from which a paused network resumes together with another on a GPU, whose steps
are bound by kernel launches: another network in lockstep costs next to nothing."""

_logger = logging.getLogger(__name__)


class LockstepPlan:
    """Decides how many trials, and which, are trained together with a claimed one.

    Args:
        spec_of: returns what the networks with some options of the task read and predict.
        limit: maximum number of networks to train together; None to choose by device.

    Attributes:
        min_keep_probability: keep probability from which a paused trial resumes together with
            another.
    """

    def __init__(
        self,
        config: StudyConfig,
        device: torch.device,
        spec_of: Callable[[TaskOptions], TaskSpec],
        limit: int | None,
    ) -> None:
        assert config.precision != "auto", "resolved when the study was created"
        self._config = config
        self._precision: Precision = config.precision
        self._device = device
        self._spec_of = spec_of
        self._limit = limit
        # On a CPU each network costs training time.
        self.min_keep_probability = ALWAYS_CONTINUE if device.type == "cpu" else _MIN_ON_GPU
        grid = config.grid  # None for a derived study
        self._param_names = (
            list(grid.search_space) if grid else [CELL, *config.list_params(), REPLICATE]
        )
        self._max_by_shape: dict[Hashable, int] = {}  # after running out of memory
        self._has_noted_slowness = False
        self._cells_alone: set[str] = set()  # that cannot train in lockstep

    def size(self, params: Mapping[str, Any]) -> int:
        """Return how many trials like one of these parameters, including it, to train together."""
        trial_config = to_trial_config(params, self._config)
        self._note_slow_training(trial_config)
        try:
            if self._limit == 1 or not self._is_stackable(trial_config):
                return 1
            limit = self._limit or self._best_size(trial_config, params)
        except CellError:  # the trial fails when it is trained
            return 1
        return min(limit, self._max_by_shape.get(self._shape(params), limit))

    def common_params(self, params: Mapping[str, Any]) -> Sequence[str]:
        """Return the parameters that trials trained together with one of these share.

        On a fast path they are of one shape and read one text; in the autograd engine they are of
        one architecture and may read several. See :func:`rnn.engines.stack_key`.
        """
        differing = {*OPTIMIZER_PARAMS}
        trial_config = to_trial_config(params, self._config)
        spec = self._spec_of(trial_config.task_options)
        if can_stack(trial_config, spec):
            differing |= {*SWITCHES}
        elif spec.is_dense:
            differing |= {REPLICATE}
        return [name for name in self._param_names if name not in differing]

    def reduce(self, params: Mapping[str, Any], count: int) -> None:
        """Train fewer trials like one of these parameters together: memory is short for so many."""
        self._max_by_shape[self._shape(params)] = max(1, count // 2)

    def _best_size(self, trial_config: TrialConfig, params: Mapping[str, Any]) -> int:
        settings = training_settings(params, self._config)
        task = self._config.of_trial(params).task_record
        spec = self._spec_of(trial_config.task_options)
        assert task is not None
        steps = task.steps or settings.sequence_length - 1
        streams = settings.batch_size
        if spec.is_token_stream:
            streams = max(streams, self._config.evaluation.windows)
        return auto_lockstep(trial_config, streams, self._precision, self._device, spec, steps)

    def _is_stackable(self, trial_config: TrialConfig) -> bool:
        """Return whether a network can train in lockstep; log once if a user's cell cannot."""
        architecture = trial_config.architecture
        reason = lockstep_obstacle(architecture, self._precision, self._device)
        if reason is None:
            return True
        if architecture.cell not in self._cells_alone:
            self._cells_alone.add(architecture.cell)
            _logger.info(
                f"cell {architecture.cell} cannot be trained in lockstep ({reason}): its trials "
                "are trained one at a time"
            )
        return False

    def _note_slow_training(self, trial_config: TrialConfig) -> None:
        """Log once if gated networks train more slowly than they could on this machine."""
        network = trial_config.architecture
        if self._has_noted_slowness or self._device.type != "cpu":
            return
        spec = self._spec_of(trial_config.task_options)
        if not can_stack(trial_config, spec):
            return
        if (reason := library_obstacle(network.state_size, self._precision)) is not None:
            self._has_noted_slowness = True
            _logger.info(
                "small networks train without the library in C, at a fifth to half of the speed "
                f"({reason})"
            )

    def _shape(self, params: Mapping[str, Any]) -> Hashable:
        """Return what determines the memory of a network, up to the switches."""
        trial_config = to_trial_config(params, self._config)
        architecture = trial_config.architecture
        cell = architecture.cell if architecture.is_gated else architecture
        window = trial_config.bptt_steps, trial_config.update_every
        size = architecture.block, architecture.layers, architecture.state_size, *window
        task = trial_config.task_options if self._config.task_records else ()
        return cell, *size, *task, training_settings(params, self._config).batch_size


def auto_lockstep(
    trial_config: TrialConfig,
    streams: int,
    precision: Precision,
    device: torch.device,
    spec: TaskSpec = BYTES,
    sequence_steps: int = WHOLE_SEQUENCE,
) -> int:
    """Return how many networks of one shape are best trained together.

    Args:
        trial_config: one of the networks; 1 is returned if it cannot be stacked.
        streams: B.
        precision: precision of matrix products.
        device: device to train on; a GPU trains as many networks as fit into its memory.
        spec: what the networks read and predict.
        sequence_steps: steps of a training sequence.
    """
    if lockstep_obstacle(trial_config.architecture, precision, device) is not None:
        return 1
    architecture = trial_config.architecture
    is_cpu = device.type == "cpu"
    is_fast = can_stack(trial_config, spec)
    is_native = is_cpu and is_fast and pays_off(architecture.state_size, precision)
    is_large = streams * architecture.state_size > _MAX_CPU_LAYER_STATE
    if is_cpu and is_large and not is_native:
        return 1
    largest = architecture
    if is_fast:
        options = GatedOptions.of_largest(architecture.gated.gate_inputs)
        # The other networks may have every option.
        largest = options.network(architecture.layers, architecture.state_size)
    memory = available_memory(device) * _MEMORY_FRACTION
    has_windows = trial_config.update_every > 1
    if is_cpu and not has_windows:
        memory = min(memory, _MAX_CPU_BYTES if is_fast else _MAX_AUTOGRAD_BYTES)
    size = estimate_memory(
        trial_config._replace(architecture=largest), streams, precision, spec, sequence_steps
    )
    count = max(1, int(memory / size))
    if is_cpu and not is_fast and count < _MIN_AUTOGRAD_LOCKSTEP:
        return 1
    if not is_cpu:
        return count
    most = _WINDOW_LOCKSTEP if has_windows else _MAX_CPU_LOCKSTEP
    return min(count, _native_lockstep(is_large) if is_native else most)


def _native_lockstep(is_large: bool) -> int:
    threads = torch.get_num_threads()
    # The library divides a large network between two threads or more.
    best = (threads + 1) // 2 if is_large else max(_MAX_NATIVE_LOCKSTEP, threads)
    return min(best, _MAX_CPU_LOCKSTEP)


def to_train_config(
    config: StudyConfig, params: Mapping[str, Any] = MappingProxyType({})
) -> TrainConfig:
    """Return the settings of a training, some of which a trial's parameters may set."""
    training = training_settings(params, config)
    return TrainConfig(
        steps=training.steps,
        batch_size=training.batch_size,
        sequence_length=training.sequence_length,
        log_every=training.log_every,
        smoothing=training.smoothing,
        seed=config.seed,
        average_fraction=config.evaluation.average,
        eval_every=None if training.eval_every == "auto" else training.eval_every,
    )


def checkpoint_identity(params: Mapping[str, Any], config: StudyConfig) -> str:
    """Return everything that determines a trial's training, as JSON with sorted keys.

    A checkpoint is resumed only under the same identity.
    """
    trial_config = to_trial_config(params, config)
    architecture = trial_config.architecture
    record = config.of_trial(params).task_record
    assert record is not None
    # The identity of the record says which of several tasks it is.
    options = {name: value for name, value in trial_config.task_options if name != TASK}
    fields = {
        "architecture": architecture.init_key,
        "cell_sha256": architecture.sha256,
        "replicate": trial_config.replicate,
        "bptt_steps": trial_config.bptt_steps,
        "update_every": trial_config.update_every,
        "precision": config.precision,
        "training": asdict(to_train_config(config, params)),
        "optimizer": asdict(trial_config.optimizer),
        "task": record.identity() | options,
    }
    return json.dumps(fields, sort_keys=True)
