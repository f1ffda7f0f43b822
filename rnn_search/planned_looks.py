"""Planned looks at replicates, taken between two searches of a study, until it is decided."""

import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from reports.analysis.leaderboard import look_at_results, summarize_study
from reports.analysis.nuisance import build_judged_table
from reports.data.results import Results
from reports.data.study_reader import read_results
from reports.errors import ReportError
from reports.stats.planned_looks import RUN_NOISE, Noise, estimate_noise, spend_error
from reports.stats.scale import format_count
from search.derive import group_by_architecture, record_look
from studies.attributes import StudyRecord
from studies.errors import StudiesError
from studies.loader import read_study_record
from studies.measure import Measure, find_measure
from studies.storage.open import load_study, open_storage
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage


@dataclass(frozen=True)
class LookResult:
    """What a look found.

    Attributes:
        lines: lines for the user.
        is_last: whether no look follows.
    """

    lines: list[str]
    is_last: bool


def describe_plan(storage: str, name: str) -> str:
    """Return one line on the looks of a study, and on the gaps that they find, before the first.

    Returns:
        "" for a study without looks, or after the first.
    """
    # Not read-only: closing such a file would release the locks that a search in this process has.
    with closing(open_storage(storage)) as opened:
        study = load_study(opened, name)
        record = read_study_record(study)
        count = len(group_by_architecture(read_trials(opened, study._study_id)))
        refinement = record.config.refinement
        if refinement is None or not refinement.looks or record.looks or count < 2:
            return ""
        noise = _expect_noise(opened, record, count)
    measure = find_measure(record.config)
    unit, spec = measure.held_out_unit, _format_of(measure)
    shares = ", ".join(f"{level:.2%}" for level in spend_error(refinement.looks))
    line = (
        f"looks at {', '.join(map(str, refinement.looks))} runs, which spend {shares} of error; "
        f"margin {refinement.margin:g}"
    )
    if noise is None:
        return line
    return f"{line}; {_describe_gaps(noise, refinement.looks, count, unit, spec)}"


def take_due_look(storage: str, name: str) -> LookResult | None:
    """Take the look that is due, and add the runs that it asks for.

    Any number of processes may do so at the same moment: the first one stores the look and the
    trials in one transaction, and the others find them.

    Args:
        storage: URL of the storage.
        name: name of the study.

    Returns:
        The look, which another process may have stored; None if trials are unfinished.

    Raises:
        ReportError: if no trial is complete.
        StudiesError: if the storage or the study cannot be used.
    """
    with closing(open_storage(storage)) as opened:
        while True:
            study = load_study(opened, name)
            record = read_study_record(study)
            if record.looks and not record.looks[-1].continued:
                return LookResult(_describe(read_results(opened, name, ())), True)
            results = read_results(opened, name, ())
            if results.counts.finished < results.counts.planned:
                return None
            _, look = look_at_results(results, record.looks)
            if record_look(opened, study, record, look) is not None:
                results = read_results(opened, name, ())
                return LookResult(_describe(results), not look.continued)


def count_looks(storage: str, name: str) -> int:
    """Return the number of looks that any process has taken at a study."""
    with closing(open_storage(storage)) as opened:
        return len(read_study_record(load_study(opened, name)).looks)


def _describe(results: Results) -> list[str]:
    """Describe the latest look of a study: verdicts, what follows, and the gaps that it finds."""
    refinement, look = results.config.refinement, results.looks[-1]
    summary = summarize_study(results)
    judgement = summary.judgement
    assert refinement is not None
    assert judgement is not None
    unit, count = results.metric.unit, judgement.comparison.count
    verdicts = ", ".join(
        f"{judgement.count(verdict)} {verdict}" for verdict in ("worse", "as good", "undecided")
    )
    line = (
        f"look at {look.runs} runs, {look.level:.2%} of error: {verdicts}"
        f"{judgement.without_run_text} "
        f"(margin {f'{refinement.margin:g} {unit}'.rstrip()})"
    )
    noise = estimate_noise(judgement.comparison)
    later = [runs for runs in refinement.looks if runs > look.runs]
    if look.continued:
        added = format_count(later[0] - look.runs, "more run")
        line += f"; {len(look.continued)} of {count} architectures get {added}"
        if noise is None:
            return [line]
        first = refinement.looks.index(later[0])
        spec = _format_of(results.measure)
        gaps = _describe_gaps(noise, refinement.looks, count, unit, spec, first)
        return [line, gaps]
    return [line, f"best mean: {summary.best.full_label}; {summary.describe_smallest()}"]


def _format_of(measure: Measure) -> str:
    """Return the format of a difference."""
    return ".3f" if measure.is_text else ".3g"


def _describe_gaps(
    noise: Noise, looks: list[int], count: int, unit: str, spec: str, first: int = 0
) -> str:
    """Say which gaps the looks from one on find, with a run noise."""
    levels = spend_error(looks)
    gaps = ", ".join(
        f"{noise.find_gap(runs, count, level):{spec}} at {runs}"
        for runs, level in list(zip(looks, levels, strict=True))[first:]
    )
    return (
        f"gaps found with a probability of 80%, {noise.source} run noise "
        f"{f'{noise.of_run:{spec}} {unit}'.rstrip()}: {gaps} runs"
    )


def _expect_noise(storage: LeasedRDBStorage, record: StudyRecord, count: int) -> Noise | None:
    """Return the noise of runs in the source study, near its best, or that of other studies.

    In tasks other than text it is None if the source study does not tell.
    """
    assumed = Noise(RUN_NOISE) if record.config.is_text else None
    assert record.config.refinement is not None
    try:
        results = read_results(storage, record.config.refinement.source, (), False)
    except (ReportError, StudiesError):  # deleted meanwhile
        return assumed
    if results.config.objective != "validation":  # the noise of the training loss is another one
        return assumed
    table = build_judged_table(results)
    if table.noise is None:
        return assumed
    best = np.argsort(table.values)[:count]
    variance = float(table.noise.variances[table.noise.regions[best]].mean())
    if math.isnan(variance):
        return assumed
    of_run = math.sqrt(variance)
    if record.config.is_text:  # from nats per token to bits per byte
        of_run /= math.log(2) * record.tokenizer.bytes_per_token
    return Noise(of_run, source=f"from {results.name!r} estimated")
