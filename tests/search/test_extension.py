"""Extension of a study to more steps: what it changes, what it refuses, and races for it."""

import optuna
import pytest
import sqlalchemy as sa
from helpers import EACH_DATABASE, ONE_TRIAL_OVERRIDES, QUICK, join_study, run_simultaneously
from invocation import refused
from optuna.trial import TrialState

from search.worker.checkpoints import TrialFiles
from studies.artifacts import open_store
from studies.attributes import Failure
from studies.errors import ConfigMismatchError, StudiesError
from studies.loader import read_study_record
from studies.storage.leases import PendingWrite
from studies.storage.reads import read_trials

FOUR = [
    *ONE_TRIAL_OVERRIDES,
    "precision='fp32'",
    "space.state_size=[3, 4]",
    "space.state_source=['new', 'both']",
]
"""Settings of four trials of 4 steps."""

LONGER = [*FOUR, "training.steps=8"]

LOSSES = {"validation_loss": 3.0, "validation_windows": [1.0, 2.0], "seconds": 1.0, "retries": {}}


def join(url, text, settings=FOUR, **options):
    return join_study(QUICK, url, settings, text, **options)


def finish(joined, count, state=TrialState.COMPLETE, checkpoint=True):
    """Finish trials; leave a file for the checkpoint of each complete one."""
    storage = joined.storage
    url = storage.engine.url.render_as_string(hide_password=False)
    store = open_store(None, url, "checkpoints")
    for _ in range(count):
        trial_id = storage.claim(joined.study_id, "me")
        number = storage.get_trial(trial_id).number
        is_complete = state is TrialState.COMPLETE
        if is_complete and checkpoint:
            TrialFiles(store, joined.artifact_folder, "final").write(number, b"state")
        value = 1.0 + number if is_complete else None
        storage.finish(trial_id, "me", state, value, LOSSES, {2: 5.0, 4: 2.0 + number})


def test_only_complete_trials_wait_again_and_keep_what_they_were(sqlite_url, text):
    joined = join(sqlite_url, text)
    finish(joined, 1)
    finish(joined, 1, checkpoint=False)
    finish(joined, 1, TrialState.FAIL)
    waiting = joined.storage.claim(joined.study_id, "me")
    joined.storage.requeue_all([PendingWrite(waiting, "me", {2: 5.5})], Failure.INTERRUPTED)
    before = joined.study.trials
    extended = join(sqlite_url, text, LONGER, extend=True)
    assert extended.config.training.steps == 8
    assert extended.notice == (
        "extended from 4 to 8 steps; trials that continue from their checkpoints: 1; trials that "
        "restart from step 0, because they have none: 1"
    )
    continued, restarted, failed, interrupted = extended.study.trials
    assert (failed, interrupted) == (before[2], before[3])
    assert [trial.state for trial in (continued, restarted)] == [TrialState.WAITING] * 2
    assert "curve" not in continued.system_attrs["earlier_end:4"]
    assert restarted.system_attrs["earlier_end:4"]["curve"] == [[2, 5.0], [4, 3.0]]
    first, second = extended.study.user_attrs["commands"]
    assert second.startswith(f"{first} ")
    assert second.endswith("--set training.steps=8 --extend")


def test_steps_and_values_are_extended_together_and_several_times(sqlite_url, text):
    finish(join(sqlite_url, text), 4)
    wider = [*LONGER, "space.layers=[1, 2]"]
    extended = join(sqlite_url, text, wider, extend=True)
    assert "; extended with 4 trials, 32 training steps in all" in extended.notice
    assert len(extended.study.trials) == 8
    finish(extended, 8)
    # The earlier values in a file mean those of the study.
    again = join(sqlite_url, text, [*FOUR, "training.steps=20"], extend=True)
    assert [trial.state for trial in again.study.trials] == [TrialState.WAITING] * 8
    assert read_study_record(again.study).steps == [20, 8, 4]
    for settings in (FOUR, LONGER, wider):
        joined = join(sqlite_url, text, settings, extend=True)
        assert joined.config.training.steps == 20
        assert "using its stored" in joined.notice


