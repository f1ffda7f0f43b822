"""Import of results that other programs recorded: roles of columns, runs, studies.

Roles of columns are guessed by name and by two rules of values: a column with one value was not
varied, and one with another value in most rows may be a parameter or a result. Then nothing is
imported until the parameters are named.
"""

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import BeforeValidator

from rnn.errors import UserError
from studies.artifacts import new_folder
from studies.attributes import FAILURE, IS_GRID_TRIAL, RESULT_NAMES, Failure, StudyRecord
from studies.config import StudyConfig
from studies.messages import check_study_name, format_count, shorten, to_line
from studies.option_models import Options, option, to_words
from studies.space import REPLICATE
from studies.storage.counts import count_statuses
from studies.storage.database import redact
from studies.storage.edits import create_study, to_note_attributes, write_note
from studies.storage.open import list_study_names, load_study, open_storage, read_storage
from studies.storage.trials import StoredStudy, StoredTrial
from studies.study_settings import ImportedResults

if TYPE_CHECKING:
    import pandas as pd

_PARAMETER_PREFIXES = ("params.", "params_", "config/", "param_", "config.")
"""Prefixes of parameters by MLflow, Optuna, Ray Tune, scikit-learn, and W&B in JSON lines."""

_RESULT_PREFIXES = ("metrics.", "summary.")
"""Prefixes of results by MLflow, and by W&B in JSON lines."""

_STATES = {
    **dict.fromkeys(("complete", "completed", "finished", "terminated"), TrialState.COMPLETE),
    "pruned": TrialState.PRUNED,
    **dict.fromkeys(("fail", "failed", "crashed", "killed", "error"), TrialState.FAIL),
    **dict.fromkeys(("running", "waiting", "pending", "scheduled"), TrialState.RUNNING),
}
"""States of Optuna, W&B, MLflow and Ray; a column that has another word has no states."""

_MISSING = ("", "NA", "N/A", "null")
"""Cells of a CSV file without a value. None names a choice, and nan is the value of divergence."""


_REPLICATES = re.compile("replicate|seed|random_seed|random_state", re.IGNORECASE)
"""Columns that number repeated runs, unless a user names another."""

_RESULT = re.compile(
    r"(.*[\W_])?(loss|acc|accuracy|auc|f1|score|error|perplexity|ppl|mse|mae|runtime|elapsed)|"
    r"(.*[\W_])?(duration|wall_?clock|flops|mem|memory)|value|values_\d+|epoch|best[._].*|"
    r"(n|num)_param(eter)?s|param(eter)?s?_(count|total)|(final|last)_(epoch|step)|"
    r"((run|wall|epoch|step|train|training|fit|eval|total|elapsed)[\W_]?)?(time|seconds)(_m?s)?",
    re.IGNORECASE,
)
"""Names of what a program measures. Not every time is one: ``decay_time`` may be a parameter."""

_BOOKKEEPING = re.compile(
    r"_.*|Unnamed: .*|Name|Notes|User|Tags|Created|Updated|Sweep|ID|Group|Commit|Hostname|Agent|"
    r"Job Type|Description|Github.*|GPU (Count|Type)|(Start|End) Time|Relative Time .*|"
    r"[Ss]tat(e|us)|index|idx|id|number|row|run|trial|experiment|job|date|timestamp|pid|host|"
    r"(run|trial)_id"
)
"""Columns that W&B and other programs write next to parameters and results."""

_HIGHER_IS_BETTER = re.compile(
    r"(.*[\W_])?(acc|accuracy|auc|score|f1|bleu|reward|return|r2|precision|recall)([\W_\d].*)?",
    re.IGNORECASE,
)


# ------------------------------------------------------------------ tables


