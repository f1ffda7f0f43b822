"""Tables that only the page shows: of trials and times, and of tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from reports.analysis.leaderboard import LeaderboardEntry
from reports.analysis.pruning import PruningSummary
from reports.analysis.refinement import VariantEffect
from reports.findings import TaskComparison
from reports.formatting import format_number, format_stderr
from reports.results import Results
from reports.stats.effects import Effect
from reports.stats.scale import NATS, Scale, format_count, format_param, format_value
from reports.stats.task_contrasts import TaskContrast
from reports.study_reader import MAX_DRAWN
from reports.tables import (
    MARK,
    TEXT,
    Column,
    Table,
    estimate_column,
    find_held_out_spec,
    improved_share,
    metric_columns,
)
from reports.trial_table import is_continuous
from studies.records import Floors
from studies.space import BPTT_STEPS, CELL, COST_PARAMS

LOSS = "loss"
"""Name of the loss among the numbers of floors and slices."""

LOSSES = {
    "cross-entropy": "cross-entropy of the classes, in nats per target",
    "squared error": "mean squared error, in the square of the data’s units",
    "standardized squared error": "mean squared error of targets with mean 0 and standard "
    "deviation 1 on the training split: a fraction of their variance",
    "own": "that of the task’s own method loss",
}
"""Description of each loss of a task."""

RECURRENT = "small network with memory"
"""Name of the one floor that keeps its states."""

_FLOORS = {
    "recurrent": RECURRENT,
    "memoryless": "small network without memory",
    "last_value": "last value",
    "constant": "best constant",
}
"""Name of each floor, in the order of a table."""


@dataclass(frozen=True)
class FloorRow:
    """A row of the table of floors.

    Attributes:
        name: what predicts.
        loss: its validation loss.
        metrics: its metrics by name, as far as they are known.
    """

    name: str
    loss: float
    metrics: dict[str, float]


def list_floors(floors: Floors | None, best: LeaderboardEntry) -> list[FloorRow]:
    """List the floors below the best network; empty if none are stored.

    Args:
        floors: floors of the study.
        best: its best architecture, whose numbers are those of the validation split.
    """
    if floors is None:
        return []
    rows = [FloorRow(best.full_label, best.validation_loss, best.validation_metrics)]
    for key, name in _FLOORS.items():
        if numbers := getattr(floors, key):
            metrics = {metric: value for metric, value in numbers.items() if metric != LOSS}
            rows.append(FloorRow(name, numbers[LOSS], metrics))
    return rows


def tabulate_floors(floors: Sequence[FloorRow], results: Results, name: str = "") -> Table[Any]:
    """Tabulate the best network of a task, and what predictions without memory reach."""
    measure, task = results.measure, results.config.task_record
    return Table(
        name,
        floors,
        [
            Column("prediction", lambda row: row.name),
            Column(measure.name_loss("validation"), lambda row: row.loss, results.scale.value_spec,
                   unit=measure.held_out_unit),
            *metric_columns(task.metrics if task else (), results, lambda row: row.metrics),
        ],
    )  # fmt: skip


def tabulate_lengths(
    entries: Sequence[LeaderboardEntry], results: Results, name: str = ""
) -> Table[LeaderboardEntry]:
    """Tabulate the losses of the best networks on sequences of other lengths than in training."""
    task, spec = results.config.task_record, results.scale.value_spec
    measured = [entry for entry in entries if entry.length_losses]
    lengths = list(measured[0].length_losses) if measured else []

    def get(length: int, entry: LeaderboardEntry) -> float | None:
        return entry.length_losses.get(length)

    return Table(
        name,
        measured,
        [
            Column("architecture", lambda e: e.full_label),
            Column("trial", lambda e: e.number, "d"),
            Column(format_count(task.steps, "step") if task else "", lambda e: e.validation_loss,
                   spec, unit="as in training"),
            *(Column(format_count(length, "step"), partial(get, length), spec)
              for length in lengths),
        ],
    )  # fmt: skip


def tabulate_slices(
    entries: Sequence[LeaderboardEntry], results: Results, slice_name: str, name: str = ""
) -> Table[tuple[LeaderboardEntry, str]]:
    """Tabulate loss and metrics of the best networks on the targets of each value of a slice."""
    loss, spec = results.measure.loss, results.scale.value_spec
    measured = [(entry, found) for entry in entries if (found := entry.slices.get(slice_name))]
    values = sorted({value for _, found in measured for value in found})

    def get(value: int, row: tuple[LeaderboardEntry, str]) -> str:
        entry, quantity = row
        number = entry.slices[slice_name].get(value, {}).get(quantity)
        return format_number(number, spec if quantity == LOSS else ".4g")

    return Table(
        name,
        [(entry, quantity) for entry, found in measured for quantity in found[min(found)]],
        [
            Column("architecture", lambda row: row[0].full_label),
            Column("trial", lambda row: row[0].number, "d"),
            Column("quantity", lambda row: loss if row[1] == LOSS else row[1]),
            *(Column(str(value), partial(get, value), TEXT) for value in values),
        ],
    )  # fmt: skip


def tabulate_across_tasks(comparison: TaskComparison) -> Table[TaskContrast]:
    """Tabulate the effect of each change in each task, and whether their signs agree."""

    def get(task: str, row: TaskContrast) -> Effect | None:
        return row.by_task[task].effect if task in row.by_task else None

    def mark(task: str, row: TaskContrast) -> str:
        return MARK if task in row.by_task and row.by_task[task].is_significant else ""

    scales = {
        task: next((each.scale for row in comparison.contrasts if (each := get(task, row))), NATS)
        for task in comparison.tasks
    }
    return Table(
        f"{comparison.name} across tasks",
        comparison.contrasts,
        [
            Column("change", lambda row: row.contrast.label,
                   hint=lambda row: row.contrast.description),
            *(estimate_column(task, partial(get, task),
                              ", ".join(filter(None, [record.loss_name, scales[task].unit])),
                              f"+{scales[task].spec}", note=partial(mark, task))
              for task, record in comparison.tasks.items()),
            Column("signs", lambda row: row.agreement),
        ],
    )  # fmt: skip


# ---------------------------------------------------------------- effects, costs and trials


def tabulate_variants(
    variants: Sequence[VariantEffect], scale: Scale, unit: str, name: str = "variants"
) -> Table[VariantEffect]:
    """Tabulate the variants of a derived study."""
    has_pairs = any(each.pairs for each in variants)
    return Table(
        name,
        variants,
        [
            Column("variant", lambda e: e.variant),
            Column("trials", lambda e: e.count, ",d"),
            Column("best", lambda e: e.best, scale.value_spec, unit=unit),
            Column("vs. source", lambda e: e.source_difference, f"+{scale.spec}", unit=scale.unit),
            estimate_column("vs. unchanged", lambda e: e, scale.unit, f"+{scale.spec}",
                      condition=has_pairs),
            Column("improved", improved_share, ".0f", unit="%", condition=has_pairs),
            Column("pairs", lambda e: e.pairs or None, ",d", condition=has_pairs),
        ],
    )  # fmt: skip


def tabulate_rungs(pruning: PruningSummary, name: str = "rungs") -> Table[Any]:
    """Tabulate after which steps trials were pruned."""
    return Table(
        name,
        pruning.rungs.to_dict("records"),
        [
            Column("pruned after step", itemgetter("step"), ",.0f"),
            Column("trials", itemgetter("trials"), ",.0f"),
            Column("of the best", itemgetter("keep_probability"), ".2f",
                   unit="expected number"),
        ],
    )  # fmt: skip


def tabulate_costs(results: Results, name: str = "time") -> Table[Any]:
    """Tabulate the computing time of networks by the parameters that determine it."""
    varied = [each for each in COST_PARAMS if each in results.parameters]
    names = [each for each in (CELL, BPTT_STEPS) if each in varied] + ["layers", "state_size"]
    names += [each for each in varied if each not in names]
    rows = results.table.dropna(subset=["seconds"])
    groups = rows.groupby(names, dropna=False)  # without update_every: whole sequences
    costs = groups["seconds"].agg(["count", "mean", "sum"])
    costs["steps_per_second"] = groups["steps_per_second"].median()
    costs["share"] = 100 * costs["sum"] / costs["sum"].sum()
    return Table(
        name,
        costs.reset_index().to_dict("records"),
        [
            *(Column(format_param(each), partial(_format_item, each), "" if each == CELL else TEXT)
              for each in names),
            Column("trials", itemgetter("count"), ",d"),
            Column("mean", itemgetter("mean"), ",.1f", unit="s"),
            Column("steps per second", itemgetter("steps_per_second"), ",.1f"),
            Column("total", itemgetter("sum"), ",.0f", unit="s"),
            Column("share", itemgetter("share"), ".0f", unit="%"),
        ],
    )  # fmt: skip


def tabulate_trials(results: Results, name: str = "trials") -> Table[Any]:
    """Tabulate the trials, of too many the best."""
    config, measure, scale = results.config, results.measure, results.scale
    validation, spec = measure.column("validation"), find_held_out_spec(results)
    is_pruned, has_networks = config.pruning.enabled, bool(results.cells)
    return Table(
        name,
        results.table.head(MAX_DRAWN).reset_index().to_dict("records"),
        [
            Column("trial", itemgetter("number"), "d"),
            Column("state",
                   lambda row: row["state"].lower() + (", audited" if row["audited"] else ""),
                   hint=itemgetter("reason")),
            Column(measure.loss, itemgetter("value"), scale.value_spec, unit=measure.unit),
            Column("paused at step", itemgetter("rung"), ",.0f", condition=is_pruned),
            Column(f"predicted {measure.loss}", itemgetter("predicted_value"), scale.spec,
                   unit=measure.unit, condition=is_pruned),
            Column("keep probability", itemgetter("keep_probability"), ".2g",
                   condition=is_pruned),
            Column(measure.name_loss("validation"), lambda row: row[validation], spec,
                   unit=measure.held_out_unit,
                   note=lambda row: format_stderr(row["validation_stderr"], spec),
                   condition=config.is_text or results.shows_validation),
            *(Column(metric, itemgetter(column), ".4g")
              for metric, column in results.metric_columns.items()),
            *(Column(format_param(axis), itemgetter(axis), ".6g")
              if is_continuous(results.table[axis])
              else Column(format_param(axis), partial(_format_item, axis))
              for axis in results.axes),
            Column("parameters", itemgetter("parameter_count"), ".0f",
                   condition=has_networks),
            Column("time", itemgetter("seconds"), ".1f", unit="s", condition=has_networks),
            Column("worker", itemgetter("worker"), condition=has_networks),
        ],
    )  # fmt: skip


def _format_item(name: str, row: Mapping[Any, Any]) -> str:
    """Format the value of a parameter in a row of trials."""
    return format_value(row[name])
