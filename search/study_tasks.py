"""The task or tasks of a study, each with its class and its options, or its text.

As with cells, the file of a task that the user names is executed, and otherwise the copy that the
study keeps.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from rnn.config import ParamValue
from rnn.errors import CorpusError, TaskError, UserError
from rnn.own_code import (
    CodeSource,
    TaskSource,
    describe_error,
    load_class,
    locate_source,
    read_source,
)
from rnn.tasks.built_in import find_built_in
from rnn.tasks.corpus import Corpus, load_corpus
from rnn.tasks.task import SequenceTask, Task, is_built_in
from rnn.tasks.text import Text
from rnn.tasks.tokenizer import ByteTokenizer, load_tokenizer, train_tokenizer
from search.study_cells import CodeStore, check_option_names, read_values
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.loader import ConfigFile
from studies.records import (
    TEXT,
    TaskLoss,
    TaskRecord,
    TaskSettings,
    TextRecord,
    first_message,
    read_task_options,
)
from studies.space import TASK, Params
from studies.study_settings import WINDOW_PARAMS

TaskOptions = tuple[tuple[str, ParamValue], ...]
"""Names and values of the options of the task in which the trials of a study differ; of several
tasks the name of one, as the parameter ``task``."""

ONLY = ""
"""Name of the task of a study that has one."""

_ROUNDING = 1e-5
"""Relative difference between sums over the same data that other processors may compute."""

_LOSSES = 64
"""Number of targets of which losses are compared."""

CORPUS, SEQUENCE_LENGTH = "task.corpus", "sequence_length"

_SLICE = 2**14
"""Bytes of each of the four slices of a text that are looked at."""

_REPEATED = 0.02
"""Share that compression leaves of a text that repeats itself; of English it leaves 0.3."""

_NUMERIC = 0.75
"""Share of numbers among the fields of a table; in sums such as ``1 + 2 = 3`` it is 0.6."""


@dataclass(frozen=True)
class StudyTask:
    """A task with the options that a study sets.

    Attributes:
        definition: class of the task.
        record: what the study stores.
        fixed: arguments of its constructor that are no options.
    """

    definition: type[Any]
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
    open_sources: Callable[[], CodeStore] | None = None,
) -> tuple[ConfigFile, dict[str, StudyTask]]:
    """Load the tasks of a config file; return the file with their records, and the tasks.

    They are those of :meth:`studies.loader.ConfigFile.task_specs` by name, or the study's only
    one, as :data:`ONLY`. Arguments and errors are those of :func:`load_task`.
    """
    specs, records = file.task_specs, stored.config.task_records if stored else {}
    if not specs and file.source is not None:  # a trial of one of them is run once more
        specs = {name: record.source for name, record in records.items()}
    if not specs:
        file, task = load_task(file, stored, open_sources)
        return file, {} if task is None else {ONLY: task}
    if "space.task" in file.overridden or not (file.is_stored or file.source):
        records = {}
    known = {name: record for name, record in records.items() if name in specs}
    found = {}
    if known:
        assert open_sources is not None
        found = load_recorded(known, open_sources())
    folder = file.folder_of("space.task").absolute()
    tasks = {
        name: found.get(name) or load_task_of(spec, {}, folder) for name, spec in specs.items()
    }
    return file.model_copy(update={"tasks": {n: each.record for n, each in tasks.items()}}), tasks


def load_recorded(records: Mapping[str, TaskRecord], sources: CodeStore) -> dict[str, StudyTask]:
    """Load several tasks of a stored study by name, a user's class from its copy.

    Raises:
        TaskError: as of :func:`load_task`.
    """
    tasks = {}
    for name, record in records.items():
        code = None
        if record.sha256 is not None:
            code = sources.read_source(TaskSource, name, record.source, record.sha256)
        tasks[name] = load_task_of(record.source, {}, Path(record.folder), code)
    return tasks


def load_task(
    file: ConfigFile,
    stored: StudyRecord | None,
    open_sources: Callable[[], CodeStore] | None = None,
) -> tuple[ConfigFile, StudyTask | None]:
    """Load the only task of a config file; return the file with its record, and the task.

    Args:
        file: the file.
        stored: record of the study that the file names, or that it derives from, if any.
        open_sources: opens the copies of that study's source files, if there is one.

    Returns:
        None for malformed settings, which are reported with the others.

    Raises:
        CorpusError: if a text cannot be read; the message says what to do.
        TaskError: if the source cannot be read, does not define a task, or the task cannot be
            built.
        UserError: if an option is unknown, or its value invalid.
    """
    stated: dict[str, Any] = file.settings.get("task", {})
    inherited: dict[str, Any] = stored.settings()["task"] if stored else {}
    try:
        settings = TaskSettings.model_validate(inherited | stated)
    except (ValidationError, TypeError):
        return file, None
    if settings.source == TEXT:
        file.resolve_from(stored)  # reports other mistakes before a text is read
        task = _load_text(file, settings)
        return file.model_copy(update={"task": task.record}), task
    names_source = "task.source" in file.overridden or (not file.is_stored and "source" in stated)
    earlier = stored.config.task_record if stored and not names_source else None
    folder = Path(earlier.folder) if earlier else file.folder_of("task.source").absolute()
    code = None
    try:
        if earlier is not None and earlier.sha256 is not None:
            assert open_sources is not None
            own = earlier.name, earlier.source, earlier.sha256
            code = open_sources().read_source(TaskSource, *own)
        task = load_task_of(settings.source, settings.options, folder, code)
    except TaskError as error:
        if earlier is None:
            raise
        study = file.name if file.is_stored else file.source
        raise TaskError(
            f"{error}; study {study!r} was trained on it: give its present place with --set "
            "'task.source=\"…\"'"
        ) from error
    return file.model_copy(update={"task": task.record}), task


def load_task_of(
    source: str, options: Mapping[str, Any], folder: Path, code: CodeSource | None = None
) -> StudyTask:
    """Load a task from a source as study files state it, and the values of its options.

    Args:
        source: the source.
        options: values of options by name.
        folder: folder that paths are relative to.
        code: text of a user's own class; None to read it.

    Raises:
        TaskError, UserError: as of :func:`load_task`.
    """
    settings = TaskSettings.model_validate({"source": source, **options})
    if settings.source == TEXT:
        raise TaskError(f"{source!r} is the task of a text: expected another one")
    built_in = find_built_in(source, folder) if code is None else None
    fixed: dict[str, Any] = {}
    if built_in is not None:
        (definition, given), sha256, name = built_in, None, source
        fixed |= given
    else:
        if code is None:
            code = read_source(source, folder, TaskSource)
            folder = locate_source(source, folder, TaskSource).parent
        definition, sha256, name = load_class(code), code.sha256, code.name
    try:
        options, takes_folder = read_task_options(definition)
        check_option_names(f"task {name}", options)
    except ValueError as error:
        raise TaskError(str(error)) from error
    options = {each: option for each, option in options.items() if each not in fixed}
    values = read_values(f"task {name}", options, settings.options)
    if takes_folder:
        fixed["folder"] = folder
    task = _build(definition, fixed | values, name)
    paths, spec = _list_files(task, folder), task.spec
    loss: TaskLoss = "cross-entropy" if spec.predicts_classes else "squared error"
    if spec.loss is not None:
        loss = "own"
    elif task.target_scaling is not None:
        loss = "standardized squared error"
    try:
        record = TaskRecord(
            source=settings.source,
            sha256=sha256,
            data_sha256=_hash_files(paths) if paths else None,
            version=getattr(task.definition, "version", 0),
            options=options,
            values=values,
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
            folder=str(folder),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise TaskError(
            f"task {name}: {place} is {first['input']!r}: {first_message(error)}"
        ) from error
    return StudyTask(definition, record, fixed, {(): task})


def locate_task(task: TaskRecord) -> str:
    """Return the source of a task with the absolute path of its file, if it has one."""
    if task.sha256 is None and task.data_sha256 is None:
        return task.source
    if task.sha256 is None:
        name, _, file = task.source.partition(":")
        return f"{name}:{Path(task.folder, file)}"
    place, _, name = task.source.rpartition(":")
    return f"{Path(task.folder, Path(place).name)}:{name}" if place.endswith(".py") else task.source


def _build(definition: type[Any], arguments: Mapping[str, Any], name: str) -> SequenceTask:
    try:
        built = definition(**arguments)
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        if is_built_in(definition) and not isinstance(error, ValueError):  # of an option
            raise
        raise TaskError(
            f"task {name} cannot be built: its class raises {describe_error(error)}"
        ) from error
    return SequenceTask(built, name)


def _list_files(task: SequenceTask, folder: str | Path) -> list[Path]:
    return [Path(folder) / path for path in getattr(task.definition, "files", ())]


def _hash_files(paths: Iterable[Path]) -> str:
    """Return one SHA-256 of the contents of files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise TaskError(f"file {path} of the task cannot be read: {error.strerror}") from error
        digest.update(f"{len(content)}\n".encode() + content)
    return digest.hexdigest()


