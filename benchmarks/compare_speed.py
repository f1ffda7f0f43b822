"""``python -m benchmarks.compare_speed BEFORE AFTER``: compare the training steps of two checkouts.

A process of each checkout trains the same networks, in turns of a quarter of a second, so that what
else the machine does slows both. Both run in this interpreter's environment. Run nothing else
meanwhile, and read no case that was started once: two starts of one program differ by up to 30%.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import click

STARTS = 2
TURNS = 8

_SMALL = "[G(*s, True, r, 2, 32) for s in product((False, True), repeat=4) for r in STATE_SOURCES]"
_BEST = "False, True, False, True, True, 'new'"
_ALL = "True, True, True, True, True, 'both'"

TRAINING_STEP = {
    "2×256, forget, state, residual": f"[G({_BEST}, 2, 256)]",
    "3×256, all options": f"[G({_ALL}, 3, 256)]",
    "48 of 2×32": _SMALL,
}
AUTOGRAD = {
    "GRU 2×128": "[NetworkConfig('gru', 2, 128)]",
    "LSTM 2×128": "[NetworkConfig('lstm', 2, 128)]",
    "gated 2×128, forget, state, residual": f"[G({_BEST}, 2, 128)]",
    "gated 2×128, all options": f"[G({_ALL}, 2, 128)]",
}
"""Networks as Python, by name."""

_PROGRAM = """
import sys, time
from itertools import product
import torch
from rnn.config import STATE_SOURCES, TrialConfig
from rnn.config import GatedOptions, NetworkConfig
from rnn.engines import build_network
from rnn.network import Window
from rnn.training.step import TrainStep
def G(*values):
    return GatedOptions(*values[:6]).network(*values[6:])
networks, precision, bptt_steps, batch, threads = eval(sys.argv[1])
torch.set_num_threads(threads)
configs = [TrialConfig(network, bptt_steps=bptt_steps) for network in networks]
step = TrainStep(build_network(configs, 0, precision), batch, 0.9, 3.0)
step.begin_sequence()
text = torch.randint(256, (400 + bptt_steps, batch), generator=torch.Generator().manual_seed(0))
t = 0
for line in sys.stdin:
    begin = time.perf_counter()
    for _ in range(int(line)):
        first = t % 400
        last = first + bptt_steps
        step.step(Window(text[first:last], text[last : last + 1]))
        t += 1
    print((time.perf_counter() - begin) / int(line), flush=True)
"""


def _cases() -> Iterator[tuple[str, str, str, int, int, int]]:
    """Yield name, networks, precision, BPTT steps, batch size and threads of each comparison."""
    for threads, precision, (name, networks) in product(
        (1, 2), ("fp32", "bf16"), TRAINING_STEP.items()
    ):
        yield name, networks, precision, 1, 256, threads
    for (name, networks), precision, steps in product(
        AUTOGRAD.items(), ("fp32", "bf16"), (1, 4, 16)
    ):
        if steps > 1 or not name.startswith("gated"):
            yield name, networks, precision, steps, 64, 1


class _Training:
    """A process that trains in a checkout."""

    def __init__(self, checkout: Path, case: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, case],
            cwd=checkout,  # which is searched for modules first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, steps: int) -> float:
        """Train some steps; return the mean time of one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


@click.command()
@click.argument("before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--starts", default=STARTS, show_default=True, help="Processes of each checkout.")
@click.option("--only", default="", help="Only cases with this text in their line.")
def main(before: Path, after: Path, starts: int, only: str) -> None:
    """Print how much faster the steps of AFTER are than those of BEFORE."""
    for name, networks, precision, bptt_steps, batch, threads in _cases():
        case = f"{name}, {precision}, bptt_steps {bptt_steps}, batch {batch}, threads {threads}"
        if only not in case:
            continue
        ratios = []
        for start in range(starts):
            arguments = f"({networks}, {precision!r}, {bptt_steps}, {batch}, {threads})"
            checkouts = (before, after) if start % 2 else (after, before)
            running = {folder: _Training(folder.resolve(), arguments) for folder in checkouts}
            slowest = max(training.seconds(bptt_steps + 5) for training in running.values())
            steps = max(3, int(0.25 / slowest))
            for turn in range(TURNS):
                order = checkouts if turn % 2 else checkouts[::-1]
                taken = {folder: running[folder].seconds(steps) for folder in order}
                ratios.append(taken[before] / taken[after])
            for training in running.values():
                training.end()
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        click.echo(f"{case}: {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
