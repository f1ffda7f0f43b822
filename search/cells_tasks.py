"""Cells and tasks of a study: load them, keep copies of their sources.

A file that the user names is executed by every process that trains a study. Its copy, next to the
study's weights, is executed where there is no such file: in a refinement, and in a study that is
opened by its stored name. A copy is executed only if its SHA-256 is the one in the study's record.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnn.config import ParamValue, TaskSpec
from rnn.errors import CellError, CorpusError, TaskError, UserError
from rnn.network import has_sequence_form
from rnn.own_code import (
    CellSource,
    CodeSource,
    TaskSource,
    describe_error,
    load_class,
    loaded_source,
    locate_source,
    read_source,
)
from rnn.tasks.built_in import find_built_in
from rnn.tasks.corpus import Corpus, load_corpus
from rnn.tasks.sequence_task import SequenceTask
from rnn.tasks.task import Task, is_built_in
from rnn.tasks.text import Text
from rnn.tasks.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from rnn.tasks.torch_datasets import find_definition
from studies.atomic_files import atomic_write
from studies.attributes import RESERVED_OPTION_NAMES, StudyRecord
from studies.config import StudyConfig
from studies.loader import ConfigFile, describe_mistakes
from studies.messages import expect_one_of
from studies.records import (
    TEXT,
    CellOption,
    CellRecord,
    TaskLoss,
    TaskRecord,
    TaskSettings,
    TextRecord,
    first_message,
    read_options,
    read_task_options,
)
from studies.space import TASK, cell_name

TaskOptions = tuple[tuple[str, ParamValue], ...]
"""Names and values of the options of the task in which the trials of a study differ; of several
tasks the name of one, as the parameter ``task``."""

ONLY = ""
"""Name of the task of a study that has one."""

CORPUS = "task.corpus"


def load_cells(file: ConfigFile) -> ConfigFile:
    """Load the users' cells that a config file names; return the file with their records.

    A cell of a stored study whose settings are opened by name is not loaded here.

    Raises:
        CellError: if a source cannot be read, or does not define a cell.
    """
    records: dict[str, CellRecord] = {}
    for spec in file.cell_specs:
        try:
            name = cell_name(spec)
        except ValueError:  # reported with the other settings
            continue
        # Two of a name are reported as well.
        if name not in records and name not in file.stored_cells:
            records[name] = load_record(spec, file.folder_of("space.cell"))
    return file.model_copy(update={"cells": records})


def load_record(spec: str, folder: Path) -> CellRecord:
    """Load a cell, as :func:`rnn.own_code.read_source` finds it; return what is stored.

    Raises:
        CellError: if its source cannot be read, or does not define a cell that can be searched.
    """
    source = read_source(spec, folder, CellSource)
    cls = load_class(source)
    try:
        options = read_options(cls)
        check_option_names(f"cell {source.name}", options)
    except ValueError as error:
        raise CellError(str(error)) from error
    return CellRecord(
        spec=spec,
        sha256=source.sha256,
        options=options,
        has_sequence_form=has_sequence_form(cls),
    )


def check_option_names(subject: str, options: Iterable[str]) -> None:
    """Require that no option of a cell or a task is named like another parameter or a result.

    Raises:
        ValueError: if one is; the message begins with the subject.
    """
    for name in options:
        if name in RESERVED_OPTION_NAMES:
            raise ValueError(
                f"{subject} has an option {name}, which is the name of another parameter or "
                "result of a trial: rename the option"
            )


def read_values(
    subject: str, options: Mapping[str, CellOption], given: Mapping[str, Any]
) -> dict[str, ParamValue]:
    """Return the values that are given for options of a cell or a task, each in its option's type.

    Raises:
        UserError: if an option is unknown, or a value invalid; the message begins with the
            subject.
    """
    values: dict[str, ParamValue] = {}
    for name, value in given.items():
        if name not in options:
            expected = expect_one_of(options, name) if options else "it has no options"
            raise UserError(f"{subject} has no option {name}: {expected}")
        try:
            options[name].check(f"{subject} has {name}", [value])
        except ValueError as error:
            raise UserError(str(error)) from error
        values[name] = options[name].convert(value)
    return values


# ------------------------------------------------------------------ copies of sources


class CodeStore:
    """Copies of the source files of a study's cells and its task, in a folder of the study."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, cells: Mapping[str, CellRecord], tasks: Iterable[TaskRecord]) -> None:
        """Write the sources of cells, and of the classes of tasks, which are loaded.

        Raises:
            UserError: if one cannot be written.
        """
        sources: list[CodeSource] = [
            loaded_source(name, record.sha256) for name, record in cells.items()
        ]
        for task in tasks:
            if task.sha256 is not None:
                sources.append(loaded_source(task.name, task.sha256, TaskSource))
        for source in sources:
            try:
                atomic_write(self._path(source.kind, source.name), [source.text.encode()])
            except OSError as error:
                raise UserError(
                    f"the source of {source.kind} {source.name} cannot be written to "
                    f"{self._folder} ({error}): check --artifacts"
                ) from error

    def load(self, cells: Mapping[str, CellRecord]) -> None:
        """Load cells from their copies, unless they are loaded.

        Raises:
            CellError: if there is no copy, or it is not the file that the study was created with,
                or the cell would train by another form.
        """
        for name, record in cells.items():
            cls = load_class(self.read_source(CellSource, name, record.spec, record.sha256))
            if has_sequence_form(cls) != record.has_sequence_form:
                given, here = ("a", "none") if record.has_sequence_form else ("no", "one")
                raise CellError(
                    f"cell {name} had {given} sequence form when its study was created, and has "
                    f"{here} here: expected the same version of the package that defines it"
                )

    def read_source(self, kind: type[CodeSource], name: str, spec: str, sha256: str) -> CodeSource:
        """Return the source of a class that is loaded, or else its copy.

        Raises:
            CellError, TaskError: if there is no copy, or it is not the file that the study was
                created with.
        """
        with contextlib.suppress(kind.error):
            return loaded_source(name, sha256, kind)
        where = f"the source of {kind.kind} {name} in {self._folder}"
        try:
            content = self._path(kind.kind, name).read_bytes()
        except OSError as error:
            raise kind.error(
                f"{where} cannot be read ({error.strerror}): check --artifacts, or use the study's "
                "own file"
            ) from error
        source = kind(spec, name, content.decode(errors="replace"))
        if source.sha256 != sha256:
            raise kind.error(
                f"{where} is not the file that the study was created with (SHA-256 "
                f"{sha256[:8]}…): restore it"
            )
        return source

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}-{name}.py"


