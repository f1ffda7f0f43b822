"""Studies of results that other programs recorded: what their columns are, and their runs.

Roles of columns are guessed by name and by two rules of values: a column with one value was not
varied, and one with another value in most rows names the rows or is a result. Where these do not
decide, nothing is imported until the parameters are named.
"""

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import ValidationError

from rnn.errors import UserError
from studies.attributes import FAILURE, RESULT_NAMES, Failure, StudyRecord
from studies.config import StudyConfig
from studies.hypotheses import Hypothesis, register
from studies.loader import describe_mistakes, load_hypotheses, parse_hypotheses
from studies.note import to_attributes, write_text
from studies.result_table import (
    PARAMETER_PREFIXES,
    Table,
    join_names,
    read_file,
    read_frame,
    read_study,
    strip_prefix,
)
from studies.space import REPLICATE
from studies.storage.counts import count_statuses
from studies.storage.edits import create_study
from studies.storage.engine import parse_url, redact
from studies.storage.open import list_study_names, load_study, open_storage, read_storage
from studies.storage.trials import StoredTrial
from studies.storage.whole_study import new_folder
from studies.study_settings import ImportedResults
from studies.text import check_study_name, format_count, shorten

if TYPE_CHECKING:
    import pandas as pd

_REPLICATE_NAMES = ("replicate", "seed", "random_seed", "random_state")
"""Columns that number repeated runs, unless a user names another."""

_STATES = {
    **dict.fromkeys(("complete", "completed", "finished", "terminated"), TrialState.COMPLETE),
    "pruned": TrialState.PRUNED,
    **dict.fromkeys(("fail", "failed", "crashed", "killed", "error"), TrialState.FAIL),
    **dict.fromkeys(("running", "waiting", "pending", "scheduled"), TrialState.RUNNING),
}
"""States of Optuna, W&B, MLflow and Ray; a column that has another word has no states."""

_RESULT = re.compile(
    r"(.*[\W_])?(loss|acc|accuracy|auc|f1|score|error|perplexity|ppl|mse|mae|runtime|elapsed)|"
    r"(.*[\W_])?(duration|wall_?clock|flops|mem|memory)|value|values_\d+|epoch|best[._].*|"
    r"(n|num)_param(eter)?s|param(eter)?s?_(count|total)|(final|last)_(epoch|step)|"
    r"((run|wall|epoch|step|train|training|fit|eval|total|elapsed)[\W_]?)?(time|seconds)(_m?s)?",
    re.IGNORECASE,
)
"""Names of what a program measures. Not every time is one: ``decay_time`` may be a parameter."""

_BOOKKEEPING = re.compile(
    r"_.*|Name|Notes|User|Tags|Created|Updated|Runtime|Sweep|ID|Group|Commit|Hostname|Agent|"
    r"Job Type|Description|Github.*|GPU (Count|Type)|(Start|End) Time|Relative Time .*|"
    r"[Ss]tat(e|us)|index|idx|id|number|row|run|trial|experiment|job|date|timestamp|pid|host|(run|trial)_id"
)
"""Columns that W&B and other programs write next to parameters and results."""

_HIGHER_IS_BETTER = re.compile(
    r"(.*[\W_])?(acc|accuracy|auc|score|f1|bleu|reward|return|r2|precision|recall)([\W_\d].*)?",
    re.IGNORECASE,
)

Hypotheses = str | Path | Sequence[Hypothesis | Mapping[str, Any]]
"""The path of a file of hypotheses, or the hypotheses."""


