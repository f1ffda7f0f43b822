"""A study's note in Markdown, below anything that users write there."""

import re
import shlex
from collections.abc import Sequence

import tomli_w

from reports.analysis.leaderboard import rank_architectures
from reports.analysis.nuisance import describe_judged, join_names
from reports.analysis.outcomes import build_outcome_table, describe_outcomes
from reports.analysis.pruning_audit import audit_pruning
from reports.analysis.sweeps import describe_sweep, fit_sweep
from reports.data.results import Results
from reports.formatting import (
    effects_title,
    escape_markdown,
    format_number,
    load_templates,
    loss_unit,
)
from reports.stats.conditional_effects import RankedEffect, describe_insignificance
from reports.stats.outcome_table import compute_outcomes
from reports.stats.scale import format_count
from studies.config import StudyConfig

N_BEST = 5
"""Number of best trials that the note lists and whose files are stored."""

N_EFFECTS = 3
"""Number of largest effects that the note lists."""


def render_note(results: Results, effects: Sequence[RankedEffect]) -> str:
    """Render the generated part of the note; equal states of a study give equal texts.

    Args:
        results: results of the study, of which no trial may be complete.
        effects: effects of the published figure, the largest first.
    """
    has_complete = results.counts.complete > 0 and not results.config.task_names
    main = [each.main for each in effects]
    additive = describe_sweep(results, fit_sweep(results, main), main) if has_complete else []
    text = _TEMPLATES.get_template("note.md").render(
        results=results,
        command=shlex.join(["rnn-search", "report", results.name]),
        config=results.config,
        counts=results.counts,
        measure=results.measure,
        metric=results.metric,
        best=rank_architectures(results, N_BEST) if has_complete else [],
        judged=describe_judged(results),
        outcomes=_describe_outcomes(results) if has_complete else "",
        audit=_describe_audit(results) if has_complete else "",
        effects=main,
        additive=additive,
        describe_insignificance=describe_insignificance,
        largest_effects=[each.text for each in effects if each.is_significant][:N_EFFECTS],
        nuisance=join_names(results.nuisance),
        effects_title=effects_title(results.is_gated),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _describe_outcomes(results: Results) -> str:
    """Say which changes bring networks below the threshold; "" without one."""
    if results.config.report_threshold is None:
        return ""
    table = build_outcome_table(results, results.config.report_threshold)
    return describe_outcomes(compute_outcomes(table), results, loss_unit(results.config))


def _describe_audit(results: Results) -> str:
    """Say what the audited trials of a pruned study measure; "" if the study is not pruned."""
    if not results.is_pruned:
        return ""
    audit = audit_pruning(results)
    if audit is None:
        return "No trial was audited: what pruning lost is not known."
    counts = results.counts
    drawn = format_count(audit.trials, "audited trial")
    if counts.finished < counts.planned or not audit.is_valid or not audit.stopped:
        return (
            f"{drawn}: what pruning lost is not known{' yet' * (counts.finished < counts.planned)}."
        )
    best = f"best {audit.top_count} {results.judged_noun}s"
    text = (
        f"{drawn}: with 95% confidence at least {audit.recall_low:.0%} of the {best} are complete, "
        f"and {audit.inside} of {audit.tested} finished within two scales of their predictions "
        f"({audit.stated_share:.0%} expected)"
    )
    return f"{text}: **the predictions were not right**." if audit.is_alarm else f"{text}."


def to_toml(config: StudyConfig) -> str:
    """Return a config as TOML that loads as an equal config, where the files it names are."""
    settings = config.model_dump(
        mode="json", exclude_none=True, exclude={"cells", "task_record", "task_records"}
    )
    return tomli_w.dumps(settings).strip()


_TEMPLATES = load_templates(escaping=False)
_TEMPLATES.filters |= {
    "count": "{:,}".format,
    "escape_markdown": escape_markdown,
    "number": format_number,
    "toml": to_toml,
}
