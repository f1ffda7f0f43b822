"""``python -m benchmarks [NAME …]``: print the measurements of docs/benchmarks.md."""

import datetime
import platform

import click
import optuna
import torch

from benchmarks import (
    audited_pruning,
    cell_lockstep,
    claiming,
    conjunctions,
    core_sharing,
    effect_intervals,
    effective_context,
    end_to_end,
    large_search,
    objective_comparison,
    orderly_stop,
    outcomes,
    overhead,
    pareto_simulation,
    precision,
    replicate_verdicts,
    report_time,
    scale,
    training_step,
    unequal_runs,
    uneven_noise,
)
from search.worker.cpu_budget import cores

BENCHMARKS = {
    "audit": audited_pruning.measure,
    "training-step": training_step.measure,
    "stacks": training_step.stacks,
    "cell-lockstep": cell_lockstep.measure,
    "end-to-end": end_to_end.measure,
    "large-search": large_search.measure,
    "overhead": overhead.measure,
    "precision": precision.measure,
    "objectives-small": objective_comparison.measure_small,
    "objectives": objective_comparison.measure,
    "effective-context": effective_context.measure,
    "core-sharing": core_sharing.measure,
    "claiming": claiming.measure,
    "conjunctions": conjunctions.measure,
    "orderly-stop": orderly_stop.measure,
    "outcomes": outcomes.measure,
    "replicates": replicate_verdicts.measure,
    "reporting": report_time.measure,
    "pareto": pareto_simulation.measure,
    "scale": scale.measure,
    "effects": effect_intervals.measure,
    "unequal-runs": unequal_runs.measure,
    "uneven-noise": uneven_noise.measure,
}


@click.command(help="Run benchmarks, by default all. Run nothing else on the machine meanwhile.")
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
def benchmarks(names: tuple[str, ...]) -> None:
    """Run the named benchmarks."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    processor = platform.processor() or platform.machine()
    click.echo(
        f"{datetime.date.today()}, {cores()} cores ({processor}), torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    for name in names or BENCHMARKS:
        for line in BENCHMARKS[name]():
            click.echo(line)


benchmarks()
