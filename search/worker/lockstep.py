"""Which trials of a study a worker trains in lockstep."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from rnn.autograd import lockstep_obstacle
from rnn.config import BYTES, CellConfig, GatedConfig, Precision, TaskSpec, TrialConfig
from rnn.engines import has_fast_path
from rnn.errors import CellError
from rnn.native.network import library_obstacle
from search.duration import sequence_steps, to_train_config
from search.worker.lockstep_size import auto_lockstep, differing_params
from studies.config import StudyConfig, to_trial_config
from studies.space import CELL, REPLICATE

_logger = logging.getLogger(__name__)


class LockstepPlan:
    """Decides how many trials, and which, are trained together with a claimed one.

    Args:
        config: config of the study.
        precision: precision of matrix products.
        device: device to train on.
        spec: what the networks read and predict.
        limit: maximum number of networks to train together; None to choose by device.
    """

    def __init__(
        self,
        config: StudyConfig,
        precision: Precision,
        device: torch.device,
        spec: TaskSpec = BYTES,
        limit: int | None = None,
    ) -> None:
        self._config = config
        self._precision = precision
        self._device = device
        self._spec = spec
        self._limit = limit
        self._param_names = _list_params(config)
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
            batch_size = to_train_config(self._config, params).batch_size
            streams = batch_size
            if self._spec.is_text:
                streams = max(batch_size, self._config.evaluation.windows)
            limit = self._limit or auto_lockstep(
                trial_config,
                streams,
                self._precision,
                self._device,
                self._spec,
                sequence_steps(self._config, params),
            )
        except CellError:  # the trial fails when it is trained
            return 1
        return min(limit, self._max_by_shape.get(self._shape(params), limit))

    def common_params(self, params: Mapping[str, Any]) -> Sequence[str]:
        """Return the parameters that trials trained together with one of these share."""
        differing = differing_params(to_trial_config(params, self._config), self._spec)
        return [name for name in self._param_names if name not in differing]

    def reduce(self, params: Mapping[str, Any], count: int) -> None:
        """Train fewer trials like one of these parameters together: memory is short for so many."""
        self._max_by_shape[self._shape(params)] = max(1, count // 2)

    def _is_stackable(self, trial_config: TrialConfig) -> bool:
        """Return whether a network can train in lockstep; log once if a user's cell cannot."""
        architecture = trial_config.architecture
        reason = lockstep_obstacle(architecture, self._precision, self._device)
        if reason is None:
            return True
        assert isinstance(architecture, CellConfig)
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
        if not isinstance(network, GatedConfig) or not has_fast_path(trial_config, self._spec):
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
        cell = type(architecture) if isinstance(architecture, GatedConfig) else architecture
        window = trial_config.bptt_steps, trial_config.update_every
        size = architecture.layers, architecture.state_size, *window
        return cell, *size, to_train_config(self._config, params).batch_size


def _list_params(config: StudyConfig) -> list[str]:
    """Return the names of all parameters that a trial of a study can have."""
    if (grid := config.grid) is not None:
        return list(grid.search_space)
    return [CELL, *config.list_params(), REPLICATE]
