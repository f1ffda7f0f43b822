"""``python -m benchmarks [NAME …]``: print the measurements of docs/benchmarks.md.

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
    "audit": "audited_pruning:measure",
    "training-step": "training_step:measure",
    "stacks": "training_step:stacks",
    "cell-lockstep": "cell_lockstep:measure",
    "plain-loop": "plain_loop:measure",
    "end-to-end": "end_to_end:measure",
    "overhead": "overhead:measure",
    "precision": "precision:measure",
    "pruning-families": "pruning_families:measure",
    "claiming": "claiming:measure",
    "orderly-stop": "orderly_stop:measure",
    "replicates": "error_rates:measure_replicates",
    "report-time": "report_time:measure",
    "scale": "scale:measure",
    "effects": "error_rates:measure_effects",
    "unequal-runs": "error_rates:measure_unequal_runs",
    "uneven-noise": "error_rates:measure_uneven_noise",
    "gpu": "gpu:measure",
}
"""Module and function of each benchmark, by its name."""


def main(arguments: list[str] | None = None) -> None:
    """Run the named benchmarks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run benchmarks, by default all. Run nothing else on the machine meanwhile.",
        epilog=f"names: {', '.join(BENCHMARKS)}",
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
        names = [name for name in BENCHMARKS if name != "gpu" or torch.cuda.is_available()]
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


def _load(name: str) -> Callable[..., Iterator[str]]:
    module, _, function = BENCHMARKS[name].partition(":")
    benchmark: Callable[..., Iterator[str]] = getattr(
        import_module(f"benchmarks.{module}"), function
    )
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
