"""The plan of a study: what it costs and what it can find, without a trace in the storage."""

import math

import pytest
from helpers import ONE_TRIAL
from invocation import invoke_command, require_refused

import rnn_search
from rnn_search import UserError

SETTINGS = {
    "task": {"source": "mqar", "pairs": 1, "length": 6},
    "space": {
        "cell": ["gru", "lstm"],
        "layers": [1],
        "state_size": [2, 3],
        "training": {"learning_rate": [0.01, 0.1]},
        "replicates": 3,
    },
    "nuisance": ["learning_rate"],
    "training": {"steps": 600, "batch_size": 2, "log_every": 6, "bptt_steps": "sequence"},
    "evaluation": {"windows": 2},
    "precision": "fp32",
}
"""A study of four architectures at two rates with three seeds."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.plan._SECONDS", 0.05)
        made = rnn_search.plan(
            SETTINGS, name="mine", storage=f"sqlite:///{folder}/studies.db", workers=2, threads=1
        )
    assert [*folder.iterdir()] == []
    return made


def test_costs_of_each_network_are_those_of_all_trials(plan):
    networks = plan.networks.set_index(["cell", "state_size"])
    assert plan.trials == networks["trials"].sum() == 24
    assert (networks["updates"] == 100).all()
    assert (networks["seconds"] > 0).all()
    assert plan.hours == pytest.approx(6 * networks["seconds"].sum() / 2 / 3600)
    assert networks["most_parameters"].is_unique
    text = repr(plan)
    assert "24 trials of 100 updates" in text
    assert "of training by 2 workers of 1 thread on cpu" in text


def test_seeds_and_pairs_decide_what_is_found(plan):
    effects = plan.to_frame().set_index("parameter")
    assert list(effects.index) == ["cell", "state_size"]
    assert effects["pairs"].tolist() == [2, 2]
    assert effects["seeds"].tolist() == [3, 3]
    assert effects["smallest_effect"].between(1.5, 2.5).all()
    assert (effects["smallest_share"] < 1).all()
    assert "replicates" not in repr(plan)  # nothing is short of pairs


def test_single_runs_of_two_pairs_find_nothing_and_it_is_said(tmp_path):
    single = rnn_search.plan(
        SETTINGS,
        name="mine",
        storage=f"sqlite:///{tmp_path}/studies.db",
        overrides={"space.replicates": 1},
        prune=True,
        timed=False,
    )
    assert math.isnan(single.hours)
    assert single.to_frame()["smallest_effect"].tolist() == [math.inf, math.inf]
    assert single.to_frame()["smallest_share"].isna().all()  # a pruned run has no outcome
    text = repr(single)
    assert "no effect of cell, state_size can be significant with 2 pairs" in text
    assert "set replicates = 2" in text
    assert "pruning trains about a third" in text


def test_dry_run_prints_the_plan_and_stores_nothing(tmp_path, text):
    given = (*ONE_TRIAL, "--corpus", text, "--threads", "1")
    done = invoke_command("run", "quick", "--dry-run", "--no-timing", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "study quick: 4 trials of 4 updates, networks of" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    refined = ("refine", "quick-refined", "--dry-run", "--no-timing", *given)
    require_refused(invoke_command(*refined, cwd=tmp_path), "run a search first")


def test_plan_refuses_what_a_run_would_refuse(tmp_path):
    with pytest.raises(UserError, match="study 'nope' not found"):
        rnn_search.plan("nope", storage=f"sqlite:///{tmp_path}/studies.db")
    with pytest.raises(UserError, match="settings have no name"):
        rnn_search.plan(SETTINGS)
