"""Mutants: deliberate breaks of the code, listed in ``mutants.toml``, which tests must notice.

``python tests/mutants/mutants.py [NAME …]`` applies them to copies of the checkout, one at a time,
and runs their tests; a name is that of a mutant or a part of it. First the same tests have to pass
on the unchanged code.
"""

import ast
import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

PYTEST = ("-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not extended")

LIMIT = 300.0
"""Seconds after which the tests of a mutant count as hanging, which users would notice as well."""

KILLED, SURVIVED, ERROR = "killed", "SURVIVED", "ERROR"


@dataclass(frozen=True)
class Mutant:
    """A break of the code; ``mutants.toml`` describes the fields."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def find_mistake(self) -> str:
        """Return why the mutant cannot be applied or tested here; "" if it can."""
        path = ROOT / self.file
        if not path.is_file():
            return f"{self.file} does not exist"
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            return f"{self.file} has its text {count} times: expected once"
        if self.new == self.old:
            return "its new text is the old one"
        if path.suffix == ".py":
            try:
                ast.parse(text.replace(self.old, self.new))
            except SyntaxError as error:
                return f"{self.file} is no Python after the change: {error}"
        missing = [test for test in self.tests if not _exists(test)]
        if missing or not self.tests:
            return f"test {', '.join(missing) or 'of it'} does not exist"
        return ""

    def apply(self, checkout: Path) -> None:
        """Change the file of a copy of the checkout."""
        text = (ROOT / self.file).read_text()
        (checkout / self.file).write_text(text.replace(self.old, self.new))

    def undo(self, checkout: Path) -> None:
        """Restore the file of a copy."""
        (checkout / self.file).write_text((ROOT / self.file).read_text())


def load_mutants() -> list[Mutant]:
    """Return the mutants of ``mutants.toml``."""
    entries = tomllib.loads((FOLDER / "mutants.toml").read_text())["mutant"]
    return [Mutant(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def _exists(test: str) -> bool:
    """Return whether a test file exists and defines the test, if one is named."""
    path, _, name = test.partition("::")
    name = name.rpartition("::")[2].partition("[")[0]
    return (ROOT / path).is_file() and f"def {name}" in (ROOT / path).read_text()


class Checkouts:
    """Copies of the checkout in which tests run, each for one run at a time.

    Args:
        folder: folder for the copies.
        count: number of copies.
    """

    def __init__(self, folder: Path, count: int) -> None:
        from helpers import copy_checkout

        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_ended = False
        self._free: queue.Queue[Path] = queue.Queue()
        for number in range(count):
            copy_checkout(folder / str(number) / "checkout")
            self._free.put(folder / str(number))

    def run(self, tests: Sequence[str], *options: str, mutant: Mutant | None = None) -> "Outcome":
        """Run tests in a copy, with a mutant if one is given."""
        folder = self._free.get()
        checkout, started = folder / "checkout", time.monotonic()
        try:
            if mutant is not None:
                mutant.apply(checkout)
            limit = None if mutant is None else LIMIT
            code, output = self._run_pytest(folder, [*options, *tests], limit)
            return Outcome(code, output, time.monotonic() - started)
        finally:
            if mutant is not None:
                mutant.undo(checkout)
            self._free.put(folder)

    def end(self) -> None:
        """Interrupt all runs, which then stop their servers, and begin no other."""
        self._is_ended = True
        for process in list(self._processes):
            process.send_signal(signal.SIGINT)

    def _run_pytest(
        self, folder: Path, arguments: Sequence[str], limit: float | None
    ) -> tuple[int | None, str]:
        """Return exit code and output; no code if the run has to be ended."""
        if self._is_ended:
            return None, ""
        checkout, temporary = folder / "checkout", folder / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(checkout), "TMPDIR": str(temporary)}
        with (folder / "output").open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, *PYTEST, *arguments],
                cwd=checkout,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._processes.add(process)
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(limit)
            with contextlib.suppress(ProcessLookupError):  # what it has started and left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._processes.discard(process)
            output.seek(0)
            return code, output.read().decode(errors="replace")


@dataclass(frozen=True)
class Outcome:
    """What a run of tests has shown.

    Attributes:
        code: exit code of pytest; None if the run was ended.
        output: output of pytest.
        seconds: duration.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def failed(self) -> list[str]:
        """Tests that failed; those that could not be set up are left out."""
        return re.findall(r"^FAILED (\S+::.*?)(?: - |$)", self.output, re.MULTILINE)

    def judge(self) -> tuple[str, str]:
        """Return what became of a mutant, and the failed test or the reason."""
        if self.code == 1 and self.failed:
            return KILLED, self.failed[0]
        if self.code == 0:
            return SURVIVED, ""
        if self.code is None:
            return KILLED, f"the tests did not end in {LIMIT:.0f} s"
        last = (self.output.strip().splitlines() or [""])[-1]
        return ERROR, f"exit code {self.code}: no test failed; {last}"


def main() -> int:
    """Run the mutants whose names are given, by default all; return the exit code."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = sys.argv[1:]
    mutants = [each for each in load_mutants() if any(p in each.name for p in parts or [""])]
    if not mutants:
        sys.exit(f"no mutant is named {' or '.join(parts)}: see {FOLDER / 'mutants.toml'}")
    results: list[str] = []
    for mutant in mutants:
        if mistake := mutant.find_mistake():
            results.append(ERROR)
            _print(ERROR, 0, mutant.name, mistake)
    mutants = [mutant for mutant in mutants if not mutant.find_mistake()]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        Path(folder).chmod(0o755)  # a database server runs as another user
        count = len(os.sched_getaffinity(0))
        checkouts = Checkouts(Path(folder), count)
        with ThreadPoolExecutor(count) as threads:
            try:
                results += _run_all(mutants, checkouts, count, threads)
            except KeyboardInterrupt:
                threads.shutdown(wait=False, cancel_futures=True)
                checkouts.end()
                sys.exit(130)
    counts = Counter(results)
    print(", ".join(f"{counts[result]} {result}" for result in (KILLED, SURVIVED, ERROR)))
    return int(counts[KILLED] < len(results))


def _run_all(
    mutants: Sequence[Mutant], checkouts: Checkouts, count: int, threads: ThreadPoolExecutor
) -> list[str]:
    """Run the tests of all mutants on the unchanged code, then each mutant; return the results."""
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    if not tests:
        return []
    options = (f"-n{count}", "--dist=loadfile")
    unchanged = threads.submit(checkouts.run, list(tests), *options).result()
    if unchanged.code != 0:
        sys.exit(f"{unchanged.output}\nthe tests of the mutants fail without a mutant")
    _print("passed", unchanged.seconds, "all of these tests without a mutant")
    started = {
        threads.submit(checkouts.run, each.tests, "-x", mutant=each): each for each in mutants
    }
    results = []
    for future in as_completed(started):
        outcome = future.result()
        result, detail = outcome.judge()
        results.append(result)
        _print(result, outcome.seconds, started[future].name, detail)
    return results


def _print(result: str, seconds: float, name: str, detail: str = "") -> None:
    print(f"{result:8} {seconds:4.0f} s  {name}{detail and f'  ({detail})'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
