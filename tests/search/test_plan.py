"""The plan of a study: what it costs and what it can find, which its report says afterwards."""

import math
from contextlib import closing
from pathlib import Path

import pytest
from factories import NO_GATES, RATES, SMALL_GRID, make_runs
from helpers import ONE_TRIAL
from invocation import invoke_command, require_refused

import rnn_search
from reports.analysis.judged_effects import estimate_effects
from reports.study_reader import read_results
from rnn_search import UserError
from search.planned_effects import PlannedEffect, describe_weakest, list_shortages, plan_effects
from studies.config import StudyConfig
from studies.storage.open import read_storage

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


def test_cell_that_fails_is_named(tmp_path):
    (tmp_path / "cell.py").write_text(
        "from torch import nn\n\n\nclass Failing(nn.Linear):\n"
        "    def __init__(self, input_size, state_size):\n"
        "        super().__init__(input_size, state_size)\n\n"
        "    def forward(self, x, state):\n        raise RuntimeError('no luck')\n"
    )
    settings = SETTINGS | {"space": SETTINGS["space"] | {"cell": [f"{tmp_path}/cell.py:Failing"]}}
    place = {"name": "mine", "storage": f"sqlite:///{tmp_path}/studies.db"}
    with pytest.raises(UserError, match=r"cell Failing raises RuntimeError \(no luck\) in line 9"):
        rnn_search.plan(settings, **place)


def test_plan_names_the_steps_of_stated_updates(tmp_path):
    settings = SETTINGS | {"training": {"updates": 150, "bptt_steps": "sequence"}}
    storage = f"sqlite:///{tmp_path}/studies.db"
    plan = rnn_search.plan(settings, name="mine", storage=storage, timed=False)
    assert "150 updates: 900 steps logged every 54" in plan.notices


# ------------------------------------------------------------------ effects


RATED = {"training": {"learning_rate": RATES}}

SPACES = {
    "full": [SMALL_GRID],
    "excluded": [SMALL_GRID | {"exclude": [{"state_size": 4, "residual": False}]}],
    "cells": [SMALL_GRID | {"cell": ["gated", "gru", "lstm"]}],
    "untrained": [{"layers": [1], "state_size": [4]}],
    "union": [SMALL_GRID, SMALL_GRID | {"state_size": [8, 16]}],
}


def plan_of(config: StudyConfig) -> dict[str, list[PlannedEffect]]:
    assert config.grid is not None
    return plan_effects(config.grid.combinations(), config)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_pairs_are_those_that_the_report_compares(space: list[dict], tmp_path: Path) -> None:
    raw = {"space": [table | RATED for table in space], "nuisance": ["learning_rate"]}
    config = StudyConfig.model_validate(raw)
    assert config.grid is not None
    url = f"sqlite:///{tmp_path}/studies.db"
    runs = [(params, 1 + i / 100, {}) for i, params in enumerate(config.grid.combinations())]
    make_runs(url, "made", raw, runs)
    with closing(read_storage(url)) as storage:
        effects, _ = estimate_effects(read_results(storage, "made"))

    reported = {effect.contrast: (effect.pairs, effect.excluded_pairs) for effect in effects}
    planned = plan_of(config)[""]
    assert {effect.contrast: (effect.pairs, effect.excluded) for effect in planned} == reported


def test_plan_names_what_no_pair_of_networks_can_show() -> None:
    raw = {"space": NO_GATES | {"state_source": ["old"], "residual": [True], "layers": [1, 2]}}
    raw["space"] |= {"state_size": [4, 8], "forget_gate": [False, True]}
    config = StudyConfig.model_validate(raw)
    shortages = list_shortages(plan_of(config), config)
    assert "no effect of forget_gate can be found: no pair of networks can show it" in shortages


def test_parameters_that_cannot_be_tested_are_named_with_what_to_do() -> None:
    raw = {"space": NO_GATES | {"layers": [1], "state_size": [4, 8, 16], "residual": [False, True]}}
    config = StudyConfig.model_validate(raw)
    effects = plan_of(config)

    residual, size = list_shortages(effects, config)
    assert size.startswith("no effect of state_size can be significant with 2 pairs")
    assert residual.startswith("no effect of residual can be significant with 3 pairs")
    assert residual.endswith("set replicates = 2")
    assert describe_weakest(effects, config) == residual


def test_parameters_that_no_pair_differs_in_alone_are_named() -> None:
    exclude = [{"layers": 1, "state_size": 8}, {"layers": 2, "state_size": 4}]
    raw = {"space": SMALL_GRID | {"exclude": exclude}}
    config = StudyConfig.model_validate(raw)

    assert list_shortages(plan_of(config), config)[1:] == [
        "no effect of layers, state_size can be found: no two architectures differ in it alone"
    ]