def check_trials(
    config: StudyConfig, tasks: Mapping[str, StudyTask], trials: Iterable[Params]
) -> None:
    """Check the updates of trials, and the options of the task in which they differ.

    Raises:
        UserError: if an option changes more than the data of the training, or the updates of a
            trial contradict its log points.
        TaskError: if the task cannot be built with the options of a trial.
    """
    by_task: dict[str, list[Params]] = {name: [] for name in tasks}
    for params in trials:
        by_task[str(params[TASK]) if config.task_records else ONLY].append(params)
    windows: list[tuple[Params, int | None]] = []
    for name, each in by_task.items():
        windows += _list_windows(config, tasks[name], each)
    try:
        config.check_updates(windows)
    except ValueError as error:
        raise UserError(str(error)) from error


def _list_windows(
    config: StudyConfig, task: StudyTask, trials: Iterable[Params]
) -> list[tuple[Params, int | None]]:
    """Check the options of a task; return what determines the updates of its trials."""
    groups: dict[TaskOptions, list[Params]] = {}
    for params in trials:
        options = tuple((name, params[name]) for name in task.record.options if name in params)
        settings = {name: params[name] for name in WINDOW_PARAMS if name in params}
        group = groups.setdefault(options, [])
        if settings not in group:
            group.append(settings)
    if any(groups):
        # One after another first, so that the message names the one that is wrong.
        single = dict.fromkeys((option,) for options in groups for option in options)
        expected = _list_common(config, task.build_sequences())
        for options in dict.fromkeys((*single, *groups)):
            if _list_common(config, task.build_sequences(options)) != expected:
                stated = " and ".join(f"{name} = {value!r}" for name, value in options)
                raise UserError(
                    f"{stated} changes the held-out data, the sizes or the loss of task "
                    f"{task.record.name}: expected options in space.task that change the data of "
                    "the training alone; set others in [task], in a study for each value"
                )
    windows: list[tuple[Params, int | None]] = []
    for options, group in groups.items():
        steps = task.build_sequences(options).steps if options else task.record.steps
        windows += [(settings, steps) for settings in group]
    return windows


