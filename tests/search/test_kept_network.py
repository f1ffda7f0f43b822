"""Whose network a command gets, and what it says when there is none."""

import pytest
from model_fixtures import make_networks

from search.errors import WeightsNotFoundError
from search.load_model import load_trial_model
from studies.errors import StudyNotFoundError


def test_the_best_is_the_first_of_least_loss_whose_weights_are_kept(sqlite_url, tmp_path, capsys):
    weights = make_networks(sqlite_url, keep={0, 2, 3, 4})
    weights.write(5, weights.read(0))  # of a trial that another worker has yet to record
    kept = load_trial_model("made", None, sqlite_url, None)
    assert (kept.trial.number, kept.network.architecture.label) == (
        3,
        "1×4 no gates, new state, residual",
    )
    assert load_trial_model("made", 2, sqlite_url, None).network.architecture.state_size == 16
    assert "trial 3, for weights of better ones (1) are not there" in capsys.readouterr().err
    weights.write(2, weights.read(0))
    with pytest.raises(
        WeightsNotFoundError, match="under trial 2 of study 'made' are of another run"
    ):
        load_trial_model("made", 2, sqlite_url, None)
    for number, words in (
        (1, "weights of trial 1 of study 'made' are not kept"),
        (5, "trial 5 of study 'made' is waiting"),
        (9, "trial 9 is not in study 'made', which has 6"),
    ):
        with pytest.raises(WeightsNotFoundError, match=words) as refused:
            load_trial_model("made", number, sqlite_url, None)
        assert "one of the trials 3, 4, 0, 2;" in str(refused.value)
    with pytest.raises(StudyNotFoundError, match="there: made"):
        load_trial_model("other", None, sqlite_url, None)
    with pytest.raises(WeightsNotFoundError, match=r"has no trial.*check --artifacts"):
        load_trial_model("made", None, sqlite_url, str(tmp_path / "elsewhere"))


def test_a_study_that_keeps_none_says_so(sqlite_url):
    make_networks(sqlite_url, keep=set(), keep_weights=0)
    for number in (None, 1):
        with pytest.raises(WeightsNotFoundError, match="keep_weights is 0"):
            load_trial_model("made", number, sqlite_url, None)
