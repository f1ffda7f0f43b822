"""Replicates: which of them keep their weights, and extensions by more of them."""

import shutil
import sqlite3
from contextlib import closing

import pytest
import torch
from factories import NO_GATES, gated_params, make_runs
from helpers import TEXT
from invocation import refused
from optuna.trial import TrialState

import rnn_search
from reports.findings import StudyFindings
from rnn.errors import UserError
from rnn_search import export_study, import_study
from search.create_or_join import StudyHandle
from search.stored_models import load_trial_model
from search.worker.checkpoints import BestWeights
from studies.artifacts import ArtifactFolders
from studies.storage.open import load_study, open_storage, read_storage, read_study_record
from studies.storage.reads import read_trials


def test_best_run_of_the_architecture_of_the_best_mean_keeps_its_file(sqlite_url):
    """The first has the best run. Until the last run, each may become the best."""
    raw = {"refinement": {"source": "source", "replicates": 2}, "keep_weights": 1}
    runs = [gated_params(layers, replicate=number) for layers in (1, 2) for number in (4, 5)]
    make_runs(sqlite_url, "s", raw, [(params, None, {}) for params in runs])
    assert finish_all(sqlite_url, (1.0, 3.0, 1.4, 1.5)) == [{0}, {0}, {0, 2}, {2}]
    with pytest.raises(UserError, match=r"expected best or trial 2$"):
        load_trial_model("s", 1, sqlite_url, None)


def test_each_of_several_tasks_keeps_the_best_of_its_architectures(sqlite_url):
    """In a grid, whose first replicates may have no number: it was extended."""
    space = NO_GATES | {"layers": [1, 2], "state_size": [4], "task": ["copy:10", "my_task.py:Sum"]}
    tasks = {"copy:10": CLASSES, "Sum": NUMBERS}
    raw = {"space": space | {"replicates": 2}, "task_records": tasks, "keep_weights": 1}
    first = [gated_params(layers, task=name) for layers in (1, 2) for name in tasks]
    second = [params | {"replicate": 1} for params in first]
    make_runs(sqlite_url, "s", raw, [(params, None, {}) for params in first + second])
    kept = finish_all(sqlite_url, (1.0, 30.0, 1.4, 10.0, 3.0, 40.0, 1.5, 90.0))
    assert kept[3:] == [{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}, {1, 2, 3}, {1, 2}]
    study = rnn_search.load("s", storage=sqlite_url)
    best = study.status.best_by_task
    assert {name: (each.number, each.value, each.runs) for name, each in best.items()} == {
        "copy:10": (2, 1.45, 2),
        "Sum": (1, 35.0, 2),
    }


def finish_all(url, values):
    """Finish the trials of 's' with these values; return whose weights are kept after each."""
    folders = ArtifactFolders(None, url)
    storage = open_storage(url)
    study = load_study(storage, "s")
    record = read_study_record(study)
    handle = StudyHandle(study, storage, record.config, folders, record, None)
    kept = []
    weights = folders.trial_files("made-1", "safetensors")
    files = BestWeights(handle, lambda query: query())
    for number, value in enumerate(values):
        trial_id = storage.claim(handle.study_id, "me")
        for selected in files.select({number: value}):
            files.write(selected, lambda: b"weights")
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {"seconds": 1.0})
        files.evict(number)
        kept.append(weights.list_trials())
    return kept


CLASSES = {"source": "copy:10", "steps": 30, "inputs": 10, "outputs": 8, "reads_tokens": True,
           "predicts_classes": True, "loss": "cross-entropy", "metrics": {}}  # fmt: skip
NUMBERS = {"source": "my_task.py:Sum", "sha256": "ab" * 32, "steps": 10, "inputs": 2, "outputs": 1,
           "reads_tokens": False, "predicts_classes": False, "loss": "squared error",
           "metrics": {}}  # fmt: skip
"""Records of two tasks."""


# ------------------------------------------------------------------ more replicates

SOURCE = {
    "objective": "validation",
    "space": NO_GATES
    | {"layers": [1], "state_size": [3, 4], "output_gate": [False, True], "residual": [True]},
    "training": {"steps": 4, "batch_size": 4, "sequence_length": 8, "log_every": 2},
    "evaluation": {"windows": 2, "window_length": 8},
    "keep_weights": 0,
}
"""Four tiny networks."""

TWO_OF_EACH = "[refinement]\nsource = 'source'\ntop = 3\nreplicates = 2\n"
"""Two runs of each of the three best."""