def _list_common(config: StudyConfig, task: SequenceTask) -> list[Any]:
    """Return what all trials of a study must have in common."""
    spec, count = task.spec, config.evaluation.windows
    common: list[Any] = [
        (spec.inputs, spec.outputs, spec.reads_tokens, spec.predicts_classes, spec.is_dense),
        (task.metrics, task.eval_lengths, task.is_standardized, task.output_names),
        task.summarize_held_out(count),
        spec.loss is not None,
    ]
    if spec.loss is not None:
        targets = torch.from_numpy(task.held_out("validation", count).targets).flatten(0, 1)
        targets = targets[:_LOSSES]
        outputs = torch.linspace(-1, 1, len(targets) * spec.outputs).view(-1, spec.outputs)
        common.append(spec.loss(outputs, targets).tolist())
    return common


def check_held_out(study: str, stored: StudyConfig, local: StudyConfig) -> None:
    """Require the held-out data of a worker to be those of its study.

    Raises:
        UserError: if they differ by more than rounding.
    """
    known = local.list_tasks()
    for name, record in stored.list_tasks().items():
        if name not in known:
            continue
        old, new = record.held_out, known[name].held_out
        if len(old) != len(new) or not np.allclose(old, new, _ROUNDING, 0):
            raise UserError(
                f"study {study!r} was created with other held-out data of task {record.name}, "
                "although its source and files are the same: expected data that depend on the "
                "arguments of sample alone, and the study's version of NumPy"
            )


