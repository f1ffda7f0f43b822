"""Hypotheses about a study's switches, read from a TOML file, and the rules that decide them.

A hypothesis is tested by mean differences over matched pairs. So is the question which of two
switches has the larger effect: in a two-by-two design the difference of their main effects is the
difference between trials with the first switch alone and trials with the second alone (Box, Hunter
& Hunter, *Statistics for Experimenters*, 2nd edition, chapter 5).
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from reports.errors import ReportError
from reports.formatting import format_param
from reports.stats.contrast import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.paired_difference import PairedDifference
from rnn.config import ParamValue
from studies.files import read_toml
from studies.space import CELL, GATED_PARAMS, REPLICATE
from studies.strict_model import StrictModel
from studies.training import TRAINING_PARAMS


class Verdict(StrEnum):
    """Verdict on a hypothesis."""

    HOLDS = "holds"
    UNDECIDED = "undecided"
    FAILS = "does not hold"
    NOT_TESTABLE = "not testable"
    """The hypothesis names a parameter that no study of this kind has."""


_LEAST_FAVORABLE_LAST = [Verdict.HOLDS, Verdict.UNDECIDED, Verdict.FAILS]


@dataclass(frozen=True)
class DecisionRule:
    """When a hypothesis holds and when it fails; the two conditions exclude each other.

    Attributes:
        holds: condition, given the difference and the margin.
        fails: condition, given the same.
        holds_if: text of the condition, with a ``{margin}`` placeholder.
        fails_if: text of the condition, with a ``{margin}`` placeholder.
    """

    holds: Callable[[PairedDifference, float], bool]
    fails: Callable[[PairedDifference, float], bool]
    holds_if: str
    fails_if: str

    def decide(self, difference: PairedDifference, margin: float) -> Verdict:
        """Return the verdict; it is undecided if the interval can support no decision."""
        if not difference.is_decidable:
            return Verdict.UNDECIDED
        if self.holds(difference, margin):
            return Verdict.HOLDS
        return Verdict.FAILS if self.fails(difference, margin) else Verdict.UNDECIDED


_LOWERS = DecisionRule(
    lambda difference, margin: difference.high < 0,
    lambda difference, margin: difference.high >= 0 and difference.low >= -margin,
    "the interval lies below 0",
    "the interval lies above −{margin}, and not below 0",
)
_DOES_NOT_LOWER = DecisionRule(_LOWERS.fails, _LOWERS.holds, _LOWERS.fails_if, _LOWERS.holds_if)
_MAKES_NO_DIFFERENCE = DecisionRule(
    lambda difference, margin: -margin <= difference.low and difference.high <= margin,
    lambda difference, margin: difference.low > margin or difference.high < -margin,
    "the interval lies within ±{margin}",
    "the interval lies outside ±{margin}",
)
RULES: Mapping[str, DecisionRule] = {
    "lowers": _LOWERS,
    "does-not-lower": _DOES_NOT_LOWER,
    "makes-no-difference": _MAKES_NO_DIFFERENCE,
}


class SettingContrast(StrictModel):
    """Two settings of the same parameters, compared with all others being equal.

    Attributes:
        label: short name; derived from the settings if they differ in one parameter.
        before: value of each parameter in the first trial of a pair.
        after: values in the second trial.
    """

    label: str = ""
    before: dict[str, ParamValue] = Field(min_length=1)
    after: dict[str, ParamValue]

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        if self.before.keys() != self.after.keys():
            raise ValueError("expected the same parameters before and after")
        return self

    @property
    def name(self) -> str:
        """The label, or else the changes of the parameters."""
        changes = (
            Contrast(name, before, self.after[name]).description
            for name, before in self.before.items()
        )
        return self.label or ", ".join(changes)


class LargerThan(StrictModel):
    """Comparison of one contrast's effect with the effects of some switches.

    Attributes:
        contrast: the contrast.
        switches: boolean parameters. Each is compared at the value that lowers the loss.
    """

    contrast: SettingContrast
    switches: list[str]

    def list_contrasts(self, table: FactorialTable) -> Iterator[SettingContrast]:
        """Yield the contrast with each switch off against the switch without the contrast."""
        before, after = self.contrast.before, self.contrast.after
        for switch in self.switches:
            is_better_on = not table.compute_difference({switch: False}, {switch: True}).mean > 0
            yield SettingContrast(
                label=f"{self.contrast.name} against "
                f"{'' if is_better_on else 'no '}{format_param(switch)}",
                before={**before, switch: is_better_on},
                after={**after, switch: not is_better_on},
            )


class Hypothesis(StrictModel):
    """A hypothesis and its test.

    Attributes:
        claim: the hypothesis, one sentence.
        comparison: what is compared, for a reader.
        rule: key of the decision rule in :data:`RULES`.
        contrasts: contrasts that are tested.
        consecutive: parameter of which each value is tested against the next smaller one.
        larger_than: switches against which a contrast is tested.
        conjunction: whether the claim is about all contrasts at once, so that the least favorable
            one decides. Otherwise each contrast gets a verdict.
        context: contrasts that are estimated without a verdict.
    """

    claim: str
    comparison: str
    rule: Literal["lowers", "does-not-lower", "makes-no-difference"]
    contrasts: list[SettingContrast] = Field(default_factory=list)
    consecutive: str | None = None
    larger_than: LargerThan | None = None
    conjunction: bool = False
    context: list[SettingContrast] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_test(self) -> Self:
        if not (self.contrasts or self.consecutive or self.larger_than):
            raise ValueError("expected contrasts, consecutive or larger_than")
        return self

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters that it names."""
        larger = self.larger_than
        contrasts = [*self.contrasts, *self.context, *([larger.contrast] if larger else [])]
        names = [name for contrast in contrasts for name in contrast.before]
        names += larger.switches if larger else []
        return list(dict.fromkeys(names + ([self.consecutive] if self.consecutive else [])))

    @property
    def decision_rule(self) -> DecisionRule:
        """The decision rule."""
        return RULES[self.rule]

    def list_contrasts(self, table: FactorialTable) -> Iterator[SettingContrast]:
        """Yield the contrasts that a table can test."""
        yield from self.contrasts
        if self.larger_than:
            yield from self.larger_than.list_contrasts(table)
        if self.consecutive:
            for less, more in itertools.pairwise(table.axes.get(self.consecutive, ())):
                yield SettingContrast(
                    before={self.consecutive: less}, after={self.consecutive: more}
                )