def _option(metavar: str | None, default: Any, text: str) -> Any:
    return field(default=default, metadata={"metavar": metavar, "help": text})


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a user says about results: the options of ``rnn-search import``, with their help.

    Several names are a list in Python, and hypotheses may be a list of tables there.

    Raises:
        UserError: if a text is given for a list.
    """

    value: str | None = _option(
        "COLUMN", None, "Column of the results, or objective of a study; by default value."
    )
    maximize: bool | None = _option(
        None, None, "Whether a higher value is better; by default as its name or the study says."
    )
    metric: str = _option("NAME", "", "Name of the value, for the report.")
    unit: str = _option("TEXT", "", "Unit of the value, for the report.")
    question: str = _option("TEXT", "", "Question that the report answers.")
    parameters: Sequence[str] = _option(
        "A,B,…", (), "Columns that are parameters; by default a guess, which is printed."
    )
    replicate: str | None = _option(
        "COLUMN", None, "Column that numbers repeated runs; by default replicate or seed."
    )
    nuisance: Sequence[str] = _option(
        "A,B,…", (), "Parameters at whose best values each configuration is judged."
    )
    threshold: float | None = _option(
        "NUMBER", None, "Value from which a run is good: the report shows which changes give more."
    )
    hypotheses: Hypotheses | None = _option(  # noqa: RUF009
        "FILE.toml", None, "Hypotheses to test: tables [[hypothesis]], as in a study file."
    )

    def __post_init__(self) -> None:
        for name in ("parameters", "nuisance"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise UserError(f"{name}={given!r} is a text: expected a list of names")


@dataclass(frozen=True)
class ImportedStudy:
    """What was imported.

    Attributes:
        name: name of the study.
        source: file or study that the results were read from.
        counts: number of runs by state, for a reader.
        parameters: names of its parameters.
        roles: what the columns are, one line for each role.
        notes: what was decided, one sentence each.
        command: command that imports the same and names each role; "" for a DataFrame.
    """

    name: str
    source: str
    counts: str
    parameters: list[str]
    roles: list[str]
    notes: list[str]
    command: str


def import_results(
    storage: str,
    source: "str | Path | pd.DataFrame | optuna.Study",
    options: ImportOptions,
    *,
    study: str | None = None,
    name: str | None = None,
    dry_run: bool = False,
) -> ImportedStudy:
    """Make a study of results that another program recorded.

    Args:
        storage: URL of the storage, which is created if it does not exist.
        source: where the results are; it and the names as in :func:`rnn_search.import_results`.
        options: what the columns are.
        study: name of the study in the storage ``source``.
        name: name of the new study.
        dry_run: whether to write nothing.

    Raises:
        UserError: if it cannot be imported; nothing is written. About a table the message names
            the row and the column.
    """
    is_url = isinstance(source, str) and "://" in source
    if study is not None and not is_url:
        given = shorten(str(source))
        raise UserError(f"study={study!r} is for the URL of a storage: {given} is none")
    words = [str(source)]
    if is_url:
        words, table = _open_study(str(source), study, options)
        default_name = words[-1]
    elif isinstance(source, str | Path):
        table = read_file(Path(source))
        default_name = Path(source).stem
    elif isinstance(source, optuna.Study):
        table = read_study(source, "", options.value)
        default_name = source.study_name
    elif hasattr(source, "columns"):
        if name is None:
            raise UserError("a DataFrame has no name: expected name=…")
        table = read_frame(source, "DataFrame")
        default_name = name
    else:
        raise UserError(
            f"cannot import a {type(source).__name__}: expected the path of a table, a DataFrame, "
            "a study of Optuna or the URL of its storage"
        )
    name = default_name if name is None else name
    check_study_name(name)
    roles = _find_roles(table, options)
    command = ""
    if isinstance(source, str | Path):
        words += [] if name == default_name else ["--name", name]
        command = _format_command(words, roles, options)
    return _store(storage, name, table, roles, options, command, dry_run)


def _open_study(url: str, study: str | None, options: ImportOptions) -> tuple[list[str], Table]:
    """Read a study of a storage; return the words of a command that name it, and its table."""
    where = redact(parse_url(url).set(password=None))
    with closing(read_storage(url)) as opened:
        names = list_study_names(opened)
        if study is None and len(names) != 1:
            raise UserError(
                f"storage {where} has {len(names)} studies: choose one with --study, of "
                f"{', '.join(names) or 'none'}"
            )
        name = study or names[0]
        table = read_study(load_study(opened, name), f" of {where}", options.value)
    return [where, "--study", name], table


def _format_command(source: Sequence[str], roles: "_Roles", options: ImportOptions) -> str:
    """Return the command that imports the same, with an option for each role."""
    named = asdict(options) | {
        "value": options.value or roles.value,
        "maximize": roles.maximize,
        "parameters": list(roles.parameters),
        "replicate": roles.replicate,
    }
    words = ["rnn-search", "import", *source]
    for option, value in named.items():
        if isinstance(value, bool):
            words.append("--maximize" if value else "--minimize")
        elif value and isinstance(value, list | tuple):
            words += [f"--{option}", ",".join(map(str, value))]
        elif value not in (None, "", ()):
            words += [f"--{option}", str(value)]
    return shlex.join(words)


# ------------------------------------------------------------------ roles of columns


@dataclass(frozen=True)
class _Roles:
    """What the columns of a table are.

    Attributes:
        parameters: name of the parameter of each column.
        curve: step of each column.
        left_out: columns that are nothing, by the reason.
        is_sure: whether the user or a prefix says which columns are parameters.
    """

    value: str
    metric: str
    maximize: bool
    parameters: dict[str, str]
    replicate: str | None
    states: str | None
    curve: dict[str, int]
    left_out: dict[str, list[str]]
    is_sure: bool

    def describe(self) -> list[str]:
        """Return a line for each role."""
        roles = {
            "value": f"{self.metric} ({'higher' if self.maximize else 'lower'} is better)",
            "parameters": join_names(self.parameters.values(), 100),
            "replicates": self.replicate,
            "states": self.states,
            "curve": join_names(self.curve, 3),
        }
        lines = [f"{role}: {text}" for role, text in roles.items() if text]
        for reason, names in self.left_out.items():
            lines.append(f"left out: {join_names(names)}, because {reason}")
        return lines


def _find_roles(table: Table, options: ImportOptions) -> _Roles:
    """Find what the columns of a table are.

    Raises:
        UserError: if a column that is named is not there, or it is unsure which are parameters.
    """
    # The table of a study of Optuna has one objective.
    value = "value" if table.metric else table.find(options.value or "value", "--value")
    metric = options.metric or table.metric or strip_prefix(value)
    maximize = table.maximize if options.maximize is None else options.maximize
    if maximize is None:
        maximize = _HIGHER_IS_BETTER.fullmatch(metric) is not None
    chosen = [table.find(name, "--parameters") for name in options.parameters]
    if options.replicate is None:
        replicate = _find_replicate(table, [value, *chosen])
    else:
        replicate = table.find(options.replicate, "--replicate")
    states = _find_states(table)
    curve = _find_curve(table, value)
    names = [name for name in table.columns if name not in (value, replicate, states, *curve)]
    left_out: dict[str, list[str]] = {}
    if not chosen:
        chosen = _guess_parameters(table, names, replicate, left_out)
    elif not set(chosen) <= set(names):
        raise UserError(
            f"{table.source}: --parameters names the value, the replicate, the state or the curve: "
            f"expected some of {join_names(names, 30)}"
        )
    elif others := [name for name in names if name not in chosen]:
        left_out["--parameters does not name them"] = others
    if not chosen:
        raise UserError(f"{table.source} has no parameters: expected columns that vary")
    return _Roles(
        value=value,
        metric=metric,
        maximize=maximize,
        parameters=_name_parameters(chosen),
        replicate=replicate,
        states=states,
        curve=curve,
        left_out=left_out,
        is_sure=bool(options.parameters) or any(map(_has_prefix, chosen)),
    )


def _find_replicate(table: Table, taken: Sequence[str]) -> str | None:
    """Return the column that is called as if it numbered repeated runs, if it varies."""
    for name, cells in table.columns.items():
        is_named = strip_prefix(name).lower() in _REPLICATE_NAMES
        if is_named and name not in taken and len(set(cells)) > 1:
            return name
    return None


def _find_states(table: Table) -> str | None:
    """Return the column whose cells are all states of runs; None without one."""
    for name, cells in table.columns.items():
        words = {_to_word(cell) for cell in cells if cell is not None}
        if name.lower() in ("state", "status") and words <= _STATES.keys():
            return name
    return None


def _to_word(cell: Any) -> str:
    return str(cell).rpartition(".")[2].lower()  # Optuna writes TrialState.COMPLETE


def _find_curve(table: Table, value: str) -> dict[str, int]:
    """Return the step of each column of the curve: ``loss_50``, or that of the value's name."""
    for prefix in (value, "loss"):
        pattern = re.compile(re.escape(prefix) + r"_(\d{1,9})")
        matches = {name: pattern.fullmatch(name) for name in table.columns}
        if any(matches.values()):
            return {name: int(match[1]) for name, match in matches.items() if match}
    return {}


