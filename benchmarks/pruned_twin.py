"""``python -m benchmarks.pruned_twin STORAGE PRUNED TWIN``: compare a pruned study with its twin.

The twin is the same study without pruning, with the same seed: it tells what pruning lost, and what
the effects are that the audited trials estimate.
"""

from collections.abc import Iterator
from contextlib import closing

import click
import pandas as pd

from reports.analysis.judged_effects import build_judged_table
from reports.analysis.pruning import (
    audit_pruning,
    estimate_audited_effects,
    summarize_pruning,
)
from reports.errors import ReportError
from reports.formatting import describe_change
from reports.results import Results
from reports.stats.audit import INTERVAL_SCALES, STATED_SHARE
from reports.study_reader import read_results
from studies.cli import run_with_exit_code
from studies.config import top_count
from studies.errors import StudiesError
from studies.storage.open import read_storage


def compare_twins(pruned: Results, twin: Results) -> Iterator[str]:
    """Yield lines on recall, on what the audited trials measure, and on the effects in both.

    Raises:
        ReportError: if one of the studies is not finished, or they have other trials.
    """
    for results in (pruned, twin):
        counts = results.counts
        if counts.finished < counts.planned:
            raise ReportError(
                f"study {results.name!r} has {counts.planned - counts.finished} unfinished trials: "
                "expected finished studies"
            )
    names = [name for name in twin.all_parameters if name in pruned.table]
    trials = [set(map(tuple, each.table[names].astype(str).to_numpy())) for each in (pruned, twin)]
    if trials[0] != trials[1] or pruned.nuisance != twin.nuisance or twin.is_pruned:
        raise ReportError(
            f"study {twin.name!r} is no unpruned twin of {pruned.name!r}: expected the same trials "
            "and nuisance parameters without pruning"
        )
    noun = "architectures" if twin.nuisance else "trials"
    best = twin.judge(twin.complete).nsmallest(
        top_count(pruned.config.pruning.keep, len(twin.judge())), "value"
    )
    complete = set(map(tuple, pruned.complete[names].astype(str).to_numpy()))
    kept = sum(tuple(row) in complete for row in best[names].astype(str).to_numpy())
    yield f"recall: {kept} of the twin's best {len(best)} {noun} are complete"
    savings = summarize_pruning(pruned)
    if savings is not None:
        yield f"steps: {savings.step_share:.0%} of those of the twin were trained"
    yield from _check_predictions(pruned.table, twin.table, names)
    audit = audit_pruning(pruned)
    if audit is None:
        yield "audit: none"
    else:
        yield (
            f"audit: of {audit.trials} audited trials, {audit.stopped} {noun} would have been "
            f"stopped, {audit.lost} of them among the best; with 95% confidence at least "
            f"{audit.recall_low:.0%} of the best are complete"
        )
        yield (
            f"predictions: {audit.inside} of {audit.tested} within two scales "
            f"({STATED_SHARE:.0%} expected, p = {audit.p_value:.2g}); "
            f"{'held back during the search' if audit.has_held_back else 'no alarm in the search'}"
        )
    found = estimate_audited_effects(pruned)
    if found.obstacle:
        yield f"effects: {found.obstacle.name}"
    truth = {effect.contrast: effect for effect in build_judged_table(twin).compute_effects()}
    survivors = {each.contrast: each for each in build_judged_table(pruned).compute_effects()}
    if found.effects:
        yield f"  {'change':44} {'twin':>8} {'estimate':>9} {'95% interval':>20} {'survivors':>10}"
    covered = 0
    for effect in found.effects:
        exact, left = truth[effect.contrast], survivors.get(effect.contrast)
        is_covered = effect.low <= exact.mean <= effect.high
        covered += is_covered
        interval = f"[{effect.low:+.4f}, {effect.high:+.4f}]"
        of_survivors = "-" if left is None else format(left.mean, "+.4f")
        yield (
            f"  {describe_change(effect)[:44]:44} {exact.mean:+8.4f} {effect.mean:+9.4f} "
            f"{interval:>20}"
            f"{' ' if is_covered else '*'} {of_survivors:>9}"
        )
    if found.effects:
        yield f"  intervals with the twin's effect: {covered} of {len(found.effects)} (others: *)"


def _check_predictions(pruned: pd.DataFrame, twin: pd.DataFrame, names: list[str]) -> Iterator[str]:
    """Yield lines on how far the twin's values are from what was predicted of pruned trials."""
    values = twin.set_index(twin[names].astype(str).agg(tuple, axis=1))["value"]
    stopped = pruned[pruned["state"] == "PRUNED"].dropna(subset=["predicted_value"])
    ends = values.reindex(stopped[names].astype(str).agg(tuple, axis=1)).to_numpy(dtype=float)
    checked = pd.DataFrame(
        {
            "step": stopped["rung"].astype(int),
            "error": ends - stopped["predicted_value"].astype(float),
        }
    )
    scale = stopped["predicted_scale"].astype(float)
    checked["inside"] = checked["error"].abs() <= INTERVAL_SCALES * scale
    checked = checked.dropna(subset=["error"])
    if checked.empty:
        return
    error = checked["error"]
    yield (
        f"pruned trials: of {len(checked)} with a value in the twin, {checked['inside'].sum()} "
        f"({checked['inside'].mean():.0%}) are within two scales of the prediction "
        f"({STATED_SHARE:.0%} expected); mean error {error.mean():+.3f} nats, absolute "
        f"{error.abs().mean():.3f}"
    )
    for step, group in checked.groupby("step"):
        yield (
            f"  pruned at step {step:,}: {group['inside'].sum()} of {len(group)} within two "
            f"scales, mean error {group['error'].mean():+.3f} nats"
        )


@click.command(help="Compare the finished study PRUNED with TWIN, the same study without pruning.")
@click.argument("storage")
@click.argument("pruned")
@click.argument("twin")
def main(storage: str, pruned: str, twin: str) -> int:
    """Print the comparison."""
    with closing(read_storage(storage)) as opened:
        results = [read_results(opened, name, with_windows=False) for name in (pruned, twin)]
    for line in compare_twins(*results):
        click.echo(line)
    return 0


if __name__ == "__main__":
    run_with_exit_code(lambda: main(standalone_mode=False), (ReportError, StudiesError))
