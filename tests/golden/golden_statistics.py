"""Statistics of six small studies with made-up results, and sentences about them.

``inputs/`` has five exported studies and the table of another program: a full grid with replicates
in another study; a grid with excluded points and cells that lack its switches; a grid with a
nuisance parameter, diverged trials and noise that differs between values; replicates, one of which
failed and one of which waits; a pruned grid with audited trials; and a sweep of repeated runs with
several metrics, of which one is maximized. ``cells`` compares two cells, one of which diverges, at
two batch sizes.

Only :class:`StoredStudy` knows where the project computes what.
"""

import math
import random
import tomllib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import cache, cached_property, partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from golden import FOLDER, Golden

from reports.analysis.hypotheses import HypothesisTest, run_tests
from reports.analysis.leaderboard import COSTS, summarize_study
from reports.analysis.pruning import audit_pruning
from reports.analysis.solved import compare_by_threshold
from reports.charts.trial_plots import chart_importances
from reports.findings import StudyFindings
from reports.formatting import to_plain
from reports.results import Results
from reports.sentences import (
    describe_pairs,
    describe_pruning,
    describe_smallest,
    list_answer,
    list_audit,
    list_headline,
    list_noise,
    list_warnings,
)
from reports.study_reader import read_results
from rnn_search import import_results, import_study, load
from studies.stated_hypotheses import Hypothesis, register
from studies.storage.open import read_storage

INPUTS = FOLDER / "inputs"

STUDIES = ("full-grid", "excluded-points", "learning-rates", "replicates", "pruned", "sweep")

COUNTS = ("planned", "finished", "complete", "pruned", "diverged", "failed", "running", "waiting")

DIFFERENCE = ("mean", "low", "high", "p", "pairs")

AUDIT = (
    "trials", "architectures", "planned", "top_count", "pruned", "stopped", "lost", "lost_high",
    "recall_low", "tested", "inside", "bias", "bias_low", "bias_high", "is_alarm",
)  # fmt: skip


class StoredStudy:
    """A study of ``inputs/`` and what the project computes from it."""

    def __init__(self, name: str) -> None:
        self.study = load(name, storage=f"sqlite:///{import_studies().name}/studies.db")

    @cached_property
    def results(self) -> Any:
        with closing(read_storage(self.study.storage)) as storage:
            return read_results(storage, self.study.name)

    @cached_property
    def effects(self) -> Any:
        return self.study.effects()

    @property
    def findings(self) -> StudyFindings:
        return self.effects.findings

    @cached_property
    def summary(self) -> Any:
        return summarize_study(self.results)

    def test_hypotheses(self) -> list[HypothesisTest]:
        tables = tomllib.loads((INPUTS / "hypotheses.toml").read_text())["hypothesis"]
        records = register([], [Hypothesis(**table) for table in tables], 0)
        return run_tests(replace(self.results, hypotheses=records))

    def list_solved(self) -> dict[str, Any]:
        changes = compare_by_threshold(self.results)
        return {
            _name(each): [found.solved_before, found.solved_before + found.mean, found.p_adjusted]
            for each, found in changes.items()
        }

    def audit(self) -> Any:
        return audit_pruning(self.results) if self.results.is_pruned else None

    @cached_property
    def importances(self) -> dict[str, dict[str, float]]:
        charts = chart_importances(self.results)[:2]
        bars = {chart.title: chart.figure.data[0] for chart in charts}
        return {name: dict(sorted(zip(bar.y, bar.x, strict=True))) for name, bar in bars.items()}


open_study = cache(StoredStudy)


@cache
def import_studies() -> TemporaryDirectory[str]:
    """Import the studies to a storage in a folder, which is removed at the end of the process."""
    folder = TemporaryDirectory(prefix="golden-")
    storage = f"sqlite:///{folder.name}/studies.db"
    *exported, sweep = STUDIES
    for name in (*exported, "cells"):
        import_study(INPUTS / f"{name}.jsonl", storage=storage)
    parameters = ["optimizer", "width", "dropout", "warmup"]
    import_results(
        INPUTS / f"{sweep}.csv", storage=storage, value="accuracy", parameters=parameters
    )
    return folder


def compute_statistics(name: str) -> dict[str, Any]:
    """Return all statistics of a study but fANOVA."""
    stored = open_study(name)
    return {
        "counts": _pick(stored.study.counts, COUNTS),
        "best": _pick(stored.study.best, ("number", "value", "params")),
        "ranking": [int(number) for number in stored.study.results.index],
        "effects": _list_effects(stored),
        "warnings": len(stored.effects.warnings),
        "conditional effects": _list_conditional(stored),
        "comparisons with the best": _compare_with_best(stored),
        "pairwise comparisons": _compare_pairwise(stored),
        "fronts": {cost: stored.study.pareto(cost)["trial"].tolist() for cost in COSTS},
        "solved": stored.list_solved(),
        "hypotheses": [_describe_test(test) for test in stored.test_hypotheses()],
        "audit": _pick(stored.audit(), AUDIT),
        "PED-ANOVA": _to_plain(stored.importances.get("PED-ANOVA", {})),
    }


def compute_fanova() -> dict[str, Any]:
    """Return the fANOVA importances of the parameters of all studies."""
    return {name: _to_plain(open_study(name).importances.get("fANOVA", {})) for name in STUDIES}


