"""Sentences about small fixed studies: those of ``inputs/``, and a random search made here.

``cells`` compares two cells, one of which diverges, at two batch sizes.
"""

import random
from dataclasses import replace

import pandas as pd
from golden import Golden
from golden_statistics import import_studies, open_study

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
from rnn_search import import_results


def read_findings(name: str) -> StudyFindings:
    """Read the findings of a study of ``inputs/``."""
    return StudyFindings(open_study(name).results)


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
    return read_findings("random")


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
    grid = read_findings("full-grid")
    tuned = read_findings("learning-rates")
    cells = read_findings("cells")
    pruned = read_findings("pruned")
    drawn = search_at_random()
    replicates = read_findings("replicates")
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


GOLDEN = [Golden("sentences", write_sentences)]