def _guess_parameters(
    table: Table, names: Sequence[str], replicate: str | None, left_out: dict[str, list[str]]
) -> list[str]:
    """Return the columns that are parameters, and add the others to those left out.

    Raises:
        UserError: if names and values do not say which are.
    """
    has_prefix = any(map(_has_prefix, names))
    candidates = []
    for name in names:
        if has_prefix and not _has_prefix(name):
            reason = "they have no prefix, and parameters have"
        elif len(set(table.columns[name])) == 1 < len(table.rows):
            reason = "they have one value"
        elif not has_prefix and (_RESULT.fullmatch(name) or _BOOKKEEPING.fullmatch(name)):
            reason = "their names are those of results or bookkeeping"
        else:
            candidates.append(name)
            continue
        left_out.setdefault(reason, []).append(name)
    keys = [] if replicate is None else [replicate]
    if has_prefix or len(candidates) < 2 or _is_grid(table, [*candidates, *keys]):
        return candidates
    half = max(2, len(table.rows) / 2)
    scattered = [name for name in candidates if len(set(table.columns[name])) > half]
    others = [name for name in candidates if name not in scattered]
    if scattered and not _is_grid(table, [*others, *keys]):
        raise UserError(
            f"{table.source}: {join_names(scattered)} may be parameters or results, with another "
            "value in most rows: name the parameters with --parameters, of "
            f"{','.join(candidates)}"
        )
    if scattered:
        left_out["they have another value in most rows, as results and names have"] = scattered
    return others