@dataclass
class _Table:
    """A table of the runs that have ended.

    Attributes:
        source: file or study that it is of, for a reader.
        states: how each run ended, as a column ``state`` or ``status`` says; else it is complete.
        columns: cells of each other column as Python's values of one type; None where missing.
        maximize: whether a higher value is better; None if the source does not say it.
        is_adaptive: whether a sampler may have chosen rows by the results of earlier ones.
    """

    source: str
    states: list[TrialState]
    columns: dict[str, list[Any]]
    maximize: bool | None = None
    is_adaptive: bool = False

    def find(self, name: str, option: str) -> str:
        """Return a column that a user names, with or without the prefix of a program."""
        found = [column for column in self.columns if name in (column, _strip_prefix(column))]
        if not found:
            raise UserError(
                f"{self.source} has no column {shorten(name)!r}: choose {option}, of "
                f"{', '.join(self.columns)}"
            )
        return name if name in found else found[0]

    def count_values(self, names: Sequence[str]) -> int:
        """Return the number of distinct combinations of values of some columns."""
        return len(set(zip(*(self.columns[name] for name in names), strict=True)))

    def read_numbers(self, name: str) -> list[float | None]:
        """Return the numbers of a column; None for an empty cell."""
        try:
            return [None if cell is None else float(cell) for cell in self.columns[name]]
        except ValueError as error:
            raise UserError(
                f"{self.source}, column {shorten(name)!r}: {shorten(str(error))}: expected "
                "numbers, and empty cells for runs that failed"
            ) from error


def _strip_prefix(name: str) -> str:
    """Return the name of a column without the prefix of the program that wrote the table."""
    for prefix in (*_PARAMETER_PREFIXES, *_RESULT_PREFIXES):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _read_file(path: Path) -> _Table:
    """Read a table from Parquet, JSON lines, or CSV, for which any other suffix stands.

    Raises:
        UserError: if it is no table.
    """
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            # A value of an object in an object is named as by W&B: config.lr.
            frame = pd.json_normalize([json.loads(line) for line in lines])
        else:
            frame = pd.read_csv(
                path,
                index_col=False,
                skipinitialspace=True,
                keep_default_na=False,
                na_values=_MISSING,
            )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as CSV in UTF-8, JSON lines (.jsonl) or Parquet (.parquet): "
            f"{to_line(str(error))}"
        ) from error
    return _read_frame(frame, path.name)


def _read_frame(frame: "pd.DataFrame", source: str) -> _Table:
    """Read a table from a DataFrame, whose named index is columns as well.

    Raises:
        UserError: if it has no rows, or two columns of one name.
    """
    if frame.index.names != [None]:
        frame = frame.reset_index()
    frame = frame.rename(columns=str)
    if frame.empty or frame.columns.has_duplicates:
        raise UserError(f"{source} has no rows, or two columns of one name")
    columns = {}
    states = [TrialState.COMPLETE] * len(frame)
    for name in map(str, frame.columns):
        cells = _read_column(frame[name])
        words = [str(cell).rpartition(".")[2].lower() for cell in cells]  # TrialState.COMPLETE
        if name.lower() in ("state", "status") and _STATES.keys() >= set(words):
            states = [_STATES[word] for word in words]
        else:
            columns[name] = cells
    ended = [row for row, state in enumerate(states) if state is not TrialState.RUNNING]
    return _Table(
        source,
        [states[row] for row in ended],
        {name: [cells[row] for row in ended] for name, cells in columns.items()},
        is_adaptive=any(name.startswith("params_") for name in columns),
    )


def _read_column(column: "pd.Series[Any]") -> list[Any]:
    """Return cells as values of one type that a parameter can have; None where missing."""
    if column.isna().any():
        column = column.convert_dtypes()  # integers are floats next to missing cells
    cells = column.astype(object).where(column.notna(), None).tolist()
    kinds = {type(cell) for cell in cells if cell is not None}
    if len(kinds) <= 1 and kinds <= {bool, int, float, str}:
        return cells
    kind = float if kinds == {int, float} else str
    return [None if cell is None else kind(cell) for cell in cells]


def _read_study(study: optuna.Study, where: str = "") -> _Table:
    """Read a study of plain Optuna as a table, whose curve is that of intermediate values.

    Args:
        study: the study.
        where: where it is stored, for a reader: `` of sqlite:///optuna.db``.

    Raises:
        UserError: if it is a study of this program, has several objectives, or no trials.
    """
    import pandas as pd

    source = f"study {study.study_name}{where}"
    trials = study.get_trials(deepcopy=False)
    if any(IS_GRID_TRIAL in trial.system_attrs for trial in trials):
        raise UserError(
            f"{source} is one of this program: write it to a file with rnn-search export-study, "
            "and import the file"
        )
    if len(study.directions) > 1:
        raise UserError(f"{source} has {len(study.directions)} objectives: expected one")
    rows = []
    for trial in trials:
        row: dict[str, Any] = {"state": trial.state.name, "value": trial.value}
        for name, value in trial.params.items():
            row[f"params_{name}"] = "None" if value is None else value
        for step, loss in trial.intermediate_values.items():
            row[f"value_{step}"] = loss
        rows.append(row)
    table = _read_frame(pd.DataFrame(rows), source)
    table.maximize = study.direction == StudyDirection.MAXIMIZE
    table.is_adaptive = not all("grid_id" in trial.system_attrs for trial in trials)
    return table