def prune(joined):
    finish(joined, 2)
    finish(joined, 1, TrialState.PRUNED)


def hold(joined):
    finish(joined, 3)
    joined.storage.claim(joined.study_id, "me")


KEEP = (
    "no complete trial has a checkpoint of its end at step 4, from which alone its training "
    'continues exactly: keep checkpoints with keep_checkpoints = "all" or a number before a study '
    "is finished; train from the start under another --name"
)


@pytest.mark.parametrize(
    ("prepare", "settings", "message"),
    [
        (lambda joined: finish(joined, 4), ["training.steps=3"], "has training.steps = 4, not 3"),
        (lambda joined: finish(joined, 4, checkpoint=False), ["training.steps=8"], KEEP),
        (
            lambda joined: finish(joined, 4),
            ["training.steps=5", "evaluation.average=0.5"],
            "would average weights of step 4 and later (evaluation.average = 0.5), which "
            "checkpoints of step 4 do not hold: --extend expected training.steps of 7 or more",
        ),
        (lambda joined: finish(joined, 4), ["training.steps=8", "space.layers=[2]"], "same order"),
        (
            lambda joined: finish(joined, 8),
            ["training.steps=8", "space.training.schedule=['constant', 'cosine']"],
            "has the schedule 'cosine', whose learning rates depend on training.steps = 4: "
            "--extend expected a constant one; train longer under another --name",
        ),
        (prune, ["training.steps=8"], "1 trials are pruned or paused, compared at the old steps"),
        (hold, ["training.steps=8"], "1 grid trials are held by workers"),
    ],
)
def test_extension_that_cannot_be_exact_is_refused_and_changes_nothing(
    sqlite_url, text, tmp_path, prepare, settings, message
):
    initial = [each for each in settings if "average" in each or "schedule" in each]
    prepare(join(sqlite_url, text, [*FOUR, *initial]))
    with refused(StudiesError, message, tmp_path):
        join(sqlite_url, text, [*FOUR, *settings], extend=True)


def test_least_number_of_steps_in_a_refusal_is_accepted(sqlite_url, text):
    settings = [*FOUR, "evaluation.average=0.37", "training.steps=30"]
    finish(join(sqlite_url, text, settings), 4)
    with pytest.raises(ConfigMismatchError, match="of 47 or more"):
        join(sqlite_url, text, [*settings, "training.steps=46"], extend=True)
    extended = join(sqlite_url, text, [*settings, "training.steps=47"], extend=True)
    assert extended.config.training.steps == 47


# ------------------------------------------------------------------ settings that describe a study

DESCRIBED = [*FOUR, "nuisance=['state_size']", "question='Q?'", "report_threshold=2.0"]


@pytest.mark.parametrize("prepare", [prune, hold], ids=lambda each: each.__name__)
def test_extension_changes_descriptive_settings_of_any_study_and_nothing_else(
    sqlite_url, text, prepare
):
    joined = join(sqlite_url, text)
    prepare(joined)
    before = joined.study.trials
    extended = join(sqlite_url, text, DESCRIBED, extend=True)
    described = {"nuisance": ["state_size"], "question": "Q?", "report_threshold": 2.0}
    assert extended.config == joined.config.model_copy(update=described)
    assert read_study_record(extended.study).config == extended.config
    assert extended.study.trials == before
    assert "; changed report_threshold from 2.33 to 2.0; " in extended.notice
    # In one transaction with new trials: both or neither.
    with pytest.raises(StudiesError):
        join(sqlite_url, text, [*FOUR, "training.steps=8"], extend=True)
    assert read_study_record(extended.study).config.nuisance == ["state_size"]


