"""Each combination of a grid runs exactly once, by any means of running it."""

import threading

import optuna
import pytest
import sqlalchemy as sa
from helpers import (
    EACH_DATABASE,
    ROOT,
    DatabaseUse,
    create_small_study,
    run_simultaneously,
    wait_for_others,
)
from hooks import HANG_TIMEOUT
from optuna.trial import TrialState

from rnn.errors import CorpusError
from search.errors import GridExhaustedError
from search.grid import NO_TRIAL_LEFT
from search.options import RunOptions
from search.run import wait_for_storage
from search.study import create_or_join
from search.worker.shutdown import ShutdownSignal
from studies.errors import ConfigError, ConfigMismatchError
from studies.loader import load_config_file
from studies.space import GATED_PARAMS
from studies.storage import changes
from studies.storage.open import open_storage

OVERRIDES = [
    "space.layers=[1, 2]",
    "space.state_size=[2, 4]",
    "space.state_source=['new', 'both']",
    "space.input_gate=[false]",
    "space.output_gate=[false]",
    "space.state_gate=[false]",
    "space.exclude=[{state_size=2, residual=false}, {layers=2, state_size=4}]",
    "evaluation.window_length=8",
    "training.sequence_length=8",
]
"""Sixteen of 32 combinations."""


def create(url: str, text: str) -> optuna.Study:
    options = RunOptions(study="stage-one", storage=url, overrides=tuple(OVERRIDES), corpus=text)
    return create_or_join(options).study


def objective_of_stored_params(trial: optuna.Trial) -> float:
    """Objective that suggests the parameters that the trial already has."""
    for name, distribution in trial.distributions.items():
        assert trial.suggest_categorical(name, distribution.choices) == trial.params[name]
    return 1.0 if len(trial.params) == 8 else trial.suggest_categorical("layers", [1, 2])


def after_meeting(objective, wait_for_others):
    """Return an objective that waits, once in each thread, until all threads have a trial."""
    local = threading.local()

    def run(trial: optuna.Trial) -> float:
        if not hasattr(local, "has_met"):
            local.has_met = True
            wait_for_others()
        return objective(trial)

    return run


def in_four_threads(objective):
    """Return an objective that makes each of four threads run at least one trial."""
    barrier = threading.Barrier(4)
    return after_meeting(objective, lambda: barrier.wait(HANG_TIMEOUT))


def check_each_ran_once(url: str) -> None:
    study = optuna.load_study(study_name="stage-one", storage=url)
    trials = [trial for trial in study.trials if not trial.system_attrs.get(NO_TRIAL_LEFT)]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 16
    expected = load_config_file("stage-one", OVERRIDES).resolve().grid.combinations()
    found = {tuple(trial.params[key] for key in GATED_PARAMS) for trial in trials}
    assert found == {tuple(params[key] for key in GATED_PARAMS) for params in expected}


# ------------------------------------------------------------------ studies of run_search.py


def test_optimize_with_threads_runs_each_combination_once(sqlite_url, text):
    create(sqlite_url, str(text)).optimize(in_four_threads(objective_of_stored_params), n_jobs=4)
    check_each_ran_once(sqlite_url)


def optimize(url: str, text: str) -> None:
    create(url, text).optimize(after_meeting(objective_of_stored_params, wait_for_others))


@EACH_DATABASE
def test_optimize_in_several_processes_runs_each_combination_once(url, text):
    create(url, str(text))
    run_simultaneously(optimize, [(url, str(text))] * 4)
    check_each_ran_once(url)


def test_failed_trial_does_not_skip_others(sqlite_url, text):
    study = create(sqlite_url, str(text))

    def fails_once(trial: optuna.Trial) -> float:
        if trial.number == 5:
            raise RuntimeError("once")
        return 1.0

    study.optimize(fails_once, catch=(RuntimeError,))
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 15
    assert states[5] is TrialState.FAIL


