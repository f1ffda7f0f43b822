"""Stored studies: their results, and their trained networks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna import Study as OptunaStudy
from optuna.storages import InMemoryStorage

from rnn.errors import TaskError, UserError
from rnn_search.errors import require_text, to_path
from search.derive import find_trial
from studies.best import BestReader
from studies.config import StudyConfig
from studies.locations import artifacts_or_default, storage_or_default
from studies.messages import shorten
from studies.option_models import build_options
from studies.space import TASK, Params
from studies.storage.counts import TrialCounts, count_trials
from studies.storage.database import database_path, parse_url
from studies.storage.open import load_study, read_record, read_storage
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial
from studies.trial_params import label_trial

if TYPE_CHECKING:  # slow to import
    import numpy.typing as npt
    import pandas as pd
    from torch import nn

    from reports.results import Results
    from rnn.export import SavedModel
    from rnn_search.printed_results import Effects, TaskEffects, Verdicts
    from search.status import Status
    from search.worker.loop_trial import Trial


def load(
    name: str,
    *,
    storage: str | None = None,
    artifacts: str | Path | None = None,
    task: str = "",
) -> "Study":
    """Open a stored study without changing it.

    Args:
        name: name of the study.
        storage: URL of the storage; by default ``$RNN_SEARCH_STORAGE``, or
            ``sqlite:///studies/studies.db`` in the working directory.
        artifacts: folder of its weights; by default ``$RNN_SEARCH_ARTIFACTS``, or next to the
            storage. Relative paths are those of the working directory at this call.
        task: name of a task, in a study of several; see :meth:`Study.at_task`.

    Raises:
        UserError: if the name is not a text, or the study does not have the task.
        StorageError: if the storage does not exist or cannot be opened.
        StudyNotFoundError: if it has no such study.
        StudyFormatError: if another program, or another version of this one, stored the study.
    """
    require_text(name=name)
    place = artifacts_or_default(artifacts)
    if place is not None and "://" not in place:
        place = str(Path(place).absolute())
    url = _to_absolute_url(storage_or_default(storage))
    study = Study(name, url, place)
    config = study.config  # reports a study that is missing or cannot be read
    return replace(study, task=config.choose_task(name, task)) if task else study


@dataclass(frozen=True)
class Study:
    """A stored study. Each access reads the storage, so it shows the progress of a running search.

    Properties and methods raise ``StorageError`` or ``StudyNotFoundError`` if the storage or the
    study is gone. :meth:`effects`, :meth:`verdicts`, :meth:`pareto` and :meth:`report` need a
    complete trial and raise ``UserError`` without one.

    Attributes:
        name: name of the study.
        storage: URL of the storage; the path of an SQLite file is absolute.
        artifacts: absolute path of the folder of artifacts; None for the default.
        task: name of the task whose results these are, if the study has several; "" for all.
    """

    name: str
    storage: str = field(repr=False)
    artifacts: str | None = field(default=None, repr=False)
    task: str = field(default="", repr=False)

    def run(
        self,
        *,
        overrides: Mapping[str, Any] | None = None,
        corpus: str | Path | None = None,
        workers: int = 1,
        threads: int | None = None,
        lockstep: int | None = None,
        device: str = "auto",
        wait: bool = True,
        until: str | float | None = None,
        report: bool = False,
        launch: str = "local",
        launch_set: Mapping[str, str | int] | None = None,
    ) -> "Study":
        """Run the trials that are left with the stored settings; no study file is read.

        Arguments, result and errors are those of :func:`rnn_search.run`. ``overrides`` are settings
        that each worker chooses for itself, such as ``lease.seconds``.
        """
        options = dict(locals())  # each argument is one of RunOptions
        del options["self"]
        from rnn_search.api import run_with

        place = {"study": self.name, "storage": self.storage, "artifacts": self.artifacts}
        return run_with({**options, **place, "by_name": True})

    def claim(
        self,
        *,
        catch: type[Exception] | Sequence[type[Exception]] = (),
        prune: bool = False,
        wait: bool = True,
        until: str | float | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Iterator["Trial"]:
        """Claim the trials of a study with a loop one after another, for a training loop.

        Any number of processes may claim trials of a study; each trial is run once. A process that
        is killed loses its trial after ``lease.seconds``, and another resumes it. Ctrl-C and
        SIGTERM stop the loop at the next :meth:`Trial.log` or :meth:`Trial.save` and are raised
        again at the end; a second Ctrl-C raises ``KeyboardInterrupt`` at once. In another thread
        than the main one, signals do not stop the loop.

        Args:
            catch: exceptions after which a trial is tried again, at most three times, and then
                recorded as failed. After any other, the trial is requeued and the exception leaves
                the loop.
            prune: whether to pause and prune trials that are unlikely to finish among the best,
                from now on and in all workers; a study that does keeps doing so.
            wait: whether to wait for trials that other processes run, which may be requeued.
            until: time after which to stop, in seconds or as in ``"45m"``.
            overrides: settings of this process, as in ``{"checkpoint.seconds": 10}``.

        Yields:
            A live trial, to be used as ``with trial:``.

        Raises:
            UserError: if the study has no loop, no trial is complete at the end, or ``torchrun``
                started several processes of one job.
        """
        from rnn_search.api import check_worker_options
        from search.run import claim_trials

        options = check_worker_options(
            overrides=overrides, wait=wait, until=until, artifacts=self.artifacts
        )
        caught = (catch,) if isinstance(catch, type) else tuple(catch)
        return claim_trials(self.name, self.storage, options, caught, prune)

    @property
    def config(self) -> StudyConfig:
        """Settings of the study."""
        with self._open() as (_, study):
            return read_record(study).config

    def at_task(self, name: str) -> "Study":
        """Return the part of a study of several tasks that belongs to one task.

        Results, curves, the best trial, effects, Pareto front and hypotheses are those of
        this task; everything else is that of the whole study.

        Raises:
            UserError: if the study does not have several tasks, or no such task.
        """
        return replace(self, task=self.config.choose_task(self.name, name))

    @property
    def results(self) -> "pd.DataFrame":
        """Table of the trials, the best first; those of several tasks are sorted by task.

        The index is the number of the trial. The first columns are the network's ``label``,
        ``state``, ``value``, the metrics of the task (``validation_NAME``, ``test_NAME``), or what
        a training loop has logged last (``last_NAME``), and the parameters that vary. The others
        are in ``docs/reference/stored-data.md``.
        """
        results = self._read_results(with_curves=False)
        first = ["label", "state", "value", *results.metric_columns.values(), *results.axes]
        others = [name for name in results.data_columns if name not in first]
        return results.table[[*first, *others]]

    @property
    def curves(self) -> "pd.DataFrame":
        """Curves of the training, one row per point: ``number``, ``step``, ``loss`` in nats.

        Of another task ``loss`` is in its unit, of an imported study the intermediate value. The
        held-out curves have columns of their own, such as ``validation_loss`` and
        ``validation_accuracy``. A training loop's values have columns of the names under which it
        has logged them. What was not measured at a step is missing.
        """
        from reports.study_reader import name_column

        results = self._read_results()
        curves = results.curves
        if results.config.loop is not None:
            curves = curves.rename(columns={"loss": name_column(results.config.loop.metric)})
        return curves.merge(results.metrics, how="outer", on=["number", "step"])

    @property
    def status(self) -> "Status":
        """Progress: counts, best trial, estimated time left."""
        from search.status import read_status

        with self._open() as (storage, study):
            return read_status(study, storage, read_record(study).config)

    @property
    def counts(self) -> TrialCounts:
        """Number of trials in each state."""
        with self._open() as (storage, study):
            return count_trials(storage, study._study_id)

    @property
    def best(self) -> "FrozenTrial":
        """The complete trial with the best value.

        In a study of replicates it is the best run of the architecture with the best mean.

        Raises:
            UserError: if no trial is complete yet.
            UserError: if the study has several tasks, each with its best trial.
        """
        with self._open() as (storage, study):
            config = read_record(study).config
            reader = BestReader(study, storage, config)
            best = reader.read(config.choose_task(self.name, self.task))
            if best is None:
                raise UserError(f"study {self.name!r} has no complete trial yet")
            return self._trial(best.trial, config)

    def trial(self, number: int) -> "FrozenTrial":
        """Return a trial by its number.

        Raises:
            UserError: if the study has no such trial.
        """
        with self._open() as (storage, study):
            row = find_trial(read_trials(storage, study._study_id), number, self.name)
            return self._trial(row, read_record(study).config)

    def effects(self, untrained: str | None = None) -> "Effects | TaskEffects":
        """Estimate the effect of each parameter from complete trials.

        ``docs/statistics.md`` describes how. A study of several tasks has effects in each task.

        Args:
            untrained: ``"include"`` for effects over all pairs, ``"exclude"`` for those over the
                pairs of networks that can show them; None for what the study says.

        Raises:
            UserError: if ``untrained`` is another one.
        """
        from rnn_search.printed_results import find_effects

        return find_effects(_set_untrained(self._read_results(False, True), untrained))

    def verdicts(self) -> "Verdicts":
        """Compare replicated architectures with the best of them.

        Raises:
            UserError: if the study is no refinement with replicates.
        """
        from reports.findings import StudyFindings
        from rnn.errors import UserError
        from rnn_search.printed_results import Verdicts

        findings = StudyFindings(self._read_one_task(with_windows=True))
        summary = findings.summary
        if summary.judgement is None and summary.worse is None:
            raise UserError(
                f"study {self.name!r} is no refinement with replicates: expected one, which "
                "compares new runs of the best architectures"
            )
        return Verdicts(findings)

    def pareto(self, cost: Literal["parameters", "seconds"] = "parameters") -> "pd.DataFrame":
        """Find the architectures that no cheaper one beats on held-out data.

        One row per architecture, the cheapest first: ``architecture``, its ``trial``,
        ``parameters``, ``seconds`` of a run and the held-out ``loss``. Each is at its best values
        of the nuisance parameters. ``seconds`` compares runs under the same conditions alone. Close
        losses may differ by noise alone. ``parameters`` are those that a gradient reaches, where a
        trial has recorded them. Of trials that are no networks, the column ``value``
        stands for ``loss``, and ``parameters`` are what they recorded as ``parameter_count``.

        Args:
            cost: number of parameters, or computing time of a run in seconds.

        Raises:
            UserError: if the cost is another one.
        """
        from reports.analysis.leaderboard import COSTS, find_front, list_costs, rank_architectures

        if cost not in COSTS:
            raise UserError(f"cost is {shorten(repr(cost))}: expected 'parameters' or 'seconds'")
        results = self._read_one_task()
        table = list_costs(results, rank_architectures(results))
        losses = results.measure.to_loss(table["loss"].to_numpy(dtype=float))
        front = find_front(table[cost].to_numpy(dtype=float), losses)
        found = table.iloc[front].reset_index(drop=True)
        if results.config.has_networks:
            return found.astype({"parameters": int})
        return found.rename(columns={"loss": "value"})

    def hypotheses(self, untrained: str | None = None) -> "pd.DataFrame":
        """Test the hypotheses that the study stores; ``untrained`` is that of :meth:`effects`.

        One row per hypothesis: ``statement``, ``change``, what is ``expected``, ``margin``; the
        mean difference ``effect`` with ``low``, ``high`` and ``pairs``; the ``verdict``, or why
        there is none; when it was ``registered``.
        """
        from rnn_search.printed_results import frame_hypotheses

        results = self._read_one_task(require_complete=False)
        return frame_hypotheses(_set_untrained(results, untrained))

    def report(self, path: str | Path | None = None, others: Sequence[str] = ()) -> Path:
        """Write the HTML report.

        Args:
            path: file to write; by default in ``reports/out/`` of the working directory.
            others: names of further studies of the storage to show on the same page.

        Returns:
            The path of the file.

        Raises:
            UserError: if ``others`` is a single text.
            UserError: if the file cannot be written or replaced.
        """
        from reports.page.page import write_page
        from reports.study_reader import read_results, read_studies

        if isinstance(others, str) or not isinstance(others, Sequence):
            raise UserError(f"others is {shorten(repr(others))}: expected a list of names")
        target = None if path is None else to_path("path", path)
        with closing(read_storage(self.storage)) as storage:
            own = read_results(storage, self.name, drawn_only=True)
            results = [own, *read_studies(storage, others, drawn_only=True)]
        return write_page(results, target).path

    @property
    def optuna(self) -> OptunaStudy:
        """The study as an ``optuna.Study``, opened read-only; of one task, its trials in memory."""
        study = load_study(read_storage(self.storage), self.name)
        return _select_task(study, self.task) if self.task else study

    @contextmanager
    def _open(self) -> Iterator[tuple[LeasedRDBStorage, OptunaStudy]]:
        with closing(read_storage(self.storage)) as storage, storage.reading():
            yield storage, load_study(storage, self.name)

    def _read_results(
        self, with_curves: bool = True, require_complete: bool = False, with_windows: bool = False
    ) -> "Results":
        from reports.study_reader import read_results

        with closing(read_storage(self.storage)) as storage:
            results = read_results(storage, self.name, with_curves, with_windows, require_complete)
        return results.at_task(self.task) if self.task else results

    def _read_one_task(
        self, with_windows: bool = False, require_complete: bool = True
    ) -> "Results":
        """Read results without curves; refuse those of several tasks."""
        results = self._read_results(False, require_complete, with_windows)
        results.config.choose_task(self.name, "")
        return results

    def _trial(self, row: StoredTrial, config: StudyConfig) -> "FrozenTrial":
        return FrozenTrial(self, row.number, row.params, row.value, label_trial(row.params, config))


def _set_untrained(results: "Results", untrained: str | None) -> "Results":
    """Return results whose effects are over other pairs, if the user says so."""
    if untrained is None:
        return results
    if untrained not in ("include", "exclude"):
        shown = shorten(repr(untrained))
        raise UserError(f"untrained is {shown}: expected 'include' or 'exclude'")
    config = results.config.model_copy(update={"untrained": untrained})
    return replace(results, config=config)


@dataclass(frozen=True)
class FrozenTrial:
    """A stored trial of a study: one network.

    The methods need its weights, which are kept for the best trials (``keep_weights``). They raise
    ``UserError`` if these are not stored or cannot be read. The source of a cell of one's own,
    which is stored with them, is executed; that of a task is not.

    Attributes:
        study: the study.
        number: number of the trial.
        params: its parameters.
        value: its value, of text in nats per token; None unless it is complete.
        label: short description of the network, or the parameters.
    """

    study: Study = field(repr=False)
    number: int
    params: Params = field(hash=False)
    value: float | None
    label: str

    def network(self) -> "nn.Module":
        """Return the trained network as a PyTorch module on the CPU.

        ``logits, states = network(tokens)`` reads tokens (T, B) of T time steps and B streams and
        returns the logits (T, B, V) of the token after each; ``network(tokens, states)`` reads on.
        Of another task than text, it reads tokens, or standardized numbers (T, B, d), and returns
        outputs (T, B, k); :meth:`predict` converts both. The ``Network`` of an export has the same
        shapes.
        """
        from rnn.export import build_trained_module

        return build_trained_module(self._load())

    def predict(self, inputs: "npt.ArrayLike") -> "npt.NDArray[Any]":
        """Predict from N sequences of T steps, or from one, in the units of the data.

        Args:
            inputs: tokens (T,) or (N, T); or numbers (T, d) or (N, T, d), of d for each step.

        Returns:
            What the network predicts at each step, (T, k) or (N, T, k): probabilities of k classes,
            or k numbers. Where the task has its own loss, what that reads.

        Raises:
            UserError: if the network has other inputs.
            TaskError: if the study's task is text.
        """
        import torch

        from rnn.export import build_trained_module
        from rnn.exported_run import predict

        model = self._load()
        if model.task.merges is not None:
            raise TaskError(f"study {self.study.name!r} learns a text: use sample, or network")
        module = build_trained_module(model)
        dtype = module.head.weight.dtype

        @torch.inference_mode()
        def run(xs: torch.Tensor) -> Any:
            return module(xs.to(dtype) if xs.is_floating_point() else xs)[0]

        try:
            predicted: npt.NDArray[Any] = predict(run, inputs, asdict(model.task))
        except ValueError as error:
            raise UserError(str(error)) from error
        return predicted

    def sample(
        self,
        prompt: str = "",
        length: int = 500,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
    ) -> str:
        """Continue a text: return the prompt and what the network generates after it.

        Args:
            prompt: text to continue; a line feed if empty.
            length: number of tokens to generate.
            temperature: below 1, likely tokens are preferred; 0 always takes the most likely one.
            top_k: number of most likely tokens to sample from; None for all.
            seed: seed of the sampling.

        Raises:
            UserError: if a number has another type or is out of range.
            TaskError: if the study's task is another one than text.
        """
        from search.stored_models import SampleOptions

        given = {
            "prompt": prompt,
            "length": length,
            "temperature": temperature,
            "top_k": top_k,
            "seed": seed,
        }
        options = build_options(SampleOptions, is_command=False, **given)
        return options.generate(self._load())

    def export(self, folder: str | Path) -> Path:
        """Export the network to a new or empty folder, as ``rnn-search export`` does.

        Raises:
            UserError: if the path is taken or cannot be written.
        """
        from search.stored_models import export_trial

        path = to_path("folder", folder)
        study = self.study
        export_trial(study.name, path, self.number, study.storage, study.artifacts)
        return path

    def _load(self) -> "SavedModel":
        from search.stored_models import load_trial_model

        study = self.study
        return load_trial_model(study.name, self.number, study.storage, study.artifacts).model


def _select_task(study: OptunaStudy, task: str) -> OptunaStudy:
    """Return the trials of one of several tasks as a study in memory, without their task.

    Optuna's figures and importances compare all values of a study.
    """
    storage = InMemoryStorage()
    storage.create_new_study(study.directions, study.study_name)
    alone = OptunaStudy(study.study_name, storage)
    for trial in study.get_trials():
        params = dict(trial.params)
        if params.pop(TASK, "") == task:
            trial.distributions = {name: trial.distributions[name] for name in params}
            trial.params = params
            alone.add_trial(trial)
    return alone


def _to_absolute_url(storage: str) -> str:
    """Return the URL of a storage with the absolute path of its SQLite file."""
    url = parse_url(storage)
    path = database_path(url)
    if path is None:
        return storage
    return url.set(database=str(path.absolute())).render_as_string(hide_password=False)
