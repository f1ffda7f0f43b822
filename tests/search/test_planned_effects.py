"""What is said of effects before a study runs, against what its report says afterwards."""

from contextlib import closing
from pathlib import Path

import pytest
from factories import NO_GATES, RATES, SMALL_GRID, make_runs

from reports.analysis.judged_effects import estimate_effects
from reports.study_reader import read_results
from search.planned_effects import PlannedEffect, describe_weakest, list_shortages, plan_effects
from studies.config import StudyConfig
from studies.storage.open import read_storage

RATED = {"training": {"learning_rate": RATES}}

SPACES = {
    "full": [SMALL_GRID],
    "excluded": [SMALL_GRID | {"exclude": [{"state_size": 4, "residual": False}]}],
    "cells": [SMALL_GRID | {"cell": ["gated", "gru", "lstm"]}],
    "union": [SMALL_GRID, SMALL_GRID | {"state_size": [8, 16]}],
}


def plan(config: StudyConfig) -> dict[str, list[PlannedEffect]]:
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

    reported = {effect.contrast: effect.pairs for effect in effects}
    assert {effect.contrast: effect.pairs for effect in plan(config)[""]} == reported


def test_parameters_that_cannot_be_tested_are_named_with_what_to_do() -> None:
    raw = {"space": NO_GATES | {"layers": [1], "state_size": [4, 8, 16], "residual": [False, True]}}
    config = StudyConfig.model_validate(raw)
    effects = plan(config)

    residual, size = list_shortages(effects, config)
    assert size.startswith("no effect of state_size can be significant with 2 pairs")
    assert residual.startswith("no effect of residual can be significant with 3 pairs")
    assert residual.endswith("set replicates = 2")
    assert describe_weakest(effects, config) == residual


def test_parameters_that_no_pair_differs_in_alone_are_named() -> None:
    exclude = [{"layers": 1, "state_size": 8}, {"layers": 2, "state_size": 4}]
    raw = {"space": SMALL_GRID | {"exclude": exclude}}
    config = StudyConfig.model_validate(raw)

    assert list_shortages(plan(config), config)[1:] == [
        "no effect of layers, state_size can be found: no two architectures differ in it alone"
    ]