def _is_grid(table: Table, names: Sequence[str]) -> bool:
    """Return whether the rows are each combination of the values of some columns, once."""
    combinations = set(zip(*(table.columns[name] for name in names), strict=True))
    product = math.prod(len(set(table.columns[name])) for name in names)
    return product == len(combinations) == len(table.rows)


def _has_prefix(name: str) -> bool:
    return name.startswith(tuple(PARAMETER_PREFIXES)) and not _RESULT.fullmatch(name)


def _name_parameters(columns: Iterable[str]) -> dict[str, str]:
    """Return the name of the parameter of each column; reports have columns of their own."""
    names: dict[str, str] = {}
    for column in columns:
        name = strip_prefix(column)
        while name in RESULT_NAMES or name in names.values():
            name += "_"
        names[column] = name
    return names


# ------------------------------------------------------------------ the study


def _store(
    storage: str,
    name: str,
    table: Table,
    roles: _Roles,
    options: ImportOptions,
    command: str,
    dry_run: bool,
) -> ImportedStudy:
    """Read the runs of a table, and store them as a study in one transaction."""
    trials = _read_trials(table, roles)
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        raise UserError(
            f"{table.source}: no row is complete, with a finite value: expected one or more"
        )
    notes = _number_repeats(table.source, roles, trials)
    if left_out := len(table.rows) - len(trials):
        notes.append(f"Runs that are not finished were left out: {left_out:,}.")
    config = _build_config(table, roles, options, notes)
    record = StudyRecord(
        config=config,
        commands=[command] if command else [],
        artifact_folder=new_folder(name),
        hypotheses=register([], config.hypothesis, len(trials)),
    )
    if not dry_run:
        with closing(open_storage(storage)) as opened:
            is_new = create_study(
                opened,
                name,
                roles.metric,
                record.attributes(),
                _find_distributions(trials),
                trials,
                StudyDirection.MAXIMIZE if roles.maximize else StudyDirection.MINIMIZE,
                to_attributes(write_text(name, config.question, record.commands)),
            )
            if not is_new:
                raise UserError(
                    f"study {name!r} exists in {redact(opened.engine.url)} already: choose another "
                    "--name, or delete it first"
                )
    counts = asdict(count_statuses(Counter(trial.status for trial in trials)))
    described = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    parameters = list(roles.parameters.values())
    return ImportedStudy(
        name, table.source, described, parameters, roles.describe(), notes, command
    )


def _read_trials(table: Table, roles: _Roles) -> list[StoredTrial]:
    """Return the finished runs of a table."""
    values = table.read_numbers(roles.value)
    curve = {step: table.read_numbers(name) for name, step in roles.curve.items()}
    params = {name: table.columns[column] for column, name in roles.parameters.items()}
    if roles.replicate is not None:
        params[REPLICATE] = _number_replicates(table.columns[roles.replicate])
    trials = []
    for place, value in enumerate(values):
        cell = None if roles.states is None else table.columns[roles.states][place]
        state = TrialState.COMPLETE if cell is None else _STATES[_to_word(cell)]
        if state is TrialState.RUNNING:
            continue
        attributes: dict[str, Any] = {}
        if state is TrialState.COMPLETE and (value is None or not math.isfinite(value)):
            state = TrialState.FAIL
            attributes = {} if value is None else {FAILURE: Failure.DIVERGED}
        trial = StoredTrial(attributes=attributes, state=state, is_imported=True)
        trial.value = value if state is TrialState.COMPLETE else None
        trial.params = _keep_known(params, place)
        trial.curve = _keep_known(curve, place)
        trials.append(trial)
    return trials