def test_descriptive_settings_change_with_the_steps_and_from_an_earlier_file(sqlite_url, text):
    finish(join(sqlite_url, text), 4)
    longer = join(sqlite_url, text, [*DESCRIBED, "training.steps=8"], extend=True)
    stored = read_study_record(longer.study).config
    assert (stored.training.steps, stored.nuisance) == (8, ["state_size"])
    earlier = join(sqlite_url, text)
    assert earlier.notice.startswith(
        "study 'quick' was extended: using its stored 8 steps; study 'quick' keeps question = "
        "'Q?' and report_threshold = 2.0 and nuisance = ['state_size']: only --extend changes them"
    )
    assert read_study_record(earlier.study).config == stored
    earlier = join(sqlite_url, text, [*FOUR, "question='Q?'"], extend=True)
    changed = stored.model_copy(update={"nuisance": [], "report_threshold": 2.33})
    assert read_study_record(earlier.study).config == changed


def extend(url, text):
    settings = [*LONGER, "space.layers=[1, 2]"]
    return join(url, text, settings, extend=True).study.user_attrs


@pytest.fixture
def complete(url, text, tmp_path, monkeypatch):
    """A study of four complete trials, with their checkpoints."""
    monkeypatch.chdir(tmp_path)  # a server's checkpoints are in studies/
    (tmp_path / "studies").mkdir(exist_ok=True)
    joined = join(url, text)
    finish(joined, 4)
    return joined


@EACH_DATABASE
def test_concurrent_extensions_extend_steps_and_values_once(complete, url, text):
    attributes = run_simultaneously(extend, [(url, str(text))] * 3)
    assert all(each == attributes[0] for each in attributes)
    assert len(attributes[0]["commands"]) == 2
    assert len(attributes[0]["earlier_ends"]) == 1
    trials = optuna.load_study(study_name="quick", storage=url).trials
    assert [trial.state for trial in trials] == [TrialState.WAITING] * 8
    assert len({tuple(trial.params.items()) for trial in trials}) == 8


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_trials_are_read_as_they_were_before_an_extension_that_comes_meanwhile(complete, url, text):
    """It removes their values, which are read after their states."""
    storage, extended = complete.storage, []

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def extend_meanwhile(connection, cursor, statement, *others):
        if "FROM trial_values" in statement and not extended:
            extended.append(True)
            join(url, text, LONGER, extend=True)

    before = read_trials(storage, complete.study_id, is_strict=True)
    after = read_trials(storage, complete.study_id, is_strict=True)
    assert [trial.value for trial in before] == [1.0, 2.0, 3.0, 4.0]
    assert {trial.state for trial in before} == {TrialState.COMPLETE}
    assert [(trial.state, trial.value) for trial in after] == [(TrialState.WAITING, None)] * 4


def test_study_stored_by_an_earlier_version_is_extended(sqlite_url, text):
    """Its config lacks the settings that are new, and its only table is no list."""
    finish(join(sqlite_url, text), 4)
    joined = join(sqlite_url, text)
    config = joined.study.user_attrs["config"]
    for name in ("keep_checkpoints", "nuisance", "cells"):
        del config[name]
    (config["space"],) = config["space"]
    joined.study.set_user_attr("config", config)
    assert join(sqlite_url, text, LONGER, extend=True).config.training.steps == 8


# ------------------------------------------------------------------ hypotheses

WIDER = "{statement='Wider.', parameter='state_size', before=4, after=6, expect='lower'}"
NEWER = "{statement='New.', parameter='state_source', before='new', after='both', expect='raise'}"
STATED = [*FOUR, f"hypothesis=[{WIDER}]"]
BOTH = [*FOUR, f"hypothesis=[{WIDER}, {NEWER}]"]
OTHER = [*FOUR, f"hypothesis=[{NEWER}]"]


def test_new_hypothesis_is_refused_without_extend_and_a_stored_one_stays(
    sqlite_url, text, tmp_path
):
    joined = join(sqlite_url, text, STATED)
    finish(joined, 1)
    with refused(ConfigMismatchError, "exists without hypothesis 2 ('New.'): use", tmp_path):
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
    with refused(ConfigMismatchError, message, tmp_path):
        join(sqlite_url, text, [*FOUR, "nuisance=['state_size']"], extend=True)