# ------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class StudyTask:
    """A task with the options that a study sets.

    Attributes:
        definition: class of the task, or what reads its dataset.
        record: what the study stores.
        fixed: arguments of its constructor that are no options.
    """

    definition: Callable[..., Any]
    record: TaskRecord
    fixed: Mapping[str, Any]
    _built: dict[TaskOptions, Task] = field(default_factory=dict)

    @classmethod
    def of_text(cls, text: Text, record: TaskRecord) -> "StudyTask":
        """Return the task of a text, with the record of it, or before its tokenizer is learned."""
        return cls(Text, record, {}, {(): text})

    @property
    def text(self) -> Text | None:
        """The text, in the task of one."""
        built = self._built.get(())
        return built if isinstance(built, Text) else None

    def build(self, options: TaskOptions = ()) -> Task:
        """Return the task with some options in place of those of the study.

        Raises:
            TaskError: if it cannot be built.
        """
        if options not in self._built:
            self._built[options] = self.rebuild(options)
        return self._built[options]

    def build_sequences(self, options: TaskOptions = ()) -> SequenceTask:
        """Return what :meth:`build` does, in a task other than text."""
        built = self.build(options)
        assert isinstance(built, SequenceTask)
        return built

    def rebuild(self, options: TaskOptions = ()) -> SequenceTask:
        """Return a new instance of the task, as :meth:`build` does."""
        values = {**self.fixed, **self.record.values, **dict(options)}
        return _build(self.definition, values, self.record.name)

    def with_tokenizer(self, stored: TaskRecord) -> "StudyTask":
        """Return the task of a text with the tokenizer that a study stores; others unchanged."""
        if self.text is None or stored.text is None:
            return self
        tokens = Text(self.text.corpus, load_tokenizer(stored.text.tokenizer))
        found = stored.text.model_copy(update={"corpus": tokens.corpus.name})
        return StudyTask.of_text(tokens, stored.model_copy(update={"text": found}))