# ------------------------------------------------------------------ imports


def _split_names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, Sequence) else value or ()


_Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]


class ImportOptions(Options):
    """What a user says about results. An import returns them with each role named."""

    value: str = option("value", "Column with the value of each trial.", metavar="COLUMN")
    maximize: bool | None = option(
        None,
        "Whether a higher value is better; by default as its name or the Optuna study says.",
        flag="--maximize/--minimize",
    )
    metric: str = option("", "Name of the value in the report.", metavar="NAME")
    unit: str = option("", "Unit of the value in the report.", metavar="TEXT")
    parameters: _Names = option(
        (),
        "Columns that are parameters; by default they are guessed and printed.",
        metavar="A,B,…",
        multiple=False,
    )
    replicate: str | None = option(
        None,
        "Column that numbers repeated runs; by default replicate or seed, if there is one.",
        metavar="COLUMN",
    )
    nuisance: _Names = option(
        (),
        "Parameters that are tuned for each configuration, not studied.",
        metavar="A,B,…",
        multiple=False,
    )

    @property
    def title(self) -> str:
        """Name of the value, for a reader."""
        return self.metric or _strip_prefix(self.value)


@dataclass(frozen=True)
class ImportedStudy:
    """What was imported.

    Attributes:
        counts: number of runs by state, for a reader.
        roles: what the columns are, one line for each role.
        command: command that imports the same and names each role; "" for a DataFrame.
    """

    name: str
    counts: str
    roles: list[str]
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
    """Make a study of results that another program recorded, as ``rnn_search.import_results`` does.

    Raises:
        UserError: if it cannot be imported; nothing is written.
    """
    words = ["rnn-search", "import", str(source)]
    if isinstance(source, str) and "://" in source:
        table, url, default_name = _open_study(source, study)
        words = [*words[:2], url, "--study", default_name]
    elif study is not None:
        raise UserError(f"study={study!r} is for the URL of a storage, and the source is none")
    elif isinstance(source, str | Path):
        table = _read_file(Path(source))
        default_name = Path(source).stem
    elif isinstance(source, optuna.Study):
        table = _read_study(source)
        default_name = source.study_name
    elif name is None:
        raise UserError("a DataFrame has no name: expected name=…")
    else:
        table = _read_frame(source, "DataFrame")
        default_name = name
    if name not in (None, default_name):
        words += ["--name", str(name)]
    name = name or default_name
    check_study_name(name)
    roles = _find_roles(table, options)
    is_sure = bool(options.parameters) or any(map(_has_prefix, roles.parameters))
    _check_repeats(table, roles, is_sure)
    command = ""
    if isinstance(source, str | Path):
        command = shlex.join([*words, *to_words(roles)])
    trials = _read_trials(table, roles)
    config = _build_config(table, roles)
    if not dry_run:
        _store(storage, name, config, trials, command)
    counts = count_statuses(Counter(trial.status for trial in trials)).describe()
    return ImportedStudy(name, counts, _describe(table, roles), command)


def _open_study(storage: str, study: str | None) -> tuple[_Table, str, str]:
    """Read a study of a storage, which need not be named if it is the only one.

    Returns:
        The table, the URL of the storage without a password, and the name of the study.
    """
    with closing(read_storage(storage)) as opened:
        url = redact(opened.engine.url.set(password=None))
        names = list_study_names(opened)
        if study is None and len(names) != 1:
            raise UserError(
                f"storage {url} has {len(names)} studies: choose one with --study, of "
                f"{', '.join(names) or 'none'}"
            )
        name = study or names[0]
        return _read_study(load_study(opened, name), f" of {url}"), url, name


# ------------------------------------------------------------------ roles of columns


