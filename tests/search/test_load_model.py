"""Choice of the model that a command loads, and errors if there is none."""

import pytest
from model_fixtures import make_study

from search.errors import WeightsNotFoundError
from search.load_model import load_trial_model
from studies.errors import StudyNotFoundError


def test_best_trial_with_stored_weights_is_loaded(sqlite_url, tmp_path, capsys):
    weights = make_study(sqlite_url, keep={0, 2, 3, 4})
    weights.write(5, weights.read(0))  # of a trial whose end is not recorded yet
    loaded = load_trial_model("made", None, sqlite_url, None)
    assert (loaded.trial.number, loaded.model.architecture.label) == (
        3,
        "1×4 no gates, new state, residual",
    )
    assert load_trial_model("made", 2, sqlite_url, None).model.architecture.state_size == 16
    assert "using trial 3: better trials have no stored weights (1)" in capsys.readouterr().err
    weights.write(2, weights.read(0))
    with pytest.raises(
        WeightsNotFoundError, match="weights of trial 2 of study 'made' belong to another run"
    ):
        load_trial_model("made", 2, sqlite_url, None)
    for number, message in (
        (1, "weights of trial 1 of study 'made' are not stored"),
        (5, r"trial 5 of study 'made' is not complete \(state waiting\)"),
        (9, "trial 9 not found in study 'made', which has 6"),
    ):
        with pytest.raises(WeightsNotFoundError, match=message) as raised:
            load_trial_model("made", number, sqlite_url, None)
        assert "one of the trials 3, 4, 0, 2" in str(raised.value)
    with pytest.raises(StudyNotFoundError, match="existing studies: made"):
        load_trial_model("other", None, sqlite_url, None)
    with pytest.raises(WeightsNotFoundError, match=r"has no trial.*check --artifacts"):
        load_trial_model("made", None, sqlite_url, str(tmp_path / "elsewhere"))


def test_study_without_stored_weights_is_reported(sqlite_url):
    make_study(sqlite_url, keep=set(), keep_weights=0)
    for number in (None, 1):
        with pytest.raises(WeightsNotFoundError, match="keep_weights is 0"):
            load_trial_model("made", number, sqlite_url, None)