def build_task(tasks: Mapping[str, StudyTask], options: TaskOptions) -> Task:
    """Return the task of a trial, given its options, of several tasks the name of one."""
    if ONLY in tasks:
        return tasks[ONLY].build(options)
    return tasks[str(dict(options)[TASK])].build()


def spec_of(tasks: Mapping[str, StudyTask], options: TaskOptions) -> TaskSpec:
    """Return what the network of a trial reads and predicts, see :func:`build_task`."""
    # The options of one task change its training data alone.
    return build_task(tasks, () if ONLY in tasks else options).spec


def with_held_out(config: StudyConfig, tasks: Mapping[str, StudyTask]) -> StudyConfig:
    """Return a config whose records of the tasks have sums over the held-out data."""
    windows = config.evaluation.windows
    records = {
        name: task.record.model_copy(update={"held_out": task.build().summarize_held_out(windows)})
        for name, task in tasks.items()
    }
    return with_records(config, records)


def with_records(config: StudyConfig, records: Mapping[str, TaskRecord]) -> StudyConfig:
    """Return a config with other records of some tasks by name."""
    if ONLY in records:
        return config.model_copy(update={"task_record": records[ONLY]})
    return config.model_copy(update={"task_records": {**config.task_records, **records}})


def load_tasks(
    file: ConfigFile,
    stored: StudyRecord | None,
    sources: CodeStore | None = None,
) -> tuple[ConfigFile, dict[str, StudyTask]]:
    """Load the tasks of a config file; return the file with their records, and the tasks.

    They are those of :attr:`studies.loader.ConfigFile.task_entries` by name, or the study's only
    one, as :data:`ONLY`; none for malformed settings, which are reported with the others.

    Args:
        file: the file.
        stored: record of the study that the file names, or that it derives from, if any.
        sources: copies of that study's source files, if there is one.

    Raises:
        CorpusError: if a text cannot be read; the message says what to do.
        TaskError: if a source cannot be read, does not define a task, or the task cannot be built.
        UserError: if an option is unknown, or its value invalid.
    """
    entries = file.task_entries
    records = stored.config.task_records if stored else {}
    if not entries and file.source is not None:  # it trains on those of its source
        entries = {name: record.entry for name, record in records.items()}
    settings = _read_settings(file, stored)
    if not entries:
        if settings is None:
            return file, {}
        task = _load_only(file, settings, stored, sources)
        return file.model_copy(update={"task": task.record}), {ONLY: task}
    if "space.task" in file.overridden or not (file.is_stored or file.source):
        records = {}
    tasks = {}
    for name, entry in entries.items():
        if entry.source == TEXT:  # read where the settings say, whatever is recorded
            if settings is not None:
                tasks[name] = _load_text(file, settings)
        elif name in records:
            assert sources is not None
            tasks[name] = load_recorded(records[name], sources)
        else:
            folder = file.folder_of("space.task").absolute()
            tasks[name] = load_task_of(entry.source, entry.options, folder)
    _require_distinct(tasks)
    found_records = {name: task.record for name, task in tasks.items()}
    return file.model_copy(update={"tasks": found_records}), tasks


def _require_distinct(tasks: Mapping[str, StudyTask]) -> None:
    """Require that no two tasks are the same, such as one with an option at its default."""
    seen: dict[Hashable, str] = {}
    for name, task in tasks.items():
        values = {option: task.record.value(option) for option in task.record.options}
        key = inspect.unwrap(task.definition), frozenset({**task.fixed, **values}.items())
        other = seen.setdefault(key, name)
        if other != name:
            raise TaskError(
                f"tasks {other} and {name} are the same, by the defaults of their options: "
                "expected distinct tasks in space.task"
            )


