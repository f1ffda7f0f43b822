"""Recorded curves of a search that was run to its end, and what another search of them comes to."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.pruning.policy import Rung, rungs_of
from search.pruning.predictions import DesignMatrix, Floats
from studies.config import top_count

CURVE, VALUE = "loss_", "min_loss"


@dataclass(frozen=True)
class Recorded:
    """Points that were trained to the end.

    Attributes:
        points: a value for each parameter.
        steps: (L,) of the log points.
        curves: (N, L) losses.
        values: (N,) final.
    """

    points: list[dict[str, Any]]
    steps: NDArray[np.int64]
    curves: Floats
    values: Floats

    @classmethod
    def read(cls, path: Path) -> "Recorded":
        """Read a file.

        Raises:
            click.BadParameter: if it is no such file.
        """
        try:
            table = pd.read_csv(path)
            columns = [str(name) for name in table if str(name).startswith(CURVE)]
            steps = np.array([int(name.removeprefix(CURVE)) for name in columns])
            curves, values = table[columns].to_numpy(float), table[VALUE].to_numpy(float)
            whole = np.isfinite(curves).all() and np.isfinite(values).all()
            if len(steps) < 2 or not whole or (np.diff(steps) <= 0).any():
                raise ValueError("curves with gaps")
        except (OSError, ValueError, KeyError) as error:
            raise click.BadParameter(
                f"{path} cannot be read ({error}); allowed: a CSV with the parameters, {VALUE} and "
                f"{CURVE}50, {CURVE}100 … of complete points; write it with python -m reports "
                "STUDY --curves FILE"
            ) from error
        names = [str(name) for name in table if name not in {*columns, VALUE, "seconds"}]
        points = [dict(zip(names, row, strict=True)) for row in table[names].to_numpy().tolist()]
        return cls(points, steps, curves, values)

    @property
    def end(self) -> int:
        """The step of the last log point."""
        return int(self.steps[-1])

    @cached_property
    def rungs(self) -> list[Rung]:
        """Where our pruner looks."""
        return rungs_of(self.end, int(self.steps[0]))

    @cached_property
    def factors(self) -> DesignMatrix:
        """The points by their parameters."""
        return DesignMatrix.of(self.points)

    @cached_property
    def losses(self) -> Floats:
        """The loss of each point at each rung, (N, R)."""
        within = [(self.steps > rung.after) & (self.steps <= rung.step) for rung in self.rungs]
        return np.column_stack([self.curves[:, columns].mean(axis=1) for columns in within])


@dataclass(frozen=True)
class TrialResult:
    """What a search would have been.

    Attributes:
        cost: the share of all steps that was trained.
        recall: the share of the best fraction that was trained to the end.
        recall_of_ten: of the best ten.
        has_winner: whether the best point was.
        complete: the share of the points that was.
        begun: how often a point was begun or gone on with, a point.
    """

    cost: float
    recall: float
    recall_of_ten: float
    has_winner: bool
    complete: float
    begun: float

    @classmethod
    def of(
        cls, recorded: Recorded, keep: float, complete: NDArray[np.bool_], steps: int, begun: int
    ) -> "TrialResult":
        """Sum a search up."""
        count = len(recorded.values)
        best = np.argsort(recorded.values, kind="stable")
        return cls(
            cost=steps / (count * recorded.end),
            recall=float(complete[best[: top_count(keep, count)]].mean()),
            recall_of_ten=float(complete[best[:10]].mean()),
            has_winner=bool(complete[best[0]]),
            complete=float(complete.mean()),
            begun=begun / count,
        )
