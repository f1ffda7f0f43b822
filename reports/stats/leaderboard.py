"""The best architectures of a study, with what is known of each."""

import math
from dataclasses import dataclass

import pandas as pd

from reports.data.results import Results
from reports.data.trial_table import decode_architecture
from rnn.config import BaselineConfig, GatedConfig
from studies.attributes import SOURCE_TRIALS
from studies.space import BPTT_STEPS

BEST = 10
"""Architectures in the answer's table, each with its forward function."""


@dataclass(frozen=True)
class LeaderboardEntry:
    """One of the best architectures.

    Attributes:
        number: of its trial; of several the one of the least value, which no test text has chosen.
        label: of the architecture, and of its gradient window where that is to be told.
        architecture: to be written out.
        window: the steps that a gradient goes back through.
        runs: that are complete; what follows is their mean.
        measured: by what the study's architectures are ranked, :attr:`Results.measure`.
        spread: standard deviation of that over the runs; NaN for one.
        value: the loss that the trials minimised, nats per token.
        held_out: bits per byte on the validation split.
        held_out_error: its standard error over the lanes of text; NaN for a mean of runs.
        parameters: weights and biases.
        seconds: of computing.
        sources: the numbers of the trials that it was derived from.
        sample: a text that it wrote; None if it wrote none.
        writer: the number of the trial that wrote it.
    """

    number: int
    label: str
    architecture: GatedConfig | BaselineConfig
    window: int
    runs: int
    measured: float
    spread: float
    value: float
    held_out: float
    held_out_error: float
    parameters: float
    seconds: float
    sources: list[int]
    sample: str | None
    writer: int | None


def rank_architectures(results: Results, top: int | None = BEST) -> list[LeaderboardEntry]:
    """Rank the architectures by their mean over replicates.

    Args:
        results: results of the study.
        top: number of architectures to return; None for all.
    """
    groups = results.complete.groupby("architecture")
    winners = [_winner(results, str(label), runs) for label, runs in groups]
    return sorted(winners, key=lambda winner: (winner.measured, winner.number))[:top]


def _winner(results: Results, label: str, runs: pd.DataFrame) -> LeaderboardEntry:
    runs = runs.sort_values("value", kind="stable")
    measured, best = runs[results.metric.column], runs.iloc[0]
    samples = runs["sample"].dropna()
    return LeaderboardEntry(
        number=int(runs.index[0]),
        label=label,
        architecture=decode_architecture(best, results.config),
        window=int(best[BPTT_STEPS]),
        runs=len(runs),
        measured=float(measured.mean()),
        spread=float(measured.std()),
        value=float(runs["value"].mean()),
        held_out=float(runs["validation_bits_per_byte"].mean()),
        held_out_error=float(best["validation_stderr"]) if len(runs) == 1 else math.nan,
        parameters=float(runs["parameter_count"].mean()),
        seconds=float(runs["seconds"].mean()),
        sources=best[SOURCE_TRIALS] or [],
        sample=samples.iloc[0] if len(samples) else None,
        writer=int(samples.index[0]) if len(samples) else None,
    )