def _list_effects(stored: StoredStudy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ranked in stored.findings.ranked:
        effect = ranked.main
        condition = ranked.condition
        means = [level.mean for level in condition.levels] if condition else [None]
        found[_name(effect.contrast)] = {
            **_pick(effect, (*DIFFERENCE, "is_significant", "missing_pairs")),
            "method": effect.method.name,
            "depends_on": condition.parameter if condition else "",
            "least": min(means),
            "greatest": max(means),
        }
    return found


def _list_conditional(stored: StoredStudy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in stored.effects.conditional_frame().to_dict("records"):
        contrast = f"{row['parameter']} {row['before']} → {row['after']}"
        group = found.setdefault(contrast, {}).setdefault(row["by"], {"levels": {}})
        group |= _to_plain({key: row[key] for key in ("range", "differs", "opposite_signs")})
        columns = ("effect", "low", "high", "pairs", "significant")
        group["levels"][str(row["value"])] = _to_plain({key: row[key] for key in columns})
    return found


def _describe_test(test: HypothesisTest) -> dict[str, Any]:
    effect = test.effect
    return {
        "statement": test.hypothesis.statement,
        "effect": _to_plain(effect.mean) if effect else None,
        "low": _to_plain(effect.low) if effect else None,
        "high": _to_plain(effect.high) if effect else None,
        "pairs": effect.pairs if effect else None,
        "verdict": ": ".join(filter(None, [test.verdict, test.problem])),
    }


def _compare_with_best(stored: StoredStudy) -> list[Any]:
    numbers = ("low", "high", "verdict", "bound")
    gap = ("mean", "low", "high", "p_adjusted", "is_significant")
    return [
        {
            **_pick(entry, ("number", "runs")),
            "mean": entry.loss,
            **_pick(entry, numbers),
            "gap": _pick(entry.gap, gap),
        }
        for entry in stored.summary.entries[:12]
    ]


def _compare_pairwise(stored: StoredStudy) -> dict[str, Any]:
    """Return the differences of all replicated architectures, named by a trial of each."""
    summary, found = stored.summary, {}
    if summary.comparison is None:
        return {}
    numbers = {entry.label: entry.number for entry in summary.entries}
    for (worse, better), each in summary.comparison.pairs.items():
        keys = ("mean", "low", "high", "p", "p_adjusted", "runs", "windows")
        found[f"{numbers[worse]} − {numbers[better]}"] = _pick(each, keys)
    smallest = summary.smallest.number if summary.smallest else None
    return {"pairs": found, "smallest as good": smallest}


def _name(contrast: Any) -> str:
    return f"{contrast.parameter} {contrast.before} → {contrast.after}"


def _pick(source: Any, names: Iterable[str]) -> Any:
    """Return some attributes of an object; None if there is no object."""
    return None if source is None else {name: _to_plain(getattr(source, name)) for name in names}


def _to_plain(value: Any) -> Any:
    """Convert to the types of JSON; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): _to_plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_to_plain(each) for each in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, str) else value


# ------------------------------------------------------------------ sentences


def search_at_random() -> StudyFindings:
    """Make a random search whose accuracy is best at a rate of 0.01."""
    generator = random.Random(1)
    rows = []
    for number in range(60):
        exponent = generator.uniform(-4, 0)
        accuracy = 0.9 - 0.05 * (exponent + 2) ** 2 + 0.04 * (number % 2)
        accuracy += generator.gauss(0, 0.01)
        rows.append({"rate": 10**exponent, "norm": number % 2 == 1, "accuracy": accuracy})
    import_results(
        pd.DataFrame(rows),
        storage=f"sqlite:///{import_studies().name}/studies.db",
        name="random",
        value="accuracy",
        parameters=["rate", "norm"],
    )
    return StudyFindings(open_study("random").results)


def with_margin(results: Results, margin: float) -> Results:
    """Return replicates of which fewer or more count as good as the best."""
    refinement = results.config.refinement
    assert refinement is not None
    refinement = refinement.model_copy(update={"margin": margin})
    config = results.config.model_copy(update={"refinement": refinement})
    return replace(results, config=config)


def with_smallest_best(results: Results) -> Results:
    """Return replicates of which the best mean has the fewest parameters."""
    is_best = results.table["architecture"] == StudyFindings(results).summary.best.label
    counts = results.table["parameter_count"].mask(is_best, 100)
    return replace(results, table=results.table.assign(parameter_count=counts))


def write_sentences() -> dict[str, list[str]]:
    """Return sentences by what they are about."""
    grid = StudyFindings(open_study("full-grid").results)
    tuned = StudyFindings(open_study("learning-rates").results)
    cells = StudyFindings(open_study("cells").results)
    pruned = StudyFindings(open_study("pruned").results)
    drawn = search_at_random()
    replicates = StudyFindings(open_study("replicates").results)
    strict = StudyFindings(with_margin(replicates.results, 0.001))
    small = StudyFindings(with_smallest_best(replicates.results))
    sentences = {
        "effects": [*list_answer(grid), describe_pairs(grid), *list_noise(grid)],
        "best rates": [*list_answer(tuned), *list_warnings(tuned), describe_pairs(tuned)],
        "cells": [*list_answer(cells), *list_warnings(cells)],
        "pruned": [*list_answer(pruned), describe_pairs(pruned), *list_noise(pruned)],
        "audit": [describe_pruning(pruned), *list_audit(pruned)],
        "least squares": [*list_answer(drawn), *list_warnings(drawn), describe_pairs(drawn)],
        "verdicts": list_answer(replicates),
        "none smaller as good": [describe_smallest(strict)],
        "the best is the smallest": [describe_smallest(small)],
        "last lines": list_headline([tuned, pruned], {}),
    }
    return {name: [to_plain(line) for line in lines] for name, lines in sentences.items()}


# The statistics are sums and eigenvalues of small matrices, whose rounding differs between
# libraries. fANOVA's forest of random trees may differ as a whole; its order may not.
GOLDEN = [
    *(Golden(name, partial(compute_statistics, name), 1e-6, 1e-9) for name in STUDIES),
    Golden("fanova", compute_fanova, 1e-6, 0.02),
    Golden("sentences", write_sentences),
]