# ------------------------------------------------------------------ text


def _load_text(file: ConfigFile, settings: TaskSettings) -> StudyTask:
    """Load the text of a config file, before a tokenizer is learned from it."""
    folder = file.folder_of(CORPUS)
    try:
        corpus = load_corpus(settings.corpus, folder)
    except CorpusError as error:
        if CORPUS in file.overridden:
            raise
        hint = ""
        if file.is_stored or "corpus" not in file.settings.get("task", {}):
            origin = file.origin if file.is_stored else f"study {file.source!r}"
            hint = f"; {origin} was trained on it: give its current path with --corpus"
        elif isinstance(error.__cause__, FileNotFoundError) and Path(settings.corpus).is_file():
            written = json.dumps(os.path.relpath(settings.corpus, folder), ensure_ascii=False)
            place = f"[task] of {file.origin}"
            hint = f"; the working directory has it: write corpus = {written} in {place}"
        raise CorpusError(f"{error}{hint}") from error
    text = TextRecord(
        corpus=corpus.name, sha256=corpus.sha256, length=len(corpus.text), split=corpus.split
    )
    # A corpus has at most as many tokens as bytes, so that it is long enough if those suffice.
    tokens = Text(corpus, ByteTokenizer())
    return StudyTask.of_text(tokens, TaskRecord.of_text(settings.tokenizer, text))


def describe_unsuitable(corpus: Corpus) -> str:
    """Return a warning if a file is hardly meant as a text, judged by a sample of it, or ""."""
    if corpus.path is None:
        return ""
    starts = np.linspace(0, max(0, len(corpus.text) - _SLICE), 4, dtype=int)
    slices = [corpus.text[start : start + _SLICE].tobytes() for start in starts]
    sample = b"".join(slices)
    compressed = len(zlib.compress(sample))
    if compressed < _REPEATED * len(sample):
        return (
            f"corpus {corpus.name} repeats itself ({len(sample):,} bytes of it compress to "
            f"{compressed:,}): every network can predict it, so that their losses say little"
        )
    lines = slices[0].split(b"\n")[1:-1]  # without a header, and the line that is cut
    fields = re.split(rb'[,;\s"]+', b" ".join(lines).strip())
    numbers = [field for field in fields if re.fullmatch(rb"[-+]?[\d.]+(e[-+]?\d+)?", field, re.I)]
    if len(numbers) > _NUMERIC * len(fields):
        return (
            f"corpus {corpus.name} looks like a table of numbers: it is read as text, character by "
            "character"
        )
    return ""


def learn_tokenizer(task: StudyTask, config: StudyConfig, source: StudyRecord | None) -> StudyTask:
    """Return the task of a new study; that of a text has its tokenizer.

    A refinement reuses the tokenizer of its source, whose record is given, if kind and corpus are
    the same; otherwise a tokenizer is trained on the training split.

    Raises:
        CorpusError: if the corpus is not that of a trial that is run once more.
    """
    text, found = task.text, task.record.text
    if text is None or found is None:
        return task
    earlier = source.config.task_record if source is not None else None
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
    tokens = Text(text.corpus, train_tokenizer(config.task.tokenizer, text.corpus.train))
    learned = found.model_copy(
        update={
            "bytes_per_token": len(text.corpus.train) / len(tokens.train),
            "tokenizer": tokens.tokenizer.serialized,
        }
    )
    size = tokens.tokenizer.size
    return StudyTask.of_text(tokens, TaskRecord.of_text(config.task.tokenizer, learned, size))


def check_length(
    tasks: Mapping[str, StudyTask], config: StudyConfig, trials: Iterable[Params] = ()
) -> None:
    """Check that each split of a text is as long as a config and, if given, each trial needs.

    Raises:
        CorpusError: if one is too short.
    """
    grid, study_length = config.grid, config.training.sequence_length
    values = grid.search_space.get(SEQUENCE_LENGTH) if grid else None
    lengths = [int(value) for value in values or [study_length]]
    lengths += [int(params.get(SEQUENCE_LENGTH, study_length)) for params in trials]
    for task in tasks.values():
        if task.text is not None:
            window = config.evaluation.window_length
            task.text.check_min_length(max(lengths), window, config.eval_split)
