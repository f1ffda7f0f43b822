"""``python -m benchmarks NAME …``: print the measurements of docs/benchmarks.md.

A benchmark is imported when it runs: ``gpu`` needs PyTorch and numpy alone.
"""

import argparse
import datetime
import functools
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import import_module

import torch

BENCHMARKS = {
    "training-step": ("training_step", "a training step, next to a plain loop and the products"),
    "precision": ("precision", "bfloat16 next to float32, by engine, cell and size"),
    "plain-loop": ("plain_loop", "labelled sequences, next to nn.GRU and Adam"),
    "curve-cost": ("curve_cost", "the held-out curves, next to trainings without"),
    "loop-cost": ("loop_cost", "log and save of a loop of your own, as a share of its time"),
    "replicates": ("replicates", "replicates, next to as many networks of one replicate"),
    "gpu": ("gpu", "training on a GPU; --device cpu rehearses it"),
    "scale": ("scale", "work on studies of 432 and 10,080 trials"),
}
"""Module and content of each benchmark, by its name."""

SCRIPTS = """\
and, with arguments of its own (--help):
  python -m benchmarks.replay_pruning [FILE …]   pruners on simulated or recorded curves"""


def main(arguments: list[str] | None = None) -> None:
    """Run the named benchmarks; without a name, list them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run benchmarks. Run nothing else on the machine meanwhile.",
        epilog=_list_benchmarks(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmark to run")
    parser.add_argument(
        "--device",
        metavar="cuda[:i]|cpu",
        help="device of gpu, by default cuda; cpu rehearses it with small networks",
    )
    options = parser.parse_intermixed_args(arguments)
    names: list[str] = options.names
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"benchmark {name!r} not found: expected one of {', '.join(BENCHMARKS)}")
    if options.device is not None and "gpu" not in names:
        parser.error("--device is of the benchmark gpu: add its name")
    if not names:
        print(_list_benchmarks())
        return
    if "gpu" in names:
        from benchmarks.gpu import find_device

        device = options.device or "cuda"
        if problem := find_device(device):
            parser.exit(2, f"{parser.prog}: error: {problem}\n")
    benchmarks = []
    for name in names:
        try:
            benchmark = _load(name)
        except ModuleNotFoundError as error:
            parser.exit(
                2,
                f"{parser.prog}: error: benchmark {name!r} needs {error.name}: install the project "
                "(make install)\n",
            )
        if name == "gpu":
            benchmark = functools.partial(benchmark, device)
        benchmarks.append(benchmark)
    print(_describe_machine())
    for benchmark in benchmarks:
        for line in benchmark():
            print(line, flush=True)


def _list_benchmarks() -> str:
    lines = [f"  {name:18} {content}" for name, (_, content) in BENCHMARKS.items()]
    return "\n".join(["names:", *lines, SCRIPTS])


def _load(name: str) -> Callable[..., Iterator[str]]:
    module, _ = BENCHMARKS[name]
    benchmark: Callable[..., Iterator[str]] = import_module(f"benchmarks.{module}").measure
    if "optuna" in sys.modules:
        optuna = sys.modules["optuna"]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    return benchmark


def _describe_machine() -> str:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    processor = platform.processor() or platform.machine()
    return (
        f"{datetime.date.today()}, {cores} cores ({processor}), torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )


if __name__ == "__main__":
    main()
