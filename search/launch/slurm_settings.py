"""Options of SLURM's jobs: the values of ``--launch-set``."""

import re
from typing import Any

from search.launch.launcher import parse_count

DEFAULT_MINUTES = 60
"""Time limit of a job; one that reaches it is requeued, so it is not a limit of the search."""

MIN_MINUTES = 3
"""Shortest time limit: the start and the last checkpoint take some of it."""

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parse_minutes(text: str) -> int:
    """Return the minutes of a time limit of SLURM: ``90``, ``04:00:00``, ``1-12`` or ``1-12:30``.

    Raises:
        ValueError: if it is none, or too short.
    """
    expected = "expected a time limit such as 04:00:00 or 1-12:00:00"
    if not (match := _TIME.fullmatch(text)) or len(text) > 20:
        raise ValueError(expected)
    days, *parts = match.groups()
    first, second = (int(part or 0) for part in parts[:2])
    if days is not None:  # days-hours[:minutes[:seconds]]
        minutes = (int(days) * 24 + first) * 60 + second
    elif parts[2] is None:  # minutes[:seconds]
        minutes = first
    else:
        minutes = first * 60 + second
    if minutes < MIN_MINUTES:
        raise ValueError(f"{expected}, of at least {MIN_MINUTES} minutes")
    return minutes


def _parse_text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters")
    return text


SETTINGS: dict[str, Any] = {
    "cpus-per-task": parse_count,
    "time": parse_minutes,
    **dict.fromkeys(
        ("account", "comment", "constraint", "exclude", "gpus", "gres", "mail-type", "mail-user",
         "mem", "mem-per-cpu", "nice", "nodelist", "partition", "qos", "reservation", "tmp"),
        _parse_text,
    ),
}  # fmt: skip
"""Options of ``sbatch`` that ``--launch-set`` accepts."""
