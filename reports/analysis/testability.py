"""What a study can test: the parameters and values that its pairs of trials compare."""

from collections.abc import Iterator, Mapping, Sequence

from reports.data.results import Results
from reports.stats.scale import format_value
from rnn.config import BASELINE_CELLS, ParamValue
from studies.hypotheses import Hypothesis, Region
from studies.space import CELL, GATED_CELL, REPLICATE

_Wanted = Mapping[str, Sequence[ParamValue]]
"""Values that a comparison needs of each parameter; any two or more where there are none."""


def list_contrasted(results: Results) -> set[str]:
    """List the parameters that hypotheses about a study may contrast.

    In a refinement these are the parameters that its variants change: its other differences are a
    result of the selection of its source trials. Baseline cells test no hypothesis, and neither do
    the survivors of pruning.
    """
    if results.is_pruned or _has_only_baselines(results):
        return set()
    names, refinement = set(results.judged_parameters), results.config.refinement
    return names if refinement is None else names & set().union(*refinement.variants)


def list_unknown(results: Results, hypothesis: Hypothesis) -> list[str]:
    """List the parameters of a hypothesis that no study of this kind has."""
    known = {CELL, REPLICATE, *results.config.list_params()}
    return [name for name in hypothesis.parameters if name not in known]


def find_gaps(results: Results, hypothesis: Hypothesis) -> list[str]:
    """Say of each comparison of a hypothesis why no study of this grid can make it.

    Returns:
        A reason such as ``layers has one value`` for each contrast, consecutive parameter and
        switch; "" for those that the grid has, though it may lack all of their pairs.
    """
    region = _find_region_gap(results, hypothesis.region)
    return [region or _find_gap(results, wanted) for wanted in _list_comparisons(hypothesis)]


def resolve_region(results: Results, region: Region) -> dict[str, list[ParamValue]] | None:
    """Return the values of the parameters that vary; None if no trial is in the region."""
    if _find_region_gap(results, region):
        return None
    return {name: each for name, each in region.items() if name in results.judged_parameters}


def _list_comparisons(hypothesis: Hypothesis) -> Iterator[_Wanted]:
    for contrast in hypothesis.contrasts:
        yield {name: [value, contrast.after[name]] for name, value in contrast.before.items()}
    if hypothesis.consecutive:
        yield {hypothesis.consecutive: []}
    if larger := hypothesis.larger_than:
        contrast = larger.contrast
        sides = {name: [value, contrast.after[name]] for name, value in contrast.before.items()}
        yield from (sides | {switch: [False, True]} for switch in larger.switches)


def _find_gap(results: Results, wanted: _Wanted) -> str:
    contrasted = list_contrasted(results)
    for name, needed in wanted.items():
        values = _list_values(results, name)
        if len(values) < 2:
            return f"{name} has {'one' if values else 'no'} value"
        if missing := [value for value in needed if value not in values]:
            return f"{name} has no value {format_value(missing[0])}"
        if name not in contrasted:
            return _explain_exclusion(results, name)
    return ""


def _explain_exclusion(results: Results, name: str) -> str:
    """Say why a study with several values of a parameter does not contrast them."""
    if results.is_pruned:
        return "trials were pruned, and those that remain are a selection"
    if _has_only_baselines(results):
        return "the study has baseline cells only"
    return f"{name} is {'a nuisance parameter' if name in results.nuisance else 'in no variant'}"


def _find_region_gap(results: Results, region: Region) -> str:
    for name, wanted in region.items():
        values = _list_values(results, name)
        if not any(each in values for each in wanted):
            return f"{name} has no value {' or '.join(map(format_value, wanted))}"
        if name in results.judged_parameters:
            continue
        if name in results.table and not results.table[name].isin(wanted).all():
            return f"{name} does not distinguish the architectures"
    return ""


def _list_values(results: Results, name: str) -> list[ParamValue]:
    """List the values of a parameter in a study, whether it varies or not."""
    if name in results.table:
        return results.table[name].dropna().unique().tolist()
    if not results.cells:
        return []
    settings = {CELL: GATED_CELL} | results.config.training.model_dump()
    return [settings[name]] if name in settings else []


def _has_only_baselines(results: Results) -> bool:
    return bool(results.cells) and set(results.cells) <= set(BASELINE_CELLS)