NOT_TRAINED = {"until": 1e-6}
"""Creates or extends a study, and stops before it trains."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Storage with the complete study 'source', and with two runs of three of its networks."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "text").write_bytes(TEXT)
    (folder / "copies.toml").write_text(TWO_OF_EACH)
    place = {"storage": f"sqlite:///{folder}/studies.db", "threads": 1}
    rnn_search.run(SOURCE, name="source", corpus=folder / "text", **place)
    rnn_search.run(folder / "copies.toml", **place)
    return folder


@pytest.fixture
def copies(made, tmp_path):
    """File of 'copies', with the storage next to it."""
    for name in ("studies.db", "copies.toml"):
        shutil.copy(made / name, tmp_path)
    return tmp_path / "copies.toml"


@pytest.fixture
def extend(copies, sqlite_url):
    """Function that runs 'copies' with some settings of its refinement."""

    def call(study=copies, extend=True, **settings):
        overrides = {f"refinement.{name}": value for name, value in settings.items()}
        options = {"storage": sqlite_url, "threads": 1, "extend": extend}
        return rnn_search.run(study, overrides=overrides, **NOT_TRAINED, **options)

    return call


def read_rows(url):
    """Return every row about a trial of each study, without the choices of its parameters."""
    rows = {}
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'trial%'")
        for (table,) in tables.fetchall():
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            chosen = ", ".join(name for name in names if name != "distribution_json")
            rows[table] = set(connection.execute(f"SELECT {chosen} FROM {table}"))
    return rows


def list_runs(study):
    """Return the parameters of each trial, by which it is found, with its sources and value."""
    with closing(read_storage(study.storage)) as storage:
        trials = read_trials(storage, load_study(storage, study.name)._study_id)
    return {
        tuple(trial.params.items()): (trial.attributes["source_trials"], trial.value)
        for trial in trials
    }


def test_extended_study_has_the_runs_of_a_new_one_with_as_many_replicates(
    extend, copies, sqlite_url
):
    before = read_rows(sqlite_url)
    study = extend(replicates=4)
    after = read_rows(sqlite_url)
    assert all(rows <= after[table] for table, rows in before.items()), "no row has changed"
    place = {"storage": sqlite_url, "threads": 1}
    more = {"refinement.replicates": 4}
    study.run(threads=1)
    new = rnn_search.run(copies, name="new", overrides=more, **place)
    assert study.counts.complete == 12
    assert list_runs(study) == list_runs(new)
    assert study.config.refinement == new.config.refinement
    assert study.best.params == new.best.params
    assert study.verdicts().to_frame().equals(new.verdicts().to_frame())
    with closing(read_storage(sqlite_url)) as storage:
        record = read_study_record(load_study(storage, "copies"))
        assert load_study(storage, "new").user_attrs["earlier_replicates"] == []
    assert record.earlier_replicates == [2]
    assert record.commands[1:] == [
        f"rnn-search run {copies} --set refinement.replicates=4 --extend"
    ]


def test_page_says_that_a_second_look_costs_error(extend, sqlite_url, tmp_path):
    def read_page():
        study.report(tmp_path / "page.html")
        return (tmp_path / "page.html").read_text()

    costs = "the 5% hold for one look, and looking again costs error"
    study = rnn_search.load("copies", storage=sqlite_url)
    assert costs not in read_page()
    extend(replicates=3)
    study.run()
    assert f"had 2 replicates before it was extended: {costs}" in read_page()
    extend("copies", replicates=5)  # the stored study by its name
    study.run()
    assert f"had 2, then 3 replicates before it was extended: {costs}" in read_page()
    export_study("copies", tmp_path / "copies.jsonl.gz", storage=sqlite_url)
    other = f"sqlite:///{tmp_path}/other.db"
    import_study(tmp_path / "copies.jsonl.gz", storage=other)
    for url in (sqlite_url, other):
        with closing(read_storage(url)) as storage:
            record = read_study_record(load_study(storage, "copies"))
        assert record.replicates == [5, 3, 2], url


def test_study_is_extended_while_a_worker_holds_one_of_its_trials(extend, sqlite_url):
    extend(replicates=3)
    with closing(open_storage(sqlite_url)) as storage:
        study_id = storage.get_study_id_from_name("copies")
        held = storage.claim(study_id, "me")
        extend(replicates=4)
        storage.finish(held, "me", TrialState.COMPLETE, 1.0, {"seconds": 1.0})
        assert storage.get_trial(held).state is TrialState.COMPLETE
        claimed = [storage.claim(study_id, "me") for _ in range(6)]
        params = [storage.get_trial(trial_id).params for trial_id in claimed[:5]]
        assert claimed[5] is None
    # Every architecture has three runs before one has four.
    assert [each["replicate"] for each in params] == [3, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicates": 1}, "has refinement.replicates = 2, not 1: --extend expected more repl"),
        ({"replicates": 3, "top": 2}, "refinement.top: 3 in the study, 2 here; use its settings,"),
        (
            {"replicates": 3, "variants": [{}, {"layers": 2}]},
            "refinement.variants: [{}] in the study, [{}, {'layers': 2}] here; use its settings,",
        ),
        ({"replicates": 3, "margin": 0.1}, "refinement.margin: 0.02 in the study, 0.1 here; use"),
        ({"trial": 0}, "trial runs one trial as it was: expected no variants or replicates"),
        ({}, "is a refinement without a [space]: extend its source and refine that, or extend"),
    ],
)
def test_other_changes_of_a_refinement_are_refused(extend, sqlite_url, settings, message):
    before = read_rows(sqlite_url)
    with refused(UserError, message):
        extend(**settings)
    assert read_rows(sqlite_url) == before


def test_single_runs_are_not_extended_to_replicates(extend, copies):
    """Their trials have no number of a replicate, which would change them."""
    copies.write_text(TWO_OF_EACH.replace("replicates = 2", ""))
    single = copies.rename(copies.with_name("single.toml"))
    extend(single, extend=False)
    with pytest.raises(UserError, match=r"expected refinement\.replicates of 2 or more in the"):
        extend(single, replicates=2)
    with pytest.raises(UserError, match=r"1 in the study, 2 here; use .*, or another --name"):
        extend(single, extend=False, replicates=2)


def test_worker_may_join_with_the_replicates_that_the_study_had(extend, capsys):
    with pytest.raises(UserError, match=r"3 here; .*, or --extend to add the new trials$"):
        extend(extend=False, replicates=3)
    extend(replicates=4)
    capsys.readouterr()
    assert extend(extend=False).counts.planned == 12
    assert "study 'copies' was extended: using its stored trials" in capsys.readouterr().out
    for other in (3, 1):
        with pytest.raises(UserError, match=f"4 in the study, {other} here; use .* --name"):
            extend(extend=False, replicates=other)


# ------------------------------------------------------------------ refinements of replicates


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Storage with the complete study 'grid' of two runs of each of four networks."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "text").write_bytes(TEXT)
    place = {"storage": f"sqlite:///{folder}/studies.db", "threads": 1}
    more = {"space.replicates": 2, "keep_weights": 8}
    return rnn_search.run(SOURCE, name="grid", overrides=more, corpus=folder / "text", **place)


@pytest.fixture
def refine(grid, request):
    """Function that derives a study from the best two of 'grid'."""

    def call(refinement, options, **settings):
        raw = {"refinement": {"source": "grid", "top": 2, **refinement}, **settings}
        place = {"storage": grid.storage, "threads": 1}
        return rnn_search.run(raw, name=request.node.name, **place, **options)

    return call


def test_runs_that_a_refinement_would_repeat_are_not_trained_again(grid, refine, capsys, tmp_path):
    means = grid.results.groupby("architecture")["value"].mean().sort_values()
    assert grid.status.best.architecture.startswith(means.index[0])
    best = grid.results[grid.results["architecture"].isin(means.index[:2])]
    first = best[best["replicate"] == 0]
    capsys.readouterr()
    refined = refine({"variants": [{}, {"block": "residual"}]}, {}, keep_weights=4)
    notice = "created with 2 trials, 8 training steps in all; 2 more would repeat runs of study "
    assert f"{notice}'grid' exactly and have their results" in capsys.readouterr().out
    copied = refined.results[refined.results["copied_from"].notna()]
    assert sorted(copied["copied_from"]) == sorted(first.index)
    for number, run in copied.iterrows():
        original = first.loc[run["copied_from"]]
        assert run["value"] == original["value"]
        assert run["worker"] == original["worker"]
        weights = refined.trial(number).network().state_dict()
        expected = grid.trial(original.name).network().state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        curve = refined.curves.query("number == @number").drop(columns="number")
        expected = grid.curves.query("number == @original.name").drop(columns="number")
        assert curve.reset_index(drop=True).equals(expected.reset_index(drop=True))
    # A copied run is paired with that of the same replicate, not with the mean of both.
    page = refined.report(tmp_path / "page.html").read_text()
    assert "2 trials would repeat runs of grid exactly: these runs count here." in page
    unchanged, _ = StudyFindings(refined._read_results()).variants
    assert (unchanged.count, unchanged.source_difference) == (2, 0.0)
    # The same refinement under another name has the weights of the source as well.
    again = rnn_search.run(refined.name, name="again", storage=grid.storage, threads=1)
    for number in again.results.index[again.results["copied_from"].notna()]:
        again.trial(number).network()


@pytest.mark.parametrize(
    ("refinement", "settings"),
    [
        ({"replicates": 2}, {}),
        ({}, {"training": {"steps": 6}}),
        ({}, {"seed": 1}),
        ({}, {"objective": "training"}),
        ({}, {"evaluation": {"windows": 3}}),
    ],
)
def test_other_runs_are_trained(refine, refinement, settings):
    refined = refine(refinement, NOT_TRAINED, **settings)
    assert refined.counts.waiting == refined.counts.planned
    if refinement:
        assert set(refined.results["replicate"]) == {2, 3}, "the source's were selected"