def load_recorded(record: TaskRecord, sources: CodeStore) -> StudyTask:
    """Load one of several tasks of a stored study, a user's class from its copy.

    Raises:
        TaskError, CorpusError: as of :func:`load_tasks`.
    """
    if record.text is not None:
        return _read_text(load_corpus(record.text.corpus, Path()), str(record.values["tokenizer"]))
    code = None
    if record.sha256 is not None:
        code = sources.read_source(TaskSource, record.name, record.source, record.sha256)
    return load_task_of(record.source, record.values, Path(record.folder), code)


def _load_only(
    file: ConfigFile,
    settings: TaskSettings,
    stored: StudyRecord | None,
    sources: CodeStore | None,
) -> StudyTask:
    """Load the only task of a config file, see :func:`load_tasks`."""
    if settings.source == TEXT:
        file.resolve_from(stored)  # reports other mistakes before a text is read
        return _load_text(file, settings)
    names_source = "task.source" in file.overridden or (
        not file.is_stored and "source" in file.settings.get("task", {})
    )
    earlier = stored.config.task_record if stored and not names_source else None
    if earlier is None:
        folder = file.folder_of("task.source").absolute()
        return load_task_of(settings.source, settings.options, folder)
    code = None
    try:
        if earlier.sha256 is not None:
            assert sources is not None
            code = sources.read_source(TaskSource, earlier.name, earlier.source, earlier.sha256)
        return load_task_of(settings.source, settings.options, Path(earlier.folder), code)
    except TaskError as error:
        study = file.name if file.is_stored else file.source
        raise TaskError(
            f"{error}; study {study!r} was trained on it: give its present place with --set "
            "'task.source=\"…\"'"
        ) from error


def _read_settings(file: ConfigFile, stored: StudyRecord | None) -> TaskSettings | None:
    """Return ``[task]`` of a config file over that of a stored study; None if it is malformed."""
    inherited: dict[str, Any] = stored.settings()["task"] if stored else {}
    try:
        return TaskSettings.model_validate(inherited | file.settings.get("task", {}))
    except (ValidationError, TypeError):
        return None


def load_task_of(
    source: str, options: Mapping[str, Any], folder: Path, code: CodeSource | None = None
) -> StudyTask:
    """Load a task from a source as study files state it, and the values of its options.

    Without the ``code`` of a user's own class, the source is read, relative to ``folder``.

    Raises:
        TaskError, UserError: as of :func:`load_tasks`.
    """
    try:
        settings = TaskSettings.model_validate({"source": source, **options})
    except ValidationError as error:
        raise UserError(f"task {source}: {describe_mistakes(error)}") from error
    if settings.source == TEXT:
        raise TaskError(f"{source!r} is the task of a text: expected another one")
    built_in = find_built_in(source, folder) if code is None else None
    fixed: dict[str, Any] = {}
    if built_in is not None:
        definition, given = built_in
        fixed |= given
        name = source
    else:
        if code is None:
            code = read_source(source, folder, TaskSource)
            folder = locate_source(source, folder, TaskSource).parent
        name = code.name
        definition = find_definition(load_class(code), name)
    try:
        options, takes_folder = read_task_options(definition)
        check_option_names(f"task {name}", options)
    except ValueError as error:
        raise TaskError(str(error)) from error
    options = {option: found for option, found in options.items() if option not in fixed}
    values = read_values(f"task {name}", options, settings.options)
    if takes_folder:
        fixed["folder"] = folder
    task = _build(definition, fixed | values, name)
    record = _describe(
        task,
        folder,
        source=settings.source,
        sha256=None if code is None else code.sha256,
        options=options,
        values=values,
    )
    return StudyTask(definition, record, fixed, {(): task})


