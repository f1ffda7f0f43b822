"""Extension of a study: what it changes, what it refuses, and races for it."""

import optuna
import pytest
import sqlalchemy as sa
from helpers import ONE_TRIAL_OVERRIDES, QUICK, join_study, run_simultaneously
from invocation import refused
from optuna.trial import TrialState

from rnn.errors import UserError
from studies.best import BestReader
from studies.errors import StorageLostError
from studies.management import retry_trials
from studies.storage.open import read_study_record
from studies.storage.reads import read_trials

FOUR = [
    *ONE_TRIAL_OVERRIDES,
    "precision='fp32'",
    "space.state_size=[3, 4]",
    "space.state_source=['new', 'both']",
]
"""Settings of four trials of 4 steps."""

WIDER = [*FOUR, "space.layers=[1, 2]"]
"""Eight trials, of which these four are the first."""

LOSSES = {"validation_loss": 3.0, "validation_windows": [1.0, 2.0], "seconds": 1.0, "retries": {}}


def join(url, text, settings=FOUR, **options):
    return join_study(QUICK, url, settings, text, **options)


def finish(joined, count, state=TrialState.COMPLETE):
    storage = joined.storage
    for _ in range(count):
        trial_id = storage.claim(joined.study_id, "me")
        number = storage.get_trial(trial_id).number
        value = 1.0 + number if state is TrialState.COMPLETE else None
        storage.finish(trial_id, "me", state, value, LOSSES, {2: 5.0, 4: 2.0 + number})


def test_values_are_added_several_times_and_finished_trials_stay(sqlite_url, text):
    joined = join(sqlite_url, text)
    finish(joined, 3)
    finish(joined, 1, TrialState.FAIL)
    before = joined.study.trials
    extended = join(sqlite_url, text, WIDER, extend=True)
    assert extended.notice == "extended with 4 trials, 16 training steps in all"
    assert extended.study.trials[:4] == [
        trial for trial in extended.study.trials if trial.number in range(4)
    ]
    assert [trial.value for trial in extended.study.trials[:4]] == [1.0, 2.0, 3.0, None]
    assert [trial.state for trial in extended.study.trials[4:]] == [TrialState.WAITING] * 4
    assert [trial.user_attrs for trial in before] == [
        trial.user_attrs for trial in extended.study.trials[:4]
    ]
    first, second = extended.study.user_attrs["commands"]
    assert second.startswith(f"{first} ")
    assert second.endswith(" --extend")
    widest = [*WIDER, "space.residual=[true, false]"]
    again = join(sqlite_url, text, widest, extend=True)
    assert len(again.study.trials) == 16
    for settings in (FOUR, WIDER, widest):
        joined = join(sqlite_url, text, settings, extend=True)
        assert len(joined.study.trials) == 16
        assert ("using its stored trials" in joined.notice) == (settings is not widest)


def test_replicates_are_added_and_those_without_a_number_are_the_first(sqlite_url, text):
    joined = join(sqlite_url, text)
    finish(joined, 4)
    before = [trial.params for trial in joined.study.trials]
    extended = join(sqlite_url, text, [*FOUR, "space.replicates=2"], extend=True)
    assert extended.notice == "extended with 4 trials, 16 training steps in all"
    added = [params | {"replicate": 1} for params in before]
    assert [trial.params for trial in extended.study.trials] == before + added
    both = join(sqlite_url, text, [*WIDER, "space.replicates=3"], extend=True)
    runs = [
        (trial.params["layers"], trial.params.get("replicate", 0)) for trial in both.study.trials
    ]
    assert runs == [(1, 0)] * 4 + [(1, 1)] * 4 + sorted(runs[8:], key=lambda run: run[1])
    assert sorted(runs) == [
        (layers, run) for layers in (1, 2) for run in (0, 1, 2) for _ in range(4)
    ]
    finish(both, 1)
    best = BestReader(both.study, both.storage, both.config)
    assert best.has_replicates


def test_process_that_knows_the_smaller_grid_stops_at_its_next_write(sqlite_url, text):
    joined = join(sqlite_url, text)
    finish(joined, 1)
    join(sqlite_url, text, [*FOUR, "question='Why?'"], extend=True)
    finish(joined, 1)  # the grid is the same
    extended = join(sqlite_url, text, WIDER, extend=True)
    message = "study 'quick' was extended to 8 trials while this search used it: run the same"
    with pytest.raises(StorageLostError, match=message):
        joined.storage.claim(joined.study_id, "me")
    finish(extended, 6)


def prune(joined):
    finish(joined, 2)
    finish(joined, 1, TrialState.PRUNED)


def hold(joined):
    finish(joined, 3)
    joined.storage.claim(joined.study_id, "me")


@pytest.mark.parametrize(
    ("prepare", "settings", "message"),
    [
        (lambda joined: finish(joined, 4), ["training.steps=8"], "steps: 4 in the study, 8 here"),
        (lambda joined: finish(joined, 4), ["space.layers=[2]"], "same order"),
        (hold, ["space.replicates=2"], "1 grid trials are held by workers"),
        (prune, ["space.layers=[1, 2]"], "1 trials are pruned, compared with the old grid only"),
        (lambda joined: finish(joined, 4), ["space.block=['plain']"], "has 4 trials that space le"),
        (hold, ["space.layers=[1, 2]"], "1 grid trials are held by workers"),
    ],
)
def test_extension_that_cannot_be_exact_is_refused_and_changes_nothing(
    sqlite_url, text, tmp_path, prepare, settings, message
):
    prepare(join(sqlite_url, text))
    with refused(UserError, message, tmp_path):
        join(sqlite_url, text, [*FOUR, *settings], extend=True)


