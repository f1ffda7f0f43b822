"""Recorded curves of a complete search, and the result of a simulated search over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.pruning.design_matrix import DesignMatrix
from search.pruning.regression import Floats
from search.pruning.rungs import Rung, compute_rungs
from studies.config import top_count

LOSS_PREFIX, VALUE = "loss_", "min_loss"


@dataclass(frozen=True)
class RecordedCurves:
    """Curves of N trials that were trained to the end.

    Attributes:
        params: parameters of each trial.
        steps: (L,) steps of the log points.
        curves: (N, L) losses.
        values: (N,) final values.
        nuisance: parameters over which each architecture is judged at its best trial.
    """

    params: list[dict[str, Any]]
    steps: NDArray[np.int64]
    curves: Floats
    values: Floats
    nuisance: Sequence[str] = ()

    @classmethod
    def read(cls, path: Path, nuisance: Sequence[str] = ()) -> "RecordedCurves":
        """Read a CSV file as written by ``python -m reports STUDY --curves FILE``.

        Raises:
            click.BadParameter: if the file is missing, malformed, has gaps, or lacks a nuisance
                parameter.
        """
        try:
            table = pd.read_csv(path)
            columns = [str(name) for name in table if str(name).startswith(LOSS_PREFIX)]
            steps = np.array([int(name.removeprefix(LOSS_PREFIX)) for name in columns])
            curves, values = table[columns].to_numpy(float), table[VALUE].to_numpy(float)
            is_complete = np.isfinite(curves).all() and np.isfinite(values).all()
            if len(steps) < 2 or not is_complete or (np.diff(steps) <= 0).any():
                raise ValueError("curves with gaps")
        except (OSError, ValueError, KeyError) as error:
            raise click.BadParameter(
                f"cannot read {path} ({error}): expected a CSV file written by python -m reports "
                "STUDY --curves FILE"
            ) from error
        names = [str(name) for name in table if name not in {*columns, VALUE, "seconds"}]
        params = [dict(zip(names, row, strict=True)) for row in table[names].to_numpy().tolist()]
        if unknown := [name for name in nuisance if name not in names]:
            raise click.BadParameter(
                f"{path} has no parameter {unknown[0]!r}: expected one of {', '.join(names)}"
            )
        return cls(params, steps, curves, values, nuisance)

    @property
    def end(self) -> int:
        """The step of the last log point."""
        return int(self.steps[-1])

    @cached_property
    def rungs(self) -> list[Rung]:
        """Rungs of our pruner."""
        return compute_rungs(self.end, int(self.steps[0]))

    @cached_property
    def design(self) -> DesignMatrix:
        """Parameters of the trials."""
        return DesignMatrix.from_params(self.params)

    @cached_property
    def best(self) -> list[int]:
        """Best trial of each architecture, the best architecture first."""
        found: dict[tuple[Any, ...], int] = {}
        for index in np.argsort(self.values, kind="stable").tolist():
            params = self.params[index]
            key = tuple(value for name, value in params.items() if name not in self.nuisance)
            found.setdefault(key if self.nuisance else (index,), index)
        return list(found.values())

    @cached_property
    def losses(self) -> Floats:
        """Loss of each trial at each rung, (N, R)."""
        within = [(self.steps > rung.after) & (self.steps <= rung.step) for rung in self.rungs]
        return np.column_stack([self.curves[:, columns].mean(axis=1) for columns in within])


@dataclass(frozen=True)
class ReplayResult:
    """Result of a simulated search.

    Attributes:
        cost: share of all steps that were trained.
        recall: share of the best fraction of the architectures whose best trial was trained to the
            end.
        recall_of_ten: that share of the best ten.
        has_winner: whether the best trial was trained to the end.
        complete: share of all trials that was trained to the end.
        starts: starts and resumptions per trial.
    """

    cost: float
    recall: float
    recall_of_ten: float
    has_winner: bool
    complete: float
    starts: float

    @classmethod
    def summarize(
        cls,
        recorded: RecordedCurves,
        keep: float,
        complete: NDArray[np.bool_],
        steps: int,
        starts: int,
    ) -> "ReplayResult":
        """Summarize a search from its complete trials, trained steps and starts."""
        count = len(recorded.values)
        best = recorded.best
        return cls(
            cost=steps / (count * recorded.end),
            recall=float(complete[best[: top_count(keep, len(best))]].mean()),
            recall_of_ten=float(complete[best[:10]].mean()),
            has_winner=bool(complete[best[0]]),
            complete=float(complete.mean()),
            starts=starts / count,
        )
