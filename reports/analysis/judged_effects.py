"""Values of architectures, each at its own best values of the nuisance parameters.

A nuisance parameter, such as the learning rate, has to be set but is not what is asked about. An
architecture is a combination of all other parameters. It is judged at its best: by the best value
among its complete trials, over all values of the nuisance parameters. An effect at the best is the
mean difference over pairs of architectures that differ in one parameter alone, each at its best,
corrected for the luck of the best of several runs (:mod:`reports.stats.judged`); an
effect at a single value is that over the trials with this value (Greff et al., *LSTM: A Search
Space Odyssey*, 2017, tune the learning rate for each of their architectures).
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from reports.analysis.solved import arrange_outcomes
from reports.results import Results
from reports.stats import Floats, Integers
from reports.stats.conditional_effects import ConditionalEffect, compute_conditional_effects
from reports.stats.design import encode
from reports.stats.effects import Effect, FactorialTable, Slopes
from reports.stats.judged import Edge, count_edges, estimate_selected
from reports.stats.noise import Deviations, estimate_deviations
from reports.stats.run_means import RunMeans
from reports.trial_table import is_continuous
from studies.space import REPLICATE


def build_judged_table(results: Results) -> FactorialTable:
    """Arrange the values of the architectures, each at its best and corrected for selection.

    Of a task that says when it is solved, they are whether its runs are. Without nuisance
    parameters, each trial is judged.
    """
    key = "judged table"
    if key not in results.computed and results.outcomes is not None:
        results.computed[key] = arrange_outcomes(results, results.outcomes)
    if key not in results.computed:
        rows, slopes = _judge_unbiased(results)
        axes = results.judged_axes
        is_higher = results.measure.higher_is_better
        traits = results.find_traits(axes)
        table = FactorialTable.from_frame(rows, axes, slopes, is_higher, traits)
        kinds = results.find_kinds(rows)
        results.computed[key] = replace(table, uncontrasted=results.uncontrasted, kinds=kinds)
    found: FactorialTable = results.computed[key]
    return found


def estimate_effects(results: Results) -> tuple[list[Effect], list[ConditionalEffect]]:
    """Estimate the effects of the judged table, and those within values of other parameters."""
    key = "effects"
    if key not in results.computed:
        table = build_judged_table(results)
        effects = table.compute_effects()
        results.computed[key] = effects, compute_conditional_effects(table, effects)
    found: tuple[list[Effect], list[ConditionalEffect]] = results.computed[key]
    return found


def _judge_unbiased(results: Results) -> tuple[pd.DataFrame, Slopes | None]:
    """Judge the architectures at their best, each by the loss of another run that is expected.

    Returns:
        The rows of :meth:`~reports.results.Results.judge`, and how their values depend on the
        noise. Their ``value`` is corrected where the noise of all runs of the architecture is
        known, and stays the best otherwise. None if there is nothing to select, if no noise can be
        estimated, and for replicates.
    """
    rows = results.table
    judged = results.judge()
    if len(judged) == len(rows):
        return judged, None
    noise = measure_noise(results)
    if noise is None:
        return judged, None
    places = pd.Series(range(len(rows)), rows.index)
    known = rows[rows["value"].notna()]
    measure = results.measure
    architectures = np.array(results.number_architectures(known), dtype=np.int64)
    losses = measure.to_loss(known["value"].to_numpy(dtype=float))
    deviations = noise.of_trials[places[known.index].to_numpy()]
    if results.has_replicates:
        luck = _estimate_luck(results, known, losses, deviations, architectures)
        shift = pd.Series(luck[architectures], known.index).reindex(judged.index)
        return judged.assign(value=judged["value"] + measure.to_loss(shift)), None
    expected, slopes = estimate_selected(losses, deviations, architectures)
    values = measure.to_loss(expected)
    frame = pd.DataFrame({"value": values[architectures], "slope": slopes[architectures]})
    frame = frame.set_index(known.index).reindex(judged.index)
    groups = noise.groups[places[judged.index].to_numpy()]
    selected = Slopes(frame["slope"].fillna(0).to_numpy(), groups, noise.degrees)
    return judged.assign(value=frame["value"]), selected


def _estimate_luck(
    results: Results,
    runs: pd.DataFrame,
    losses: Floats,
    deviations: Floats,
    architectures: Integers,
) -> Floats:
    """Estimate how much the best mean of each architecture's runs is too low, (architectures,).

    Args:
        results: results of the study.
        runs: complete runs, several of each setting.
        losses: (runs,), their losses.
        deviations: (runs,), standard deviation of each between runs; NaN if unknown.
        architectures: (runs,), index of the architecture of each.
    """
    settings = np.array(results.number_settings(runs), dtype=np.int64)
    replicates = np.array(runs[REPLICATE], dtype=np.int64)
    means = RunMeans.fit(settings, replicates).compute(losses)
    _, firsts, counts = np.unique(settings, return_index=True, return_counts=True)
    groups = architectures[firsts]
    expected, _ = estimate_selected(means, deviations[firsts] / np.sqrt(counts), groups)
    return expected - pd.Series(means).groupby(groups).min().to_numpy()


def measure_noise(results: Results) -> Deviations | None:
    """Measure the noise of all trials, at whichever nuisance values.

    None if too little is left to measure it by, and for single runs of a selection by results,
    which confounds interactions.
    """
    key = "noise"
    if key not in results.computed:
        table = results.table
        names = results.parameters
        codes = encode(table, {name: table[name].dropna().unique().tolist() for name in names})
        values = table["value"].to_numpy(dtype=float)
        noise = None
        if results.has_replicates:
            noise = estimate_deviations(codes, values, table[REPLICATE].to_numpy(dtype=np.int64))
        elif results.has_all_combinations(results.axes):
            noise = estimate_deviations(codes, values)
        results.computed[key] = noise
    found: Deviations | None = results.computed[key]
    return found


def find_edges(results: Results) -> list[Edge]:
    """Find the ends of the values tried at which some architectures have their best value.

    There are none if a sampler drew the values: architectures were not tried at the same ones.
    """
    table = results.table
    is_drawn = any(is_continuous(table[name]) for name in results.nuisance)
    if is_drawn and not results.has_all_combinations(results.parameters):
        return []
    architecture = results.number_architectures(table)
    best = results.judge(table[table["value"].notna()])
    best = best[~architecture[best.index].duplicated()]  # of replicates one run
    return [
        edge for name in results.nuisance for edge in count_edges(table, best, architecture, name)
    ]
