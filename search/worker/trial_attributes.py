"""What is recorded of a trial beside its value: what it cost, where it ran, how it went."""

import platform
import socket
from collections.abc import Mapping
from typing import Any

import torch

from rnn.config import TrialConfig
from rnn.training import checkpoint as train_checkpoint
from studies.attributes import TrialRecord
from studies.config import StudyConfig


class Recording:
    """Describes the trials of a study that one worker trains.

    Args:
        config: of the study.
        vocab_size: of what its networks read.
        device: on which they are trained.
        worker: this worker's name.
    """

    def __init__(
        self, config: StudyConfig, vocab_size: int, device: torch.device, worker: str
    ) -> None:
        self._definition = config
        self._vocabulary_size = vocab_size
        self._device = device
        self._worker = worker

    def attributes(
        self,
        trial_config: TrialConfig,
        lockstep: int,
        steps_per_second: float,
        seconds: float,
        **found: Any,
    ) -> Mapping[str, Any]:
        """Return a trial's user attributes, as things stand on this machine now.

        Args:
            trial_config: the trial's network.
            lockstep: with how many, itself among them, it was trained.
            steps_per_second: of its own.
            seconds: its share of the time of those that it was trained with.
            found: what else there is of :class:`studies.attributes.TrialRecord`.
        """
        return TrialRecord(
            parameter_count=trial_config.architecture.parameter_count(self._vocabulary_size),
            steps_per_second=steps_per_second,
            seconds=seconds,
            host=socket.gethostname(),
            worker=self._worker,
            device=str(self._device),
            threads=torch.get_num_threads(),
            lockstep=lockstep,
            precision=self._definition.precision,
            seed=self._definition.seed,
            replicate=trial_config.replicate,
            python=platform.python_version(),
            torch=torch.__version__,
            code=train_checkpoint.source_hash(),
            **found,
        ).attributes()