def _keep_known(columns: Mapping[Any, Sequence[Any]], place: int) -> dict[Any, Any]:
    """Return the cells of a row that are there; NaN differs from itself."""
    cells = {name: column[place] for name, column in columns.items()}
    return {name: cell for name, cell in cells.items() if cell is not None and cell == cell}


def _number_replicates(cells: Sequence[Any]) -> list[int]:
    """Return the number of each row's replicate; texts are numbered in their order."""
    if all(type(cell) is int and 0 <= cell < 2**31 for cell in cells):
        return list(cells)
    distinct = list(dict.fromkeys(cells))
    return [distinct.index(cell) + 1 for cell in cells]


def _number_repeats(source: str, roles: _Roles, trials: Sequence[StoredTrial]) -> list[str]:
    """Number all runs if some repeat the parameters of an earlier one; return a note about it.

    Raises:
        UserError: if the parameters were guessed, or a column numbers the runs already.
    """
    # In Python true equals 1, which is another value.
    typed = [{(name, type(v), v) for name, v in trial.params.items()} for trial in trials]
    repeats = len(trials) - len(set(map(frozenset, typed)))
    if not repeats:
        return []
    repeated = f"{format_count(repeats, 'run repeats', 'runs repeat')} the parameters"
    if roles.replicate is not None or not roles.is_sure:
        same = "" if roles.replicate is None else " and the replicate"
        raise UserError(
            f"{source}: {repeated}{same} of an earlier one: name the parameters with --parameters, "
            "or with --replicate the column that numbers repeated runs"
        )
    for number, trial in enumerate(trials):  # no two runs of different parameters belong together
        trial.params[REPLICATE] = number
    return [f"{repeated} of an earlier one: they count as replicates."]


def _build_config(
    table: Table, roles: _Roles, options: ImportOptions, notes: Sequence[str]
) -> StudyConfig:
    """Build the config of the study; what the options name has to be in the runs."""
    hypotheses: list[Hypothesis] = []
    if isinstance(options.hypotheses, str | Path):
        hypotheses = load_hypotheses(Path(options.hypotheses))
    elif options.hypotheses is not None:
        hypotheses = parse_hypotheses({"hypothesis": list(options.hypotheses)}, "hypotheses")
    parameters = list(roles.parameters.values())
    is_adaptive = table.is_adaptive
    if is_adaptive is None:  # a table that Optuna wrote does not say it
        is_adaptive = any(name.startswith("params_") for name in roles.parameters)
    try:
        config = StudyConfig(
            question=options.question,
            report_threshold=options.threshold,
            nuisance=[strip_prefix(name) for name in options.nuisance],
            hypothesis=hypotheses,
            results=ImportedResults(
                source=table.source,
                metric=roles.metric,
                unit=options.unit,
                direction="maximize" if roles.maximize else "minimize",
                parameters=parameters,
                notes=[*roles.describe()[2:], *notes],
                is_adaptive=is_adaptive,
            ),
        )
    except ValueError as error:
        mistake = describe_mistakes(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{table.source}: {mistake}") from error
    if set(parameters) <= set(config.nuisance):
        raise UserError(f"{table.source}: nuisance names all parameters: expected others")
    return config


def _find_distributions(trials: Iterable[StoredTrial]) -> dict[str, BaseDistribution]:
    """Return what each parameter is drawn from: a range of numbers, or categories."""
    values: dict[str, dict[Any, None]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, {})[value] = None
    distributions: dict[str, BaseDistribution] = {}
    for name, found in values.items():
        kinds = set(map(type, found))
        if kinds == {int}:
            distributions[name] = IntDistribution(min(found), max(found))
        elif kinds == {float} and all(map(math.isfinite, found)):
            distributions[name] = FloatDistribution(min(found), max(found))
        else:
            distributions[name] = CategoricalDistribution(list(found))
    return distributions
