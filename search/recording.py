"""What is recorded of a trial beside its value: what it cost, where it ran, how it went."""

import platform
import socket
from collections.abc import Mapping
from typing import Any

import torch

from rnn import fingerprint
from rnn.member import Member
from studies.definition import Definition
from studies.records import TrialRecord


class Recording:
    """Describes the trials of a study that one worker trains.

    Args:
        definition: of the study.
        vocabulary_size: of what its networks read.
        device: on which they are trained.
        worker: this worker's name.
    """

    def __init__(
        self, definition: Definition, vocabulary_size: int, device: torch.device, worker: str
    ) -> None:
        self._definition = definition
        self._vocabulary_size = vocabulary_size
        self._device = device
        self._worker = worker

    def attributes(
        self, member: Member, population: int, steps_per_second: float, seconds: float, **found: Any
    ) -> Mapping[str, Any]:
        """Return a trial's user attributes, as things stand on this machine now.

        Args:
            member: the trial's network.
            population: with how many, itself among them, it was trained.
            steps_per_second: of its own.
            seconds: its share of the time of those that it was trained with.
            found: what else there is of :class:`studies.records.TrialRecord`.
        """
        return TrialRecord(
            parameter_count=member.architecture.parameter_count(self._vocabulary_size),
            steps_per_second=steps_per_second,
            seconds=seconds,
            host=socket.gethostname(),
            worker=self._worker,
            device=str(self._device),
            threads=torch.get_num_threads(),
            population=population,
            precision=self._definition.precision,
            seed=self._definition.seed,
            replicate=member.replicate,
            python=platform.python_version(),
            torch=torch.__version__,
            code=fingerprint.code_fingerprint(),
            **found,
        ).attributes()