def _describe(task: SequenceTask, folder: Path, **stated: Any) -> TaskRecord:
    """Return the record of a task, with what is stated about its source and its options."""
    spec = task.spec
    files = [folder / path for path in getattr(task.definition, "files", ())]
    data_sha256 = getattr(task.definition, "data_sha256", None)  # of a dataset
    loss: TaskLoss = "cross-entropy" if spec.predicts_classes else "squared error"
    if spec.loss is not None:
        loss = "own"
    elif task.target_scaling is not None:
        loss = "standardized squared error"
    try:
        return TaskRecord(
            data_sha256=_hash_files(files) if files else data_sha256,
            version=getattr(task.definition, "version", 0),
            inputs=spec.inputs,
            outputs=spec.outputs,
            reads_tokens=spec.reads_tokens,
            predicts_classes=spec.predicts_classes,
            steps=task.steps,
            loss=loss,
            metrics=task.metrics,
            eval_lengths=task.eval_lengths,
            solved=task.solved,
            unit=task.loss_unit,
            resets_often=task.resets_often,
            needs_input=task.needs_input,
            folder=str(folder),
            **stated,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise TaskError(
            f"task {task.name}: {place} is {first['input']!r}: {first_message(error)}"
        ) from error


def locate_task(task: TaskRecord) -> str:
    """Return the source of a task with the absolute path of its file, if it has one."""
    if task.sha256 is None and task.data_sha256 is None:
        return task.source
    if task.sha256 is None:
        name, _, file = task.source.partition(":")
        return f"{name}:{Path(task.folder, file)}"
    place, _, name = task.source.rpartition(":")
    return f"{Path(task.folder, Path(place).name)}:{name}" if place.endswith(".py") else task.source


def _build(definition: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> SequenceTask:
    try:
        built = definition(**arguments)
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        if is_built_in(definition) and not isinstance(error, ValueError):  # of an option
            raise
        raise TaskError(
            f"task {name} cannot be built: its code raises {describe_error(error)}"
        ) from error
    return SequenceTask(built, name)


def _hash_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise TaskError(f"file {path} of the task cannot be read: {error.strerror}") from error
        digest.update(f"{len(content)}\n".encode() + content)
    return digest.hexdigest()


# ------------------------------------------------------------------ text


def _load_text(file: ConfigFile, settings: TaskSettings) -> StudyTask:
    """Load the text of a config file, before a tokenizer is learned from it."""
    try:
        corpus = load_corpus(settings.corpus, file.folder_of(CORPUS))
    except CorpusError as error:
        if CORPUS in file.overridden:
            raise
        if "corpus" in file.settings.get("task", {}) and not file.is_stored:
            raise
        origin = file.origin if file.is_stored else f"study {file.source!r}"
        raise CorpusError(
            f"{error}; {origin} was trained on it: give its current path with --corpus"
        ) from error
    return _read_text(corpus, settings.tokenizer)


def _read_text(corpus: Corpus, tokenizer: str) -> StudyTask:
    """Return the task of a corpus, before a tokenizer is learned from it."""
    text = TextRecord(
        corpus=corpus.name, sha256=corpus.sha256, length=len(corpus.text), split=corpus.split
    )
    # A corpus has at most as many tokens as bytes, so that it is long enough if those suffice.
    tokens = Text(corpus, Tokenizer())
    return StudyTask.of_text(tokens, TaskRecord.of_text(tokenizer, text))


def learn_tokenizer(task: StudyTask, config: StudyConfig, earlier: TaskRecord | None) -> StudyTask:
    """Return the task of a new study; that of a text has its tokenizer.

    A refinement reuses the tokenizer of its source, whose record of the task is given, if kind and
    corpus are the same; otherwise a tokenizer is trained on the training split.

    Raises:
        CorpusError: if the corpus is not that of a trial that is run once more.
    """
    text = task.text
    found = task.record.text
    if text is None or found is None:
        return task
    if config.refinement is not None and earlier is not None and earlier.text is not None:
        is_same_corpus = earlier.text.sha256 == found.sha256
        if config.refinement.trial is not None and not is_same_corpus:
            raise CorpusError(
                f"corpus {found.corpus} has SHA-256 {found.sha256[:8]}…, that of study "
                f"{config.refinement.source!r} {earlier.text.sha256[:8]}…: a trial is run once "
                "more on the same text; give its path with --corpus"
            )
        if is_same_corpus and earlier.values == task.record.values:
            return task.with_tokenizer(earlier)
    kind = str(task.record.values["tokenizer"])
    tokens = Text(text.corpus, train_tokenizer(kind, text.corpus.train))
    learned = found.model_copy(
        update={
            "bytes_per_token": len(text.corpus.train) / len(tokens.train),
            "tokenizer": tokens.tokenizer.serialized,
        }
    )
    size = tokens.tokenizer.size
    return StudyTask.of_text(tokens, TaskRecord.of_text(kind, learned, size))
