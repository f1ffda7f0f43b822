"""The end of a page: task, training, floors, accounting and all trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports import study_tables
from reports.analysis.leaderboard import LeaderboardEntry
from reports.blocks import Block, Code, Column, Facts, Folded, Section, Table, Text
from reports.findings import StudyFindings
from reports.results import Results
from reports.study_tables import describe_direction, metric_columns
from rnn.config import GATED_CELL
from studies.messages import format_count, format_duration, format_param, format_value
from studies.records import Floors, TaskRecord, TextRecord
from studies.space import architecture_key

LOSS = "loss"
"""Name of the loss among the numbers of floors."""

RECURRENT = "small network with memory"
"""Name of the one floor that keeps its states."""

_FLOORS = {
    "recurrent": RECURRENT,
    "memoryless": "small network without memory",
    "last_value": "last value",
    "constant": "best constant",
}
"""Name of each floor, in the order of a table."""

_MAX_VALUES = 8
"""Values of a parameter that are listed; of more, the number is given."""

_LOSSES = {
    "cross-entropy": "cross-entropy of the classes, in nats per target",
    "squared error": "mean squared error, in the square of the data’s units",
    "standardized squared error": "mean squared error of standardized targets: a fraction of "
    "their variance",
    "own": "that of the task’s own method loss",
}
"""Description of each loss of a task."""


def show_setup(findings: StudyFindings) -> Section:
    """Show how the study was set up, what is known without memory, and what was computed."""
    results = findings.results
    config = results.config
    if config.has_networks:
        facts = [*_list_task_facts(results), *_list_training_facts(results)]
        blocks: list[Block] = [Folded("Data, training and evaluation", [Facts(facts)])]
    else:
        blocks = [Facts([*_list_source_facts(results), *_list_parameter_facts(results)])]
        if config.results is not None and config.results.notes:
            blocks.append(Text([f"{note.rstrip('.')}." for note in config.results.notes]))
    floors = list_floors(results.floors, findings.summary.best)
    if floors:
        blocks.append(_tabulate_floors(floors, results))
    blocks.append(Facts(_list_accounts(results)))
    if results.commands:
        commands = Code("\n".join(results.commands), language="text")
        blocks.append(Folded("Commands", [commands]))
    table = study_tables.tabulate_trials(results, f"{results.title} trials")
    shown = f"The best {len(table.rows):,} of {len(results.table):,} trials"
    if len(table.rows) == len(results.table):
        shown = "All trials"
    blocks.append(Folded(shown, [table]))
    return Section("setup", "Setup and accounting", blocks)


# ------------------------------------------------------------------ facts


def _list_source_facts(results: Results) -> list[tuple[str, str]]:
    config = results.config
    value = ("Value", f"{results.metric.axis_title}, {describe_direction(config.direction)}")
    if config.results is not None:
        return [("Imported from", config.results.source), value]
    loop = config.loop
    assert loop is not None
    facts = [value]
    if config.refinement is not None:
        facts.append(("Refinement", _describe_refinement(results)))
    if loop.steps > 1:
        every = format_count(loop.log_every, "step")
        facts.append(("Training loop", f"{format_count(loop.steps, 'step')}, logged every {every}"))
    if loop.function is not None:
        facts.append(("Function", loop.function))
    if hashes := sorted(set(results.complete["code"].dropna())):
        facts.append(("Training code", f"hash {', '.join(hashes)}"))
    return [*facts, ("Seed", str(config.seed))]


def _list_parameter_facts(results: Results) -> list[tuple[str, str]]:
    facts = []
    for name in results.all_parameters:
        known = results.table[name].dropna().unique().tolist()
        values = results.find_traits([name]).sort_values(name, known)
        text = format_count(len(values), "value")
        if len(values) <= _MAX_VALUES:
            text = ", ".join(map(format_value, values))
        lacking = int(results.table[name].isna().sum())
        if lacking:
            text += f"; {format_count(lacking, 'trial lacks it', 'trials lack it')}"
        if name in results.config.nuisance:
            text += "; a nuisance parameter"
        facts.append((format_param(name), text))
    return facts


def _list_task_facts(results: Results) -> list[tuple[str, str]]:
    task = results.config.task_record
    if task is None:
        return []
    if task.text is not None:
        return _list_corpus_facts(task, task.text)
    source = f"{task.source}, SHA-256 {task.sha256}" if task.sha256 else f"{task.source}, built in"
    facts = [("Task", task.name), ("Source", source)]
    if task.data_sha256:
        facts.append(("Data", f"SHA-256 {task.data_sha256}"))
    facts += [(f"Option {format_param(name)}", _format_option(results, task, name))
              for name in task.options]  # fmt: skip
    inputs = "token" if task.reads_tokens else "real number"
    outputs = format_count(task.outputs, "real number")
    if task.predicts_classes:
        outputs = f"one of {format_count(task.outputs, 'class', 'classes')}"
    step = format_count(task.inputs, inputs)
    lengths = _describe_length(results)
    if task.eval_lengths:
        lengths += f"; evaluated at {', '.join(map(str, task.eval_lengths))} as well"
    facts += [
        ("A step", f"one of {step}" if task.reads_tokens else step),
        ("A target", outputs),
        ("Sequences", lengths),
        ("Loss", _LOSSES[task.loss]),
    ]
    metrics = [f"{name} ({describe_direction(way)})" for name, way in task.metrics.items()]
    if metrics:
        facts.append(("Metrics", ", ".join(metrics)))
    return facts


def _format_option(results: Results, task: TaskRecord, name: str) -> str:
    if name in results.table and results.table[name].nunique() > 1:
        values = sorted(results.table[name].dropna().unique().tolist())
        return ", ".join(map(format_value, values))
    default = "" if name in task.values else " (default)"
    return f"{format_value(task.value(name))}{default}"


def _list_corpus_facts(task: TaskRecord, text: TextRecord) -> list[tuple[str, str]]:
    split = f"validation from byte {text.split[0]:,}, test from byte {text.split[1]:,}"
    tokens = f"{task.inputs} bytes"
    if task.token_name != "byte":
        tokens = (
            f"byte-pair encoding ({task.values['tokenizer']}): {task.inputs:,} tokens of "
            f"{text.bytes_per_token:.2f} bytes on average"
        )
    corpus = f"{text.corpus}, {text.length:,} bytes ({split}), SHA-256 {text.sha256}"
    return [("Corpus", corpus), ("Tokens", tokens)]


def _describe_length(results: Results) -> str:
    task = results.config.task_record
    if task is None or task.steps is None:
        return f"{results.values_of('sequence_length')} {results.config.token_name}s"
    return format_count(task.steps, "step")


def _list_training_facts(results: Results) -> list[tuple[str, str]]:
    config = results.config
    facts = []
    if config.refinement is not None:
        facts.append(("Refinement", _describe_refinement(results)))
    if config.nuisance:
        names = ", ".join(map(format_param, config.nuisance))
        carried = f": the best in {config.refinement.source}" if config.refinement else ""
        facts.append(("Nuisance parameters", f"{names}{carried if results.carried else ''}"))
    for name, cell in config.cells.items():
        if name in results.cells:
            form = ""
            if cell.has_sequence_form:
                form = ", trained by its sequence form"
            facts.append((f"Cell {name}", f"{cell.spec}, SHA-256 {cell.sha256}{form}"))
    length = config.length_of()
    training = (
        f"{length.steps:,} steps, batch of {results.values_of('batch_size')} sequences of "
        f"{_describe_length(results)}, {results.optimizer}, "
        f"logged every {length.log_every} steps"
    )
    facts += [
        ("Objective", results.measure.axis_title),
        ("Training", training),
        ("Backpropagation", _describe_reach(results)),
        ("Evaluation", _describe_evaluation(results)),
        ("Settings", f"precision {config.precision}, seed {config.seed}"),
    ]
    if GATED_CELL in results.cells:
        facts.append(("Gate inputs", config.gate_inputs))
    return facts


def _describe_refinement(results: Results) -> str:
    refinement = results.config.refinement
    assert refinement is not None
    if refinement.trial is not None:
        return f"trial {refinement.trial} of {refinement.source}, once more"
    # Variants that differ in a nuisance parameter alone are one architecture, judged at its best.
    judged = {architecture_key(variant, results.nuisance) for variant in refinement.variants}
    variants = format_count(len(judged), "variant")
    text = f"top {refinement.top} of {refinement.source}, in {variants}"
    if refinement.replicates > 1:
        text += f", {refinement.replicates} replicates each"
    return text


def _describe_reach(results: Results) -> str:
    reaches = [
        "the whole sequence" if steps == "sequence" else format_count(int(steps), "step")
        for steps in results.reaches
    ]
    text = f"through {', '.join(reaches)}"
    distance = results.values_of("update_every")
    if distance != "1" and results.reaches != ["sequence"]:
        text += f", an update every {distance} steps"
    return text


def _describe_evaluation(results: Results) -> str:
    config = results.config
    task = config.task_record
    windows = f"{config.evaluation.windows} sequences of the validation split"
    if task is not None and task.steps is None:
        length = f"{config.evaluation.window_length:,} {config.token_name}s"
        windows = f"{config.evaluation.windows} windows of {length} of the validation split"
    if config.eval_split == "test":
        windows += ", and once of the test split"
    if config.evaluation.average:
        return f"{windows}, weights averaged over the last {config.evaluation.average:.3%} of steps"
    return f"{windows}, weights of the last step"


def _list_accounts(results: Results) -> list[tuple[str, str]]:
    counts = results.counts
    states = ("planned", "complete", "told", "pruned", "diverged", "failed", "running", "waiting")
    found = [f"{getattr(counts, state):,} {state}" for state in states if getattr(counts, state)]
    facts = [("Trials", ", ".join(found))]
    table = results.table[results.table["copied_from"].isna()]
    if results.config.is_imported:
        return facts
    time = f"{format_duration(table['seconds'].sum())} of computing"
    if table["completed"].notna().any():
        span = (table["completed"].max() - table["started"].min()).total_seconds()
        time += f", {format_duration(span)} from the first start to the last end"
    if table["worker"].notna().any():  # exports lack it
        machines = format_count(table["host"].nunique(), "machine")
        time += f", {format_count(table['worker'].nunique(), 'worker')} on {machines}"
    facts.append(("Time", time))
    for name, column in (("PyTorch", "torch"), ("Devices", "device"), ("Threads", "threads")):
        values = sorted({str(value) for value in table[column].dropna()})
        if values:
            facts.append((name, ", ".join(values)))
    return facts


# ------------------------------------------------------------------ floors


@dataclass(frozen=True)
class FloorRow:
    """A row of the table of floors.

    Attributes:
        name: what predicts.
        metrics: its metrics by name, as far as they are known.
    """

    name: str
    loss: float
    metrics: dict[str, float]


def list_floors(floors: Floors | None, best: LeaderboardEntry) -> list[FloorRow]:
    """List the floors below the best network; empty if none are stored."""
    if floors is None:
        return []
    rows = [FloorRow(best.full_label, best.validation_loss, best.validation_metrics)]
    for key, name in _FLOORS.items():
        if numbers := getattr(floors, key):
            metrics = {metric: value for metric, value in numbers.items() if metric != LOSS}
            rows.append(FloorRow(name, numbers[LOSS], metrics))
    return rows


def _tabulate_floors(floors: Sequence[FloorRow], results: Results) -> Table[Any]:
    """Tabulate the best network of a task, and what predictions without memory reach."""
    measure = results.measure
    task = results.config.task_record
    return Table(
        f"{results.title} without memory",
        floors,
        [
            Column("prediction", lambda row: row.name),
            Column(
                measure.name_loss("validation"),
                lambda row: row.loss,
                measure.spec,
                unit=measure.held_out_unit,
            ),
            *metric_columns(task.metrics if task else (), results, lambda row: row.metrics),
        ],
    )