def test_finished_study_has_no_trial_for_plain_optuna(sqlite_url, text):
    study = create(sqlite_url, str(text))
    study.optimize(objective_of_stored_params)
    assert len(study.trials) == 16
    study.optimize(objective_of_stored_params)
    with pytest.raises(GridExhaustedError, match="no trial of study 'stage-one' is left"):
        study.ask()
    assert study.trials[-1].state is TrialState.PRUNED, "nothing waits for it"
    check_each_ran_once(sqlite_url)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_study_is_created_and_extended_once_if_an_answer_is_lost(
    sqlite_url, text, tmp_path, monkeypatch, moment
):
    """The connection ends before the transaction, or after its commit."""
    lost = sa.exc.OperationalError("COMMIT", {}, Exception("gone"), connection_invalidated=True)

    def fail_once(function):
        moments = iter([moment])

        def unreliable(*args):
            failing = next(moments, None)
            if failing == "before":
                raise lost
            result = function(*args)
            if failing == "after":
                raise lost
            return result

        return unreliable

    monkeypatch.setattr("search.study.create_study", fail_once(changes.create_study))
    monkeypatch.setattr("search.extend.extend_study", fail_once(changes.extend_study))
    printed = []

    def create(*overrides, **options):
        settings = (*OVERRIDES, *overrides)
        given = {"study": "stage-one", "storage": sqlite_url, "corpus": str(text)}
        options = RunOptions(**given, overrides=settings, **options)
        return wait_for_storage(
            lambda: create_or_join(options),
            lambda: 600,
            ShutdownSignal(),
            printed.append,
        )

    study = create().study
    assert [trial.number for trial in study.trials] == list(range(16))
    study = create("space.layers=[1, 2, 3]", extend=True).study
    assert [trial.number for trial in study.trials] == list(range(28))
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 28
    first, second = study.user_attrs["commands"]
    assert ("--extend" in first, "--extend" in second) == (False, True)
    outage = [
        "storage unavailable (gone); waiting for it for up to 600 s",
        "storage available again",
    ]
    assert printed == outage * 2


def test_number_of_statements_to_create_a_study_does_not_depend_on_its_size(sqlite_url):
    storage = open_storage(sqlite_url)
    use = DatabaseUse(storage)

    def count(size):
        return use.measure(lambda: create_small_study(storage, size, f"{size} trials"))[0]

    assert count(4) == count(400)


# ------------------------------------------------------------------ unions and absent parameters

UNION = """
[[space]]
cell = ["gru", "lstm"]
layers = [2]
state_size = [4]
[space.training]
optimizer = ["adam", "sgd"]
momentum = [0.0, 0.9]

[[space]]
cell = ["elman"]
layers = [1]
state_size = [4]

[training]
steps = 4
sequence_length = 8
log_every = 2

[evaluation]
window_length = 8
"""
"""Seven trials: two cells with Adam, twice two with SGD, and one of the second table."""


@pytest.fixture
def union(sqlite_url, text, tmp_path):
    """Function that opens the study of a file with some text replaced."""
    path = tmp_path / "union.toml"

    def open_study(*replacements, **options):
        content = UNION
        for old, new in replacements:
            assert old in content
            content = content.replace(old, new)
        path.write_text(content)
        given = {"study": str(path), "storage": sqlite_url, "corpus": str(text)}
        return create_or_join(RunOptions(**given, **options)).study

    return open_study


def suggest_own_params(trial: optuna.Trial) -> float:
    for name, distribution in trial.distributions.items():
        assert trial.suggest_categorical(name, distribution.choices) == trial.params[name]
    if "momentum" not in trial.params:
        with pytest.raises(ValueError, match=f"trial {trial.number} has no parameter 'momentum'"):
            trial.suggest_categorical("momentum", [0.0, 0.9])
    return len(trial.params) + trial.params["layers"] / 10