def _find_roles(table: _Table, options: ImportOptions) -> ImportOptions:
    """Return options that name each role, those that the user left open by guesses.

    Raises:
        UserError: if a column that is named is not there, or it is unsure which are parameters.
    """
    value = table.find(options.value, "--value")
    maximize = table.maximize if options.maximize is None else options.maximize
    if maximize is None:
        maximize = _HIGHER_IS_BETTER.fullmatch(options.metric or _strip_prefix(value)) is not None
    parameters = [table.find(name, "--parameters") for name in options.parameters]
    if options.replicate is None:
        replicate = _find_replicate(table, [value, *parameters])
    else:
        replicate = table.find(options.replicate, "--replicate")
    others = _list_others(table, value, replicate)
    if not parameters:
        parameters = _guess_parameters(table, others)
    if not parameters or not set(parameters) <= set(others):
        raise UserError(
            f"{table.source} has no such parameters: expected columns that vary, other than the "
            f"value, the replicate and the curve: choose --parameters, of {', '.join(others)}"
        )
    nuisance = [table.find(name, "--nuisance") for name in options.nuisance]
    if not set(nuisance) < set(parameters):
        raise UserError(
            f"{table.source}: --nuisance names {', '.join(nuisance)}: expected some of "
            f"the parameters {', '.join(parameters)}, and not all"
        )
    found = {
        "value": value,
        "maximize": maximize,
        "parameters": tuple(parameters),
        "replicate": replicate,
        "nuisance": tuple(nuisance),
    }
    return options.model_copy(update=found)


def _find_replicate(table: _Table, taken: Sequence[str]) -> str | None:
    """Return the column that is called as if it numbered repeated runs, if it varies."""
    for name in table.columns:
        is_named = _REPLICATES.fullmatch(_strip_prefix(name))
        if is_named and name not in taken and table.count_values([name]) > 1:
            return name
    return None


def _check_repeats(table: _Table, roles: ImportOptions, is_sure: bool) -> None:
    """Refuse runs that repeat an earlier one, unless they may be replicates without a number.

    Raises:
        UserError: if the parameters were guessed, or a column numbers the runs already.
    """
    numbered = [] if roles.replicate is None else [roles.replicate]
    repeats = len(table.states) - table.count_values([*roles.parameters, *numbered])
    if repeats and (numbered or not is_sure):
        raise UserError(
            f"{table.source}: {format_count(repeats, 'run repeats', 'runs repeat')} the parameters "
            "of an earlier one: name the parameters with --parameters, or with --replicate the "
            "column that numbers repeated runs"
        )


def _list_others(table: _Table, value: str, replicate: str | None) -> list[str]:
    """Return the columns that may be parameters."""
    taken = [value, replicate, *_find_curve(table, value)]
    return [name for name in table.columns if name not in taken]


def _find_curve(table: _Table, value: str) -> dict[str, int]:
    """Return the step of each column of the curve: ``loss_50``, or that of the value's name."""
    pattern = re.compile(rf"(?:{re.escape(value)}|loss)_(\d{{1,9}})")
    matches = {name: pattern.fullmatch(name) for name in table.columns}
    return {name: int(match[1]) for name, match in matches.items() if match}


def _guess_parameters(table: _Table, names: Sequence[str]) -> list[str]:
    """Return the columns that are parameters.

    Raises:
        UserError: if names and values do not say which are.
    """
    varied = [name for name in names if table.count_values([name]) > 1]
    if any(map(_has_prefix, names)):
        return [name for name in varied if _has_prefix(name)]
    found = [
        name for name in varied if not (_RESULT.fullmatch(name) or _BOOKKEEPING.fullmatch(name))
    ]
    half = max(2, len(table.states) / 2)
    scattered = [name for name in found if table.count_values([name]) > half]
    if scattered and len(found) > 1:
        raise UserError(
            f"{table.source}: {', '.join(scattered)} may be parameters or results, with another "
            f"value in most rows: name the parameters with --parameters, of {','.join(found)}"
        )
    return found


def _has_prefix(name: str) -> bool:
    return name.startswith(_PARAMETER_PREFIXES) and not _RESULT.fullmatch(name)


