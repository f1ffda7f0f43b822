"""What known cells come to, as lines in the figures of the other studies on a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from reports.charts.colors import PALETTE
from reports.data.results import Results
from reports.formatting import escape_html
from studies.config import StudyConfig
from studies.space import BPTT_STEPS

_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class BaselineReference:
    """What the best architecture of a known cell comes to, with gradients through so many steps.

    Attributes:
        label: of the architecture.
        study: that trained it.
        training_loss: the least smoothed training loss, nats per token; NaN if it is not known.
        measured: by the measure of the study that it is drawn beside; NaN if it is not known.
        budget: in what its training differs, in words.
    """

    label: str
    study: str
    training_loss: float
    measured: float
    budget: str


def find_references(results: Results, others: Sequence[Results]) -> list[BaselineReference]:
    """Return what a study's figures are to show of the known cells in others.

    Args:
        results: of the study; one of known cells needs none.
        others: on the same page. Those of another text or vocabulary are left out.
    """
    if not results.is_gated:
        return []
    alike = [
        other
        for other in others
        if not other.is_gated
        and other.corpus.sha256 == results.corpus.sha256
        and other.config.tokenizer == results.config.tokenizer
    ]
    return [each for other in alike for each in _of_study(results, other, len(alike) > 1)]


def add_reference_lines(
    figure: go.Figure, references: Sequence[BaselineReference], losses: Sequence[float], axis: str
) -> None:
    """Draw a dashed line for each reference of which there is something, named in the legend.

    Args:
        figure: to draw in.
        references: to be named.
        losses: where the lines lie.
        axis: that the losses are on: ``y``, or ``x``.
    """
    for i, (each, loss) in enumerate(zip(references, losses, strict=True)):
        if not math.isfinite(loss):
            continue
        line = {"color": PALETTE[1 + i % (len(PALETTE) - 1)], "dash": _DASHES[i % len(_DASHES)]}
        look = {"line": line | {"width": 2}, "name": escape_html(each.label), "showlegend": True}
        if axis == "y":
            figure.add_hline(y=loss, **look)
        else:
            figure.add_vline(x=loss, **look)


def describe_references(
    references: Sequence[BaselineReference], kind: Literal["training_loss", "measured"]
) -> str:
    """Name the lines and where they lie; nothing if there are none."""
    named = [
        f"{each.label}: {getattr(each, kind):.4f}"
        for each in references
        if math.isfinite(getattr(each, kind))
    ]
    return f" Dashed, the best of each known cell: {'; '.join(named)}." if named else ""


def describe_training_differences(references: Sequence[BaselineReference]) -> str:
    """Say which of the references were trained otherwise; nothing if none were."""
    budgets = dict.fromkeys((each.study, each.budget) for each in references if each.budget)
    return " ".join(f"The cells of {study} were trained otherwise: {b}." for study, b in budgets)


def _of_study(results: Results, other: Results, names_study: bool) -> list[BaselineReference]:
    measure = results.metric
    rows = other.complete.assign(training_loss=_training_losses(other))
    wanted = ["value", "training_loss", measure.column]
    keys = ["cell", BPTT_STEPS, "architecture"]
    means = rows.groupby(keys)[list(dict.fromkeys(wanted))].mean().reset_index()
    best = means.loc[means.groupby(keys[:2])["value"].idxmin()]
    own, theirs = results.config, other.config
    # A value by another objective is another number, and so is a loss on other lanes.
    is_of_training = measure.is_value and own.objective == "training"
    is_comparable = (not measure.is_value or own.objective == theirs.objective) and (
        is_of_training or own.evaluation == theirs.evaluation
    )
    budget = _budget(own, theirs)
    return [
        BaselineReference(
            f"{row['architecture']} ({other.name})" if names_study else row["architecture"],
            other.name,
            row["training_loss"],
            row[measure.column] if is_comparable else math.nan,
            budget,
        )
        for row in best.to_dict("records")
    ]


def _training_losses(results: Results) -> "pd.Series[float]":
    """Return the least smoothed training loss of each complete point, as far as it is known."""
    rows = results.complete
    known = rows["training_loss"]
    if results.config.objective == "training":
        return known.fillna(rows["value"])
    return known.fillna(results.curves.groupby("number")["loss"].min())


def _budget(own: StudyConfig, other: StudyConfig) -> str:
    """Return in what another study's training differs, in words; nothing if in nothing."""
    ours, theirs = own.training.model_dump(), other.training.model_dump()
    return ", ".join(
        f"{name} {theirs[name]:,} against {value:,} here"
        for name, value in ours.items()
        if name != BPTT_STEPS and theirs[name] != value
    )
