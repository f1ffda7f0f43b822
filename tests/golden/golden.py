"""Golden results: what the project computes from fixed inputs, as JSON files in ``results/``.

``python tests/golden/golden.py [NAME …]`` computes them anew, prints each value that changed and
writes the files. A changed file needs a reason in its commit.
"""

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

MODULES = (
    "golden_statistics",
    "golden_pruning",
    "golden_training",
    "golden_storage",
)
"""Modules of this folder with a list ``GOLDEN``."""

SIGNIFICANT_DIGITS = 12
"""Digits of a stored number: enough for every tolerance."""


@dataclass(frozen=True)
class Golden:
    """A golden result."""

    name: str
    compute: Callable[[], Any]
    relative: float = 1e-9  # largest difference of two floats, as a share of the larger one
    absolute: float = 1e-12
    is_extended: bool = False  # whether a test that takes as long has another input

    @property
    def path(self) -> Path:
        return FOLDER / "results" / f"{self.name}.json"

    def read(self) -> Any:
        """Return the stored result, or None if there is none yet."""
        return json.loads(self.path.read_text()) if self.path.is_file() else None

    def write(self, result: Any) -> None:
        self.path.write_text(json.dumps(_round(result), indent=1, ensure_ascii=False) + "\n")

    def differences(self, expected: Any, actual: Any, path: str = "") -> Iterator[str]:
        """Yield a line for each value of ``actual`` that differs from the one in ``expected``."""
        if isinstance(expected, dict) and isinstance(actual, dict):
            for key in dict.fromkeys([*expected, *actual]):
                one, other = expected.get(key, "absent"), actual.get(key, "absent")
                yield from self.differences(one, other, f"{path}.{key}" if path else key)
        elif isinstance(expected, list) and isinstance(actual, list):
            if len(expected) != len(actual):
                yield f"{path}: {len(expected)} items, now {len(actual)}"
            for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
                yield from self.differences(one, other, f"{path}[{index}]")
        elif not self._is_equal(expected, actual):
            yield f"{path}: {expected!r}, now {actual!r}"

    def _is_equal(self, expected: Any, actual: Any) -> bool:
        if isinstance(expected, float) and isinstance(actual, float):
            if math.isnan(expected) or math.isnan(actual):
                return math.isnan(expected) and math.isnan(actual)
            return math.isclose(expected, actual, rel_tol=self.relative, abs_tol=self.absolute)
        return type(expected) is type(actual) and bool(expected == actual)


def load_golden() -> list[Golden]:
    """Return all golden results of :data:`MODULES`."""
    modules = map(importlib.import_module, MODULES)
    return [golden for module in modules for golden in module.GOLDEN]


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_round(each) for each in value]
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def main() -> None:
    """Write the results whose names are given, by default all."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    known = {golden.name: golden for golden in load_golden()}
    names = sys.argv[1:] or list(known)
    for name in names:
        if name not in known:
            sys.exit(f"golden result {name!r} not found: expected one of {', '.join(known)}")
    for name in names:
        golden = known[name]
        expected, actual = golden.read(), golden.compute()
        changes = ["new"] if expected is None else list(golden.differences(expected, actual))
        print(f"{name}: {len(changes)} changed" if changes else f"{name}: unchanged")
        for line in changes:
            print(f"  {line}")
        if changes:
            golden.write(actual)


if __name__ == "__main__":
    main()
