"""Resources of Ray's tasks: the values of ``--launch-set``."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from search.launch.launcher import parse_count

_UNITS = {"": 1, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_memory(text: str) -> int:
    """Return the bytes of an amount of memory such as ``4GiB``, ``500MB`` or ``1000000000``.

    Raises:
        ValueError: if it is none.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([a-z]*)", text, re.IGNORECASE)
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        raise ValueError("expected an amount of memory such as 4GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _parse_gpus(text: str) -> float:
    expected = "expected a whole number of GPUs, or a share of one such as 0.5"
    try:
        amount = float(text)
    except ValueError as error:
        raise ValueError(expected) from error
    if not (0 <= amount <= 1024) or (amount > 1 and amount % 1):
        raise ValueError(expected)
    return amount


def _parse_resources(text: str) -> dict[str, float]:
    expected = """expected JSON as for ray start --resources, such as '{"fast": 1}'"""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(expected) from error
    if not isinstance(parsed, dict) or not all(
        type(amount) in (int, float) and 0 < amount < math.inf for amount in parsed.values()
    ):
        raise ValueError(expected)
    return parsed


SETTINGS: dict[str, Any] = {
    "memory": parse_memory,
    "num_cpus": parse_count,
    "num_gpus": _parse_gpus,
    "resources": _parse_resources,
}
"""Options of Ray's tasks that ``--launch-set`` accepts."""


def fits(request: Mapping[str, Any], node: Mapping[str, float]) -> bool:
    """Return whether a node of these resources, by Ray's names, can run a task."""
    amounts = {
        "CPU": request["num_cpus"],
        "GPU": request.get("num_gpus", 0),
        "memory": request.get("memory", 0),
        **request.get("resources", {}),
    }
    return all(amount <= node.get(name, 0) for name, amount in amounts.items())