class _HypothesisFile(StrictModel):
    hypothesis: list[Hypothesis] = Field(min_length=1)


@dataclass(frozen=True)
class Finding:
    """Estimate of one contrast and the verdict on its hypothesis.

    Attributes:
        number: number of the hypothesis, from 1.
        contrast: name of the contrast.
        subset: name of the subset of trials.
        effect: the estimate, in nats.
        verdict: the verdict; None for a contrast that is shown as context.
    """

    number: int
    contrast: str
    subset: str
    effect: PairedDifference
    verdict: Verdict | None


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read hypotheses from a TOML file; ``reports/hypotheses.toml`` describes its keys.

    Raises:
        ReportError: if the file cannot be read or a key or value is not valid.
    """
    try:
        return _HypothesisFile.model_validate(read_toml(path)).hypothesis
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise ReportError(f"{path}: {key}: {message}") from error
    except ValueError as error:  # TOML or UTF-8
        raise ReportError(f"{path}: not valid TOML: {error}") from error


def evaluate_hypothesis(
    number: int,
    hypothesis: Hypothesis,
    table: FactorialTable,
    subset: str,
    margin: float,
    parameters: Collection[str],
    options: Collection[str] = (),
) -> list[Finding]:
    """Test a hypothesis on a subset of trials.

    Args:
        number: number of the hypothesis, from 1.
        hypothesis: the hypothesis.
        table: trials of the subset.
        subset: name of the subset.
        margin: largest difference, in nats, that counts as none.
        parameters: parameters that may be contrasted.
        options: options of the study's own cells.

    Returns:
        The context contrasts and the verdicts; empty if no contrast has a pair. A hypothesis about
        a name that is neither an option nor a parameter of the program is not testable.
    """
    known = {CELL, *GATED_PARAMS, *TRAINING_PARAMS, REPLICATE, *options}
    if unknown := [name for name in hypothesis.parameters if name not in known]:
        names = ", ".join(map(repr, unknown))
        nothing = PairedDifference.from_differences(np.empty(0))
        return [Finding(number, f"no parameter {names}", subset, nothing, Verdict.NOT_TESTABLE)]

    def estimate(contrasts: Iterable[SettingContrast]) -> Iterator[tuple[str, PairedDifference]]:
        for contrast in contrasts:
            effect = table.compute_difference(contrast.before, contrast.after)
            if effect.pairs and contrast.before.keys() <= set(parameters):
                yield contrast.name, effect

    rule = hypothesis.decision_rule
    tested = [
        Finding(number, name, subset, effect, rule.decide(effect, margin))
        for name, effect in estimate(hypothesis.list_contrasts(table))
    ]
    if not tested:
        return []
    if hypothesis.conjunction:
        tested = [max(tested, key=_unfavorableness)]
    context = [
        Finding(number, name, subset, effect, None) for name, effect in estimate(hypothesis.context)
    ]
    return context + tested


def _unfavorableness(finding: Finding) -> tuple[int, float]:
    assert finding.verdict is not None
    return _LEAST_FAVORABLE_LAST.index(finding.verdict), finding.effect.high