def _name_parameter(column: str) -> str:
    """Return the name of a column's parameter; tables of results have columns of their own."""
    name = _strip_prefix(column)
    return f"{name}_" if name in RESULT_NAMES else name


def _describe(table: _Table, roles: ImportOptions) -> list[str]:
    """Return a line for each role."""
    others = _list_others(table, roles.value, roles.replicate)
    named = {
        "value": f"{roles.title} ({'higher' if roles.maximize else 'lower'} is better)",
        "parameters": ", ".join(map(_name_parameter, roles.parameters)),
        "replicates": roles.replicate,
        "curve": ", ".join(_find_curve(table, roles.value)),
        "left out": ", ".join(name for name in others if name not in roles.parameters),
    }
    return [f"{role}: {names}" for role, names in named.items() if names]


# ------------------------------------------------------------------ the study


def _read_trials(table: _Table, roles: ImportOptions) -> list[StoredTrial]:
    """Return the runs of a table. Without a column for it, their rows number repeated runs.

    Raises:
        UserError: if none is complete.
    """
    values = table.read_numbers(roles.value)
    steps = _find_curve(table, roles.value)
    curve = {step: table.read_numbers(name) for name, step in steps.items()}
    params = {_name_parameter(name): table.columns[name] for name in roles.parameters}
    if roles.replicate is not None:
        cells = table.columns[roles.replicate]
        distinct = list(dict.fromkeys(cells))
        params[REPLICATE] = [distinct.index(cell) + 1 for cell in cells]
    elif table.count_values(roles.parameters) < len(values):
        # No two runs of different parameters belong together.
        params[REPLICATE] = list(range(len(values)))
    trials = []
    for row, (state, value) in enumerate(zip(table.states, values, strict=True)):
        trial = StoredTrial(attributes={}, state=state)
        if state is TrialState.COMPLETE and value is not None and math.isfinite(value):
            trial.value = value
        elif state is TrialState.COMPLETE:
            trial.state = TrialState.FAIL
            trial.attributes = {} if value is None else {FAILURE: Failure.DIVERGED}
        trial.params = {
            name: cells[row] for name, cells in params.items() if cells[row] is not None
        }
        losses = {step: numbers[row] for step, numbers in curve.items()}
        trial.curve = {
            step: loss for step, loss in losses.items() if loss is not None and loss == loss
        }
        trials.append(trial)
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        raise UserError(f"{table.source}: no row is complete, with a finite value")
    return trials


def _build_config(table: _Table, roles: ImportOptions) -> StudyConfig:
    results = ImportedResults(
        source=table.source,
        metric=roles.title,
        unit=roles.unit,
        direction="maximize" if roles.maximize else "minimize",
        parameters=list(map(_name_parameter, roles.parameters)),
        notes=_describe(table, roles)[2:],
        is_adaptive=table.is_adaptive,
    )
    return StudyConfig(nuisance=list(map(_name_parameter, roles.nuisance)), results=results)


def _store(
    storage: str, name: str, config: StudyConfig, trials: Sequence[StoredTrial], command: str
) -> None:
    assert config.results is not None
    commands = [command] if command else []
    record = StudyRecord(config=config, commands=commands, artifact_folder=new_folder(name))
    study = StoredStudy(
        name,
        config.results.metric,
        record.attributes(),
        _find_distributions(trials),
        trials,
        StudyDirection[config.direction.upper()],
        to_note_attributes(write_note(name, config.question, commands)),
    )
    with closing(open_storage(storage)) as opened:
        if not create_study(opened, study):
            raise UserError(
                f"study {name!r} exists in {redact(opened.engine.url)} already: choose another "
                "--name, or delete it first"
            )


def _find_distributions(trials: Sequence[StoredTrial]) -> dict[str, BaseDistribution]:
    """Return what each parameter is drawn from: a range of numbers, or categories."""
    distributions: dict[str, BaseDistribution] = {}
    for name in dict.fromkeys(name for trial in trials for name in trial.params):
        values = dict.fromkeys(trial.params[name] for trial in trials if name in trial.params)
        kinds = set(map(type, values))
        if kinds == {int}:
            distributions[name] = IntDistribution(min(values), max(values))
        elif kinds == {float}:
            distributions[name] = FloatDistribution(min(values), max(values))
        else:
            distributions[name] = CategoricalDistribution(list(values))
    return distributions
