"""The best trials → files to be looked at beside a study: their curves, their code and texts."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import pandas as pd

from reports.charts.colors import PALETTE
from reports.dashboard.note import BEST
from reports.data.results import Results
from reports.data.trial_table import decode_architecture
from reports.formatting import curve_axis, nats_word, templates
from rnn.codegen import generate_module
from studies.space import BPTT_STEPS
from studies.text import to_printable

_NAMES = UUID("6f1b2d0c-6c0e-4d0b-9a55-5d2c3b9f7a41")
"""The name space of the files' identifiers."""

_INK = "#787878"  # can be read on white and on black
_DASHES = ("none", "10 4", "3 3", "14 4 3 4", "6 6")
_WIDTH, _LEFT, _TOP, _RIGHT, _BOTTOM, _ROW = 860, 78, 14, 840, 400, 24
_MOST_POINTS = 600
"""Of a line; a picture has no more columns."""

_BEGINNING = 0.1
"""The part of a curve whose fall would leave no height for the rest; it may be cut off."""

TEXTS = "best-texts.txt"
"""The file of what the best trials' networks write, as a person sees it."""

Curves = dict[int, list[tuple[int, float]]]
"""By trial number: (step, loss), by step."""

Best = list[tuple[int, "pd.Series[Any]"]]
"""The best trials' numbers and rows of the table, the best first."""


@dataclass(frozen=True)
class StudyFile:
    """A file that belongs to a study.

    Attributes:
        role: what it is to the study; a new one takes the place of that of the same role.
        name: as a person sees it.
        kind: its media type.
        content: of the file.
    """

    role: str
    name: str
    kind: str
    content: bytes


def roles(complete: int, with_texts: bool) -> list[str]:
    """Name the files of a study.

    Args:
        complete: how many of its points are.
        with_texts: whether any of its best trials has written a text.
    """
    if not complete:
        return []
    code = [f"best-{i}" for i in range(1, min(BEST, complete) + 1)]
    return ["curves.csv", "curves.svg", *code, *(["texts"] if with_texts else [])]


def identifier(study: str, role: str) -> str:
    """Return the name that the file of a role is kept under: always the same.

    Args:
        study: what no other study is called.
        role: of :func:`roles`.
    """
    return str(uuid5(_NAMES, f"{study}/{role}"))


def numbers_of_best(results: Results) -> list[int]:
    """Return the numbers of the trials that the files are about, the best first."""
    return [int(number) for number in results.complete.index[:BEST]]


def files_of(results: Results, curves: Curves) -> list[StudyFile]:
    """Write the files of a study.

    Args:
        results: of the study.
        curves: of its best trials.
    """
    rows = [row for _, row in results.complete.head(BEST).iterrows()]
    best = list(zip(numbers_of_best(results), rows, strict=True))
    files = [
        StudyFile("curves.csv", "best-curves.csv", "text/csv", _table(best, curves).encode()),
        StudyFile(
            "curves.svg",
            "best-curves.svg",
            "image/svg+xml",
            _picture(results, best, curves).encode(),
        ),
    ]
    for rank, (number, row) in enumerate(best, 1):
        architecture = decode_architecture(row, results.config)
        code = generate_module(architecture, results.tokenizer.size, int(row[BPTT_STEPS]))
        name = f"best-{rank}-trial-{number}.py"
        files.append(StudyFile(f"best-{rank}", name, "text/x-python", code.encode()))
    texts = _texts(results, best)
    if texts:
        files.append(StudyFile("texts", TEXTS, "text/plain; charset=utf-8", texts.encode()))
    return files


def _texts(results: Results, best: Best) -> str:
    """Write down what the best trials' networks write; nothing if none has written anything."""
    unit = nats_word(results.config)
    parts = []
    for rank, (number, row) in enumerate(best, 1):
        if isinstance(row["sample"], str):
            heading = f"{rank}: trial {number}, {row['label']}, {row['value']:.4f} {unit}"
            parts.append(f"{heading}\n{'=' * len(heading)}\n\n{to_printable(row['sample'])}\n")
    return "\n\n".join(parts)


def _table(best: Best, curves: Curves) -> str:
    """Return the curves as CSV: a row a step, a column a trial, the best first."""
    columns = {number: dict(curves.get(number, [])) for number, _ in best}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *(f"trial {number}" for number in columns)])
    for step in sorted({step for column in columns.values() for step in column}):
        losses = (column.get(step, math.nan) for column in columns.values())
        writer.writerow([step, *("" if math.isnan(loss) else f"{loss:.6f}" for loss in losses)])
    return text.getvalue()


def _picture(results: Results, best: Best, curves: Curves) -> str:
    """Draw the curves, from the height at which they have begun to differ."""
    finite = {
        number: [(step, loss) for step, loss in curve if math.isfinite(loss)]
        for number, curve in curves.items()
    }
    drawn = [point for number, _ in best for point in finite.get(number, [])] or [(1, 1.0)]
    last = max(step for step, _ in drawn)
    low = min(loss for _, loss in drawn)
    high = max(loss for step, loss in drawn if step >= _BEGINNING * last)
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def across(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * step / last, 1)

    def down(loss: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (loss - low) / (high - low), 1)

    # A curve does not show what a trial came to if that is a loss on other text.
    measured = "" if results.config.objective == "training" else " on held-out text"
    lines = []
    for i, (number, row) in enumerate(best):
        points = finite.get(number, [])
        points = points[:: math.ceil(len(points) / _MOST_POINTS) or 1]
        lines.append(
            {
                "colour": PALETTE[i],
                "dashes": _DASHES[i],
                "points": " ".join(f"{across(step)},{down(loss)}" for step, loss in points),
                "place": _BOTTOM + 80 + i * _ROW,
                "words": f"{i + 1}: trial {number}, {row['label']}, {row['value']:.4f}{measured}",
            }
        )
    return (
        templates()
        .get_template("curves.svg")
        .render(
            name=results.name,
            width=_WIDTH,
            height=_BOTTOM + 80 + len(best) * _ROW,
            left=_LEFT,
            top=_TOP,
            right=_RIGHT,
            bottom=_BOTTOM,
            ink=_INK,
            axis=curve_axis(results.config),
            steps=[(across(tick), f"{tick:,.0f}") for tick, _ in _ticks(0, last, least=1)],
            losses=[(down(tick), f"{tick:.{digits}f}") for tick, digits in _ticks(low, high)],
            lines=lines,
        )
    )


def _ticks(low: float, high: float, least: float = 0) -> Iterable[tuple[float, int]]:
    """Yield some five round numbers between two, each with the digits that it needs."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    distance = max(least, next(power * i for i in (1, 2, 5, 10) if power * i >= (high - low) / 6))
    digits = max(0, -math.floor(math.log10(distance)))
    for i in range(math.ceil(low / distance), math.floor(high / distance) + 1):
        yield i * distance, digits