def test_optuna_reads_a_study_whose_trials_have_different_parameters(union, sqlite_url):
    study = union()
    asked = study.ask()
    study.tell(asked, suggest_own_params(asked))
    study.optimize(suggest_own_params)
    plain = optuna.load_study(study_name="union", storage=sqlite_url)
    assert [trial.state for trial in plain.trials] == [TrialState.COMPLETE] * 7
    assert len({frozenset(trial.params.items()) for trial in plain.trials}) == 7
    assert {tuple(sorted(trial.params)) for trial in plain.trials} == {
        ("cell", "layers", "optimizer", "state_size"),
        ("cell", "layers", "momentum", "optimizer", "state_size"),
    }
    table = plain.trials_dataframe()
    assert table["params_momentum"].isna().sum() == 3
    assert {"cell", "layers", "optimizer"} <= set(optuna.importance.get_param_importances(plain))
    optuna.visualization.plot_slice(plain)
    optuna.visualization.plot_parallel_coordinate(plain)


SMALLER_TABLE = """
[[space]]
cell = ["gru"]
layers = [3]
state_size = [4]
[training]"""


def test_union_is_extended_in_each_of_its_tables_and_by_new_ones(union):
    before = [(trial.number, trial.params) for trial in union().trials]
    longer = ("layers = [2]", "layers = [2, 5]")
    values = (longer, ("momentum = [0.0, 0.9]", "momentum = [0.0, 0.9, 0.5]"))
    study = union(*values, extend=True)
    assert len(study.trials) == 2 * 2 * (1 + 3) + 1
    cells = f'"elman", "gru", "{ROOT}/examples/cells/min_gru.py:MinGRU"'
    own = ('"elman"]', f"{cells}]\ncandidate_tanh = [false, true]")  # of MinGRU alone
    study = union(*values, own, ("\n[training]", SMALLER_TABLE), extend=True)
    assert len(study.trials) == 17 + 2 + 2  # a GRU of one and one of three layers, with Adam
    added = [trial.params.get("candidate_tanh") for trial in study.trials[17:]]
    assert set(added) == {None, False, True}
    assert [(trial.number, trial.params) for trial in study.trials[:7]] == before
    # Every trial states the same choices: the old ones in their order, then the new ones.
    for name, choices in {"layers": (2, 1, 5, 3), "momentum": (0.0, 0.9, 0.5)}.items():
        stated = {trial.distributions[name] for trial in study.trials if name in trial.params}
        assert [each.choices for each in stated] == [choices]
    # Workers with an earlier file join the extended study.
    for replacements in ((), values):
        assert len(union(*replacements).trials) == 21
    study.optimize(suggest_own_params)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (("layers = [2]", "layers = [3]"), r"has space 1: layers = \[2\], not \[3\]: --extend exp"),
        (("layers = [1]", "layers = [3, 1]"), r"has space 2: layers = \[1\], not \[3, 1\]"),
        (('"gru", "lstm"', '"gru"'), r"has space 1: cell = \['gru', 'lstm'\], not \['gru'\]"),
        (
            ('optimizer = ["adam", "sgd"]', 'optimizer = ["adam", "sgd"]\nbptt_steps = [1, 2]'),
            "has 7 trials without bptt_steps, which they would have: --extend expected",
        ),
        (("momentum = [0.0, 0.9]", ""), "has 4 trials with momentum, which they would lack"),
        (
            ('cell = ["elman"]', 'cell = ["elman"]\nexclude = [{layers = 1}]\n#'),
            "has no combination",
        ),
        (
            ("layers = [1]", "layers = [1, 2]\nexclude = [{layers = 1}]"),
            "has 1 trials that space leaves out, such as {'cell': 'elman', 'layers': 1,",
        ),
    ],
)
def test_extension_that_would_change_existing_trials_is_refused(union, replacement, message):
    study = union()
    before = study.trials
    with pytest.raises((ConfigMismatchError, ConfigError), match=message) as refused:
        union(replacement, extend=True)
    assert "\n" not in str(refused.value)
    assert study.trials == before


def test_corpus_must_hold_the_longest_sequence_of_the_grid(union, tmp_path):
    setting = 'optimizer = ["adam", "sgd"]\nsequence_length = [8, 100_000]'
    with pytest.raises(CorpusError, match="expected 100,000 or more"):
        union(('optimizer = ["adam", "sgd"]', setting))
    assert not list(tmp_path.rglob("*.db")), "refused before anything is written"
