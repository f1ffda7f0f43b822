"""Sentences about small fixed studies: those of ``inputs/``, and a random search made here.

``cells`` compares two cells, one of which diverges, at two batch sizes.
"""

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory

import pandas as pd
from golden import FOLDER, Golden
from reports.narrative import (
    describe_audit,
    describe_noise,
    describe_pruning,
    list_audit_findings,
    list_warnings,
    write_answer,
    write_headline,
)
from reports.phrases import describe_outcomes, describe_verdicts, to_markdown

from reports.findings import StudyFindings
from reports.results import Results
from reports.study_reader import read_results
from rnn_search import import_results, import_study
from studies.storage.open import read_storage


@cache
def read_findings(name: str) -> StudyFindings:
    """Read the findings of a study of ``inputs/``."""
    with TemporaryDirectory(prefix="golden-") as folder:
        storage = f"sqlite:///{folder}/studies.db"
        import_study(FOLDER / "inputs" / f"{name}.jsonl", storage=storage)
        with closing(read_storage(storage)) as opened:
            return StudyFindings(read_results(opened, name))


def search_at_random() -> StudyFindings:
    """Make a random search whose accuracy is best at a rate of 0.01."""
    generator = random.Random(1)
    rows = []
    for number in range(60):
        exponent = generator.uniform(-4, 0)
        accuracy = 0.9 - 0.05 * (exponent + 2) ** 2 + 0.04 * (number % 2)
        accuracy += generator.gauss(0, 0.01)
        rows.append({"rate": 10**exponent, "norm": number % 2 == 1, "accuracy": accuracy})
    with TemporaryDirectory(prefix="golden-") as folder:
        storage = f"sqlite:///{folder}/studies.db"
        import_results(
            pd.DataFrame(rows), storage=storage, name="random", value="accuracy", maximize=True
        )
        with closing(read_storage(storage)) as opened:
            return StudyFindings(read_results(opened, "random"))


def describe_replicates(change: Callable[[Results], Results]) -> str:
    """State the verdicts on the replicates after a change of their results."""
    return describe_verdicts(StudyFindings(change(read_findings("replicates").results)))


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


def write_sentences() -> dict[str, str]:
    """Return sentences by what they are about, as Markdown."""
    grid, tuned = read_findings("full-grid"), read_findings("learning-rates")
    cells, pruned = read_findings("cells"), read_findings("pruned")
    drawn = search_at_random()
    reversal, undecided = write_answer(grid)
    diverged, larger_batches = list_warnings(cells)
    (edge,) = list_warnings(tuned)
    sentences = {
        "the smallest as good": describe_replicates(lambda results: results),
        "none smaller as good": describe_replicates(lambda results: with_margin(results, 0.001)),
        "the best is the smallest": describe_replicates(with_smallest_best),
        "reversal": reversal,
        "undecided": undecided,
        "condition": write_answer(tuned)[0],
        "too few pairs": write_answer(cells)[1],
        "diverged": diverged,
        "larger batches": larger_batches,
        "pruned": describe_pruning(pruned),
        "audit": " ".join([describe_audit(pruned), *list_audit_findings(pruned)]),
        "noise": " ".join(describe_noise(grid)),
        "estimated": write_answer(pruned)[0],
        "nuisance edge": edge,
        "least squares": " ".join([*list_warnings(drawn), *write_answer(drawn)]),
        "outcomes": describe_outcomes(grid),
        "last line": write_headline([tuned, pruned]),
    }
    return {name: to_markdown(text) for name, text in sentences.items()}


GOLDEN = [Golden("narrative", write_sentences)]
