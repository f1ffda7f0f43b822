"""Each combination of a grid runs exactly once, by any means of running it."""

import threading

import optuna
import pytest
import sqlalchemy as sa
from helpers import ROOT, join_study
from hooks import HANG_TIMEOUT
from invocation import refused
from optuna.trial import TrialState

from rnn.errors import CorpusError, UserError
from search.errors import GridExhaustedError
from search.open_study import NO_TRIAL_LEFT
from search.run import wait_for_storage
from search.worker.shutdown import ShutdownSignal
from studies.config import StudyConfig
from studies.loader import load_config_file
from studies.space import GATED_PARAMS
from studies.storage import edits

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


@pytest.fixture
def study(sqlite_url, text) -> optuna.Study:
    return join_study("stage-one", sqlite_url, OVERRIDES, text).study


def objective_of_stored_params(trial: optuna.Trial) -> float:
    """Objective that suggests the parameters that the trial already has."""
    for name, distribution in trial.distributions.items():
        assert trial.suggest_categorical(name, distribution.choices) == trial.params[name]
    return 1.0 if len(trial.params) == 8 else trial.suggest_categorical("layers", [1, 2])


# ------------------------------------------------------------------ replicates


def test_every_architecture_gets_a_run_before_any_gets_two(sqlite_url, text):
    """And in the order in which it has the runs of a grid without replicates."""
    single = join_study("stage-one", sqlite_url, OVERRIDES, text, name="single").study
    order = [trial.params for trial in single.trials]
    overrides = [*OVERRIDES, "space.replicates=3"]
    trials = join_study("stage-one", sqlite_url, overrides, text).study.trials
    expected = [params | {"replicate": number} for number in range(3) for params in order]
    assert [trial.params for trial in trials] == expected


def test_tables_have_replicates_of_their_own():
    size = {"state_size": [8], "cell": ["gru"]}
    tables = [size | {"layers": [1, 2], "replicates": 2}, size | {"layers": [2, 3]}]
    config = StudyConfig.model_validate({"space": tables})
    runs = [(params["layers"], params["replicate"]) for params in config.grid.combinations()]
    assert sorted(runs) == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]


# ------------------------------------------------------------------ studies of run_search.py


def test_optimize_with_threads_runs_each_combination_once(study, sqlite_url):
    barrier, local = threading.Barrier(4), threading.local()

    def meet_once(trial: optuna.Trial) -> float:
        if not hasattr(local, "has_met"):
            local.has_met = True
            barrier.wait(HANG_TIMEOUT)
        return objective_of_stored_params(trial)

    study.optimize(meet_once, n_jobs=4)
    stored = optuna.load_study(study_name="stage-one", storage=sqlite_url).trials
    trials = [trial for trial in stored if not trial.system_attrs.get(NO_TRIAL_LEFT)]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 16
    expected = load_config_file("stage-one", OVERRIDES).resolve().grid.combinations()
    found = {tuple(trial.params[key] for key in GATED_PARAMS) for trial in trials}
    assert found == {tuple(params[key] for key in GATED_PARAMS) for params in expected}


def test_finished_study_has_no_trial_for_plain_optuna(study):
    """A trial that fails does not skip others."""

    def fails_once(trial: optuna.Trial) -> float:
        if trial.number == 5:
            raise RuntimeError("once")
        return objective_of_stored_params(trial)

    assert not study.sampler.is_exhausted(study)
    study.optimize(fails_once, catch=(RuntimeError,))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL if n == 5 else TrialState.COMPLETE for n in range(16)]
    study.optimize(objective_of_stored_params)
    assert study.sampler.is_exhausted(study)
    with pytest.raises(GridExhaustedError, match="no trial of study 'stage-one' is left"):
        study.ask()
    assert study.trials[-1].state is TrialState.PRUNED, "nothing waits for it"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_study_is_created_and_extended_once_if_an_answer_is_lost(
    sqlite_url, text, tmp_path, monkeypatch, caplog, moment
):
    """The connection ends before the transaction, or after its commit."""
    lost = sa.exc.OperationalError("COMMIT", {}, Exception("gone"), connection_invalidated=True)

    def fail_once(function):
        calls = []

        def unreliable(*args, **options):
            calls.append(args)
            if len(calls) > 1 or moment == "after":
                result = function(*args, **options)
            if len(calls) == 1:
                raise lost
            return result

        return unreliable

    monkeypatch.setattr("search.create_or_join.create_study", fail_once(edits.create_study))
    monkeypatch.setattr("search.extend.extend_study", fail_once(edits.extend_study))
    caplog.set_level("INFO")

    def create(*overrides, **options):
        settings = (*OVERRIDES, *overrides)
        return wait_for_storage(
            lambda: join_study("stage-one", sqlite_url, settings, text, **options),
            lambda: 600,
            ShutdownSignal(),
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
    assert [line for line in caplog.messages if line.startswith("storage")] == outage * 2


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
        return join_study(path, sqlite_url, corpus=text, **options).study

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
    assert plain.trials_dataframe()["params_momentum"].isna().sum() == 3
    assert {"cell", "layers", "optimizer"} <= set(optuna.importance.get_param_importances(plain))
    optuna.visualization.plot_slice(plain)
    optuna.visualization.plot_parallel_coordinate(plain)


SMALLER_TABLE = """
[[space]]
cell = ["gru"]
layers = [3]
state_size = [4]
[training]"""


def test_union_is_extended_in_each_of_its_tables_and_by_new_ones(union, monkeypatch):
    monkeypatch.setattr("search.cell_check.check_export", lambda network: None)  # takes long
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
        (("layers = [1]", "layers = [3, 1]"), "has space 2: layers = [1], not [3, 1]"),
        (
            ('optimizer = ["adam", "sgd"]', 'optimizer = ["adam", "sgd"]\nbptt_steps = [1, 2]'),
            "has 7 trials that space leaves out, such as {'cell': ",
        ),
        (("momentum = [0.0, 0.9]", ""), "has 4 trials that space leaves out, such as"),
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
    with refused(UserError, message):
        union(replacement, extend=True)
    assert study.trials == before


def test_corpus_must_hold_the_longest_sequence_of_the_grid(union, tmp_path):
    setting = 'optimizer = ["adam", "sgd"]\nsequence_length = [8, 100_000]'
    with pytest.raises(CorpusError, match="expected 100,000 or more"):
        union(('optimizer = ["adam", "sgd"]', setting))
    assert not list(tmp_path.rglob("*.db")), "refused before anything is written"