# ------------------------------------------------------------------ settings that describe a study

DESCRIBED = [*FOUR, "nuisance=['state_size']", "question='Q?'", "report_threshold=2.0"]
DESCRIBED += ["told='include'"]


@pytest.mark.parametrize("prepare", [prune, hold], ids=lambda each: each.__name__)
def test_extension_changes_descriptive_settings_of_any_study_and_nothing_else(
    sqlite_url, text, prepare
):
    joined = join(sqlite_url, text)
    prepare(joined)
    before = joined.study.trials
    extended = join(sqlite_url, text, DESCRIBED, extend=True)
    described = {"nuisance": ["state_size"], "question": "Q?", "report_threshold": 2.0}
    described |= {"told": "include"}
    assert extended.config == joined.config.model_copy(update=described)
    assert read_study_record(extended.study).config == extended.config
    assert extended.study.trials == before
    assert "changed report_threshold from 2.33 to 2.0" in extended.notice.splitlines()
    # In one transaction with new trials: both or neither.
    with pytest.raises(UserError):
        join(sqlite_url, text, WIDER, extend=True)
    assert read_study_record(extended.study).config.nuisance == ["state_size"]


def extend(url, text):
    return join(url, text, WIDER, extend=True).study.user_attrs


@pytest.mark.extended
def test_concurrent_extensions_add_values_once(url, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a server's files are in studies/
    finish(join(url, text), 4)
    attributes = run_simultaneously(extend, [(url, str(text))] * 3)
    assert all(each == attributes[0] for each in attributes)
    assert len(attributes[0]["commands"]) == 2
    trials = optuna.load_study(study_name="quick", storage=url).trials
    assert [trial.value for trial in trials] == [1.0, 2.0, 3.0, 4.0, *[None] * 4]
    assert len({tuple(trial.params.items()) for trial in trials}) == 8


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_trials_are_read_as_they_were_before_a_change_that_comes_meanwhile(
    url, text, tmp_path, monkeypatch
):
    """Retried trials lose their attributes, which are read after their states."""
    monkeypatch.chdir(tmp_path)
    joined = join(url, text)
    finish(joined, 4, TrialState.FAIL)
    storage, changed = joined.storage, []

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def retry_meanwhile(connection, cursor, statement, *others):
        if "FROM trial_user_attributes" in statement and not changed:
            changed.append(True)
            retry_trials(url, "quick", ["failed"])

    before = read_trials(storage, joined.study_id)
    after = read_trials(storage, joined.study_id)
    assert changed
    assert {(trial.state, "seconds" in trial.attributes) for trial in before} == {
        (TrialState.FAIL, True)
    }
    assert {(trial.state, "seconds" in trial.attributes) for trial in after} == {
        (TrialState.WAITING, False)
    }


# ------------------------------------------------------------------ hypotheses

STATEMENT = "{statement='Wider.', parameter='state_size', before=4, after=6, expect='lower'}"
NEWER = "{statement='New.', parameter='state_source', before='new', after='both', expect='raise'}"
STATED = [*FOUR, f"hypothesis=[{STATEMENT}]"]
BOTH = [*FOUR, f"hypothesis=[{STATEMENT}, {NEWER}]"]
OTHER = [*FOUR, f"hypothesis=[{NEWER}]"]


def test_new_hypothesis_is_refused_without_extend_and_a_stored_one_stays(
    sqlite_url, text, tmp_path
):
    joined = join(sqlite_url, text, STATED)
    finish(joined, 1)
    with refused(UserError, "exists without hypothesis 2 ('New.'): use", tmp_path):
        join(sqlite_url, text, BOTH)
    joined.storage.claim(joined.study_id, "me")
    extended = join(sqlite_url, text, BOTH, extend=True)  # while a worker holds a trial
    assert "hypothesis 'New.': registered after 1 result, 20" in extended.notice
    first, second = read_study_record(extended.study).hypotheses
    assert (first.results, second.results) == (0, 1)
    assert first.registered < second.registered
    # A file that states fewer of them joins, and takes none back.
    for options in ({}, {"extend": True}):
        again = join(sqlite_url, text, OTHER, **options)
        assert again.notice == ""
        assert read_study_record(again.study).hypotheses == [first, second]


def test_other_nuisance_parameters_register_the_hypotheses_anew(sqlite_url, text, tmp_path):
    """Each is then another test: of architectures at other values."""
    finish(join(sqlite_url, text, STATED), 1)
    tuned = join(sqlite_url, text, [*STATED, "nuisance=['residual']"], extend=True)
    (record,) = read_study_record(tuned.study).hypotheses
    assert record.results == 1
    message = "has a hypothesis about 'state_size' ('Wider.'): --extend expected another nuisance"
    with refused(UserError, message, tmp_path):
        join(sqlite_url, text, [*FOUR, "nuisance=['state_size']"], extend=True)
