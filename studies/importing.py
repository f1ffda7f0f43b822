"""Studies of results that other programs recorded: tables, and studies of plain Optuna."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
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
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from studies.attributes import IS_GRID_TRIAL, StudyRecord
from studies.config import StudyConfig
from studies.errors import ConfigError, StudyExistsError, TableError
from studies.hypotheses import Hypothesis, register
from studies.loader import describe_mistakes, load_hypotheses, parse_hypotheses
from studies.note import to_attributes, write_text
from studies.result_table import ImportedRuns, read_frame, read_table, strip_prefix
from studies.settings import ImportedResults
from studies.space import REPLICATE
from studies.storage.changes import create_study
from studies.storage.counts import count_statuses
from studies.storage.engine import parse_url, redact
from studies.storage.open import list_study_names, load_study, open_storage, read_storage
from studies.storage.whole_study import new_folder
from studies.text import check_study_name, shorten, to_line

if TYPE_CHECKING:
    import pandas as pd

MAX_PARAMETERS = 100
"""Number of parameters above which results are refused."""

_SUFFIXES = (".gz", ".bz2", ".xz", ".csv", ".tsv", ".txt")

Hypotheses = str | Path | Sequence[Hypothesis | Mapping[str, Any]]
"""The path of a file of hypotheses, or the hypotheses."""


def _option(metavar: str | None, default: Any, *text: str) -> Any:
    return field(default=default, metadata={"metavar": metavar, "help": " ".join(text)})


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a user says about results: the options of ``rnn-search import``, with their help.

    Several names are a list in Python, and hypotheses may be a list of tables there.

    Raises:
        ConfigError: if a text is given for a list.
    """

    value: str | None = _option(
        "COLUMN", None, "Column of the results, or objective of a study; by default value."
    )
    maximize: bool | None = _option(
        None,
        None,
        "Whether a higher value is better; by default as the study says, or a lower one.",
    )
    metric: str = _option("NAME", "", "Name of the value, for the report.")
    unit: str = _option("TEXT", "", "Unit of the value, for the report.")
    question: str = _option("TEXT", "", "Question that the report answers.")
    parameters: Sequence[str] = _option(
        "A,B,…", (), "Columns that are parameters; by default a guess, which is printed."
    )
    ignore: Sequence[str] = _option("A,B,…", (), "Columns that are neither parameters nor results.")
    replicate: str | None = _option(
        "COLUMN",
        None,
        "Column that numbers runs of equal parameters; by default replicate or seed.",
    )
    curve: str = _option(
        "PREFIX", "loss_", "Prefix of the columns of a curve: loss_50 is the value at step 50."
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
        for name in ("parameters", "ignore", "nuisance"):
            if isinstance(given := getattr(self, name), str):
                raise ConfigError(f"{name}={given!r} is a text: expected a list of names")


@dataclass(frozen=True)
class ImportedStudy:
    """What was imported.

    Attributes:
        name: name of the study.
        source: file or study that the results were read from.
        counts: number of runs by state, for a reader.
        parameters: names of its parameters.
        roles: what the columns are, one line for each role.
        notes: what was decided or is doubtful, one sentence each.
    """

    name: str
    source: str
    counts: str
    parameters: list[str]
    roles: list[str]
    notes: list[str]


def import_results(
    storage: str,
    source: "str | Path | pd.DataFrame | optuna.Study",
    options: ImportOptions,
    *,
    study: str | None = None,
    name: str | None = None,
    command: str = "",
    dry_run: bool = False,
) -> ImportedStudy:
    """Make a study of results that another program recorded.

    Args:
        storage: URL of the storage, which is created if it does not exist.
        source: where the results are; it and the names as in :func:`rnn_search.import_results`.
        options: what the columns are.
        study: name of the study in the storage ``source``.
        name: name of the new study.
        command: command that imports it, for the report.
        dry_run: whether to write nothing.

    Raises:
        StudiesError: if it cannot be imported; nothing is written. About a table the message names
            the row and the column.
    """
    url = source if isinstance(source, str) and "://" in source else None
    if study is not None and url is None:
        given = to_line(shorten(str(source)))
        raise ConfigError(f"study={study!r} is for the URL of a storage: {given} is none")
    default_name = ""
    if url is not None:
        where = redact(parse_url(url))
        with closing(read_storage(url)) as opened:
            names = list_study_names(opened)
            if study is None and len(names) != 1:
                raise ConfigError(
                    f"storage {where} has {len(names)} studies: choose one with --study, of "
                    f"{', '.join(map(to_line, names)) or 'none'}"
                )
            default_name = study or names[0]
            runs = _read_study(load_study(opened, default_name), f" of {where}", options)
    elif isinstance(source, optuna.Study):
        default_name = source.study_name
        runs = _read_study(source, "", options)
    elif isinstance(source, str | Path):
        default_name = Path(source).name
        while Path(default_name).suffix in _SUFFIXES and Path(default_name).stem:
            default_name = Path(default_name).stem
        runs = read_table(Path(source), options)
    elif not hasattr(source, "columns"):
        raise ConfigError(
            f"cannot import a {type(source).__name__}: expected the path of a table, a DataFrame, "
            "a study of Optuna or the URL of its storage"
        )
    else:
        runs = read_frame("DataFrame", source, options)
    if name is None and not default_name:
        raise ConfigError("a DataFrame has no name: expected name=…")
    name = default_name if name is None else name
    check_study_name(name)
    return _store(storage, name, runs, options, command, dry_run)


# ------------------------------------------------------------------ studies of plain Optuna


def _read_study(study: optuna.Study, where: str, options: ImportOptions) -> ImportedRuns:
    """Read the results of a study of plain Optuna, as the table that Optuna would write."""
    import pandas as pd

    trials, source = study.get_trials(deepcopy=False), f"study {to_line(study.study_name)}{where}"
    if any(IS_GRID_TRIAL in trial.system_attrs for trial in trials):
        raise ConfigError(
            f"{source} is one of this program: copy it with rnn-search copy {study.study_name} "
            "--to URL"
        )
    if not any(trial.state.is_finished() for trial in trials):
        raise ConfigError(f"{source} has no finished trial: expected one or more")
    place = _find_objective(study, source, options)
    rows = [
        {f"params_{name}": _to_scalar(value) for name, value in trial.params.items()}
        | {"state": trial.state.name, "value": trial.values[place] if trial.values else None}
        for trial in trials
    ]
    frame = pd.DataFrame(rows, [trial.number for trial in trials], dtype=object)
    is_maximized = study.directions[place] == StudyDirection.MAXIMIZE
    options = replace(
        options,
        value="value",
        maximize=is_maximized if options.maximize is None else options.maximize,
        metric=options.metric or (study.metric_names[place] if study.metric_names else "value"),
    )
    runs = read_frame(source, frame, options, row_name="trial")
    kept = [trial for trial in trials if trial.state.is_finished()]
    for trial, stored in zip(kept, runs.trials, strict=True):
        stored.curve = dict(trial.intermediate_values)
        stored.started, stored.completed = trial.datetime_start, trial.datetime_complete
    runs.is_adaptive = not all("grid_id" in trial.system_attrs for trial in kept)
    runs.distributions = _find_distributions(kept)
    return runs


def _find_objective(study: optuna.Study, source: str, options: ImportOptions) -> int:
    """Return the place of the objective to import."""
    count, names = len(study.directions), list(study.metric_names or ())
    known = [*(f"values_{place}" for place in range(count)), *names]
    if count == 1 and options.value in (None, "value"):
        return 0
    if options.value not in known:
        problem = f"{count} objectives" if count > 1 else f"no objective {options.value!r}"
        raise ConfigError(
            f"{source} has {problem}: choose one with --value, of {', '.join(map(to_line, known))}"
        )
    return known.index(options.value) % count


def _to_scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _find_distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter that has the same in all trials."""
    found: dict[str, BaseDistribution] = {}
    for name in {name for trial in trials for name in trial.params}:
        first, *others = [t.distributions[name] for t in trials if name in t.distributions]
        if isinstance(first, CategoricalDistribution):
            choices = list(dict.fromkeys(map(_to_scalar, first.choices)))
            if len({type(each) for each in choices}) > 1:  # they are stored as texts
                continue
            found[name] = CategoricalDistribution(choices)
        elif all(each == first for each in others):
            found[name] = first
    return found


# ------------------------------------------------------------------ the study


def _store(
    storage: str,
    name: str,
    runs: ImportedRuns,
    options: ImportOptions,
    command: str,
    dry_run: bool,
) -> ImportedStudy:
    """Check results, and store them as a study in one transaction."""
    trials = runs.trials
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    parameters = [name for name in names if name != REPLICATE]
    if not parameters or len(parameters) > MAX_PARAMETERS:
        raise TableError(
            f"{runs.source}: {len(parameters) or 'no'} parameters: expected 1 to "
            f"{MAX_PARAMETERS}; choose them with --parameters"
        )
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        raise TableError(
            f"{runs.source}: no row is complete, with a finite value: expected one or more"
        )
    _check_repeats(runs)
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for key, value in trial.params.items():
            values.setdefault(key, []).append(value)
    config = _build_config(runs, options, values)
    count = len(trials)
    record = StudyRecord(
        config=config,
        commands=[command] if command else [],
        artifact_folder=new_folder(name),
        hypotheses=register([], config.hypothesis, count),
    )
    if not dry_run:
        direction = StudyDirection.MAXIMIZE if runs.maximize else StudyDirection.MINIMIZE
        distributions = {
            key: runs.distributions.get(key) or _find_distribution(each)
            for key, each in values.items()
        }
        with closing(open_storage(storage)) as opened:
            if not create_study(
                opened,
                name,
                runs.metric,
                record.attributes(),
                distributions,
                trials,
                direction,
                to_attributes(write_text(name, config.question, record.commands)),
            ):
                raise StudyExistsError(
                    f"study {name!r} exists in {redact(opened.engine.url)} already: choose another "
                    "--name, or delete it first"
                )
    counts = asdict(count_statuses(Counter(trial.status for trial in trials)))
    described = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    return ImportedStudy(name, runs.source, described, parameters, runs.roles, runs.notes)


def _build_config(
    runs: ImportedRuns, options: ImportOptions, values: Mapping[str, Sequence[Any]]
) -> StudyConfig:
    """Build the config of the study; what the options name has to be in the runs."""
    hypotheses = _read_hypotheses(options)
    names = [each for each in values if each != REPLICATE]
    try:
        config = StudyConfig(
            question=options.question,
            report_threshold=options.threshold,
            nuisance=[strip_prefix(each) for each in options.nuisance],
            hypothesis=hypotheses,
            results=ImportedResults(
                source=runs.source,
                metric=runs.metric,
                unit=options.unit,
                direction="maximize" if runs.maximize else "minimize",
                parameters=names,
                notes=[*runs.roles[2:], *runs.notes],
                is_adaptive=runs.is_adaptive,
            ),
        )
    except ValidationError as error:
        raise ConfigError(f"{runs.source}: {describe_mistakes(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{runs.source}: {error}") from error
    if set(names) <= set(config.nuisance):
        raise ConfigError(f"{runs.source}: nuisance names all parameters: expected others")
    tuned, judged = (
        {
            frozenset((name, each) for name, each in trial.params.items() if name not in left_out)
            for trial in runs.trials
        }
        for left_out in ([REPLICATE], [REPLICATE, *config.nuisance])
    )
    if config.nuisance and len(judged) == len(tuned):
        raise ConfigError(
            f"{runs.source}: nuisance names {config.nuisance[0]!r}, which has one value for each "
            "configuration: expected several values for the same other parameters"
        )
    return config


def _read_hypotheses(options: ImportOptions) -> list[Hypothesis]:
    if isinstance(options.hypotheses, str | Path):
        return load_hypotheses(Path(options.hypotheses))
    if options.hypotheses is None:
        return []
    return parse_hypotheses({"hypothesis": list(options.hypotheses)}, "hypotheses")


def _check_repeats(runs: ImportedRuns) -> None:
    """Distinguish runs of equal parameters by a replicate, or refuse them."""
    seen: dict[Any, str] = {}
    repeats = 0
    for place, trial in zip(runs.places, runs.trials, strict=True):
        # In Python true equals 1, which is another value.
        key = frozenset((name, type(each) is bool, each) for name, each in trial.params.items())
        if key in seen and not runs.numbers_repeats:
            same = " and the same replicate" if REPLICATE in trial.params else ""
            raise TableError(
                f"{runs.source}: {seen[key]} and {place} have the same parameters{same}: "
                "expected rows that differ; name the column that numbers repeated runs with "
                "--replicate, or more --parameters"
            )
        repeats += key in seen
        seen.setdefault(key, place)
    if repeats:
        # A number of its own for each run: no two runs of different parameters belong together.
        for number, trial in enumerate(runs.trials):
            trial.params[REPLICATE] = number
        repeat = "run repeats" if repeats == 1 else "runs repeat"
        runs.notes.append(
            f"{repeats:,} {repeat} the parameters of an earlier one: they count as replicates."
        )


def _find_distribution(values: Iterable[Any]) -> BaseDistribution:
    """Return the distribution from which values may be: a range of numbers, or categories."""
    found = list(dict.fromkeys(values))
    if all(type(value) is int for value in found):
        return IntDistribution(min(found), max(found))
    if all(type(value) in (int, float) for value in found):
        return FloatDistribution(float(min(found)), float(max(found)))
    return CategoricalDistribution(found)
