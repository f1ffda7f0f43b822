"""Effects of a study's parameters and its Pareto front, as tables and as figures."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import
    import pandas as pd
    import plotly.graph_objects as go

    from reports.analysis.pareto_front import ParetoFront
    from reports.stats.additive_model import AdditiveModel
    from reports.stats.conditional_effects import ConditionalEffect
    from reports.stats.effects import Effect
    from reports.stats.paired_difference import PairedDifference


_COLUMNS = [
    "parameter", "before", "after", "effect", "low", "high", "pairs", "significant",
]  # fmt: skip


def format_table(
    table: "pd.DataFrame", losses: Iterable[str], spec: str, na_rep: str = "NaN"
) -> str:
    """Format a table as text, and the columns of losses and differences by a specification."""
    if spec.endswith("f"):
        digits = dict.fromkeys(losses, int(spec[1:-1]))
        return table.round(digits).to_string(index=False, na_rep=na_rep)
    formatters = dict.fromkeys(losses, f"{{:{spec}}}".format)
    return table.to_string(index=False, na_rep=na_rep, formatters=formatters)


@dataclass(frozen=True, eq=False, repr=False)
class Effects:
    """Main effects of the parameters of a study; printed as their table.

    Attributes:
        effects: the effects, with their contrasts.
        unit: unit of the effects.
        warnings: nuisance parameters of which many architectures are best at an end of the values
            tried, and why no effect is known, in sentences.
        conditional_effects: the effects within each value of the other parameters.
        spec: format of an effect in the printed table.
        additive: additive model of trials that matched pairs do not compare; None if they do.
    """

    effects: "list[Effect]"
    unit: str
    warnings: list[str] = field(default_factory=list)
    conditional_effects: "list[ConditionalEffect]" = field(default_factory=list)
    spec: str = ".4f"
    additive: "AdditiveModel | None" = None

    @property
    def trends(self) -> "pd.DataFrame":
        """One row per number of many values, such as those that a sampler drew.

        Columns: ``parameter``, the least and the greatest value tried, ``low`` and ``high``; the
        value ``best`` with the ends ``best_low`` and ``best_high`` of its 95% interval (NaN where
        it is unknown), ``size``: the range of the fitted values, and whether the trend is
        ``significant``, corrected for the number of all tests of the additive model. Empty for
        studies whose matched pairs compare all parameters.
        """
        import pandas as pd

        rows = [
            (
                each.parameter,
                each.low,
                each.high,
                each.optimum.value,
                each.optimum.low,
                each.optimum.high,
                float(each.curve.max() - each.curve.min()),
                each.is_significant,
            )
            for each in (self.additive.trends if self.additive else ())
        ]
        columns = ["parameter", "low", "high", "best", "best_low", "best_high", "size"]
        return pd.DataFrame(rows, columns=[*columns, "significant"])

    @property
    def table(self) -> "pd.DataFrame":
        """One row per contrast.

        Columns: ``parameter``, the values ``before`` and ``after``, their mean difference
        ``effect`` (negative is better, unless higher values are) with the ends ``low`` and ``high``
        of its 95% interval, which is that of repeating each run, the number of ``pairs``, whether
        it is ``significant`` (the interval excludes zero; an interval from the differences between
        the pairs must rest on at least 8), and the ``source`` of the interval. Where the effect
        differs between the values of another parameter by as much as its mean or more,
        ``depends_on`` names that parameter, and ``least`` and ``greatest`` are the effects at its
        values. A cell with switches or options is compared at the best of them
        (``docs/statistics.md``). Without matched pairs the effects are those of the additive model,
        which :attr:`trends` completes.
        """
        import pandas as pd

        rows = [
            (
                *_describe(each, each),
                str(each.source),
                condition.parameter if condition else "",
                condition.least.mean if condition else math.nan,
                condition.greatest.mean if condition else math.nan,
            )
            for each, condition in self._list_conditions()
        ]
        columns = [*_COLUMNS, "source", "depends_on", "least", "greatest"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def conditional(self) -> "pd.DataFrame":
        """One row per contrast, other parameter and value of it.

        Columns: those of a contrast, as in :attr:`table`, here within the ``value`` of the
        parameter ``by``; all values have the same pairs. ``range`` is the difference between the
        greatest and the least effect by this parameter, ``differs`` whether it is significant,
        ``rivals_main`` whether it is also at least as large as the main effect, and
        ``opposite_signs`` whether significant effects have both signs. Significance is corrected
        for the number of rows, or of ranges, by Holm's method; the intervals are not.
        """
        import pandas as pd

        rows = [
            (
                *_describe(each.main, level),
                each.parameter,
                level.value,
                each.difference.mean,
                each.is_significant,
                each.rivals_main,
                each.has_opposite_signs,
            )
            for each in self.conditional_effects
            for level in each.levels
        ]
        columns = ["by", "value", "range", "differs", "rivals_main", "opposite_signs"]
        return pd.DataFrame(rows, columns=_COLUMNS + columns)

    def plot(self) -> "go.Figure":
        """Plot each effect with its interval; a notebook displays the figure."""
        from reports.charts.effect_plots import plot_effects

        return plot_effects(self.effects, self.unit)

    def _list_conditions(self) -> "Iterator[tuple[Effect, ConditionalEffect | None]]":
        """Yield each effect with the condition that rivals its mean most."""
        from reports.stats.conditional_effects import rank_effects

        ranked = rank_effects(self.effects, self.conditional_effects)
        conditions = {each.main.contrast: each.condition for each in ranked}
        for effect in self.effects:
            yield effect, conditions[effect.contrast]

    def __repr__(self) -> str:
        numbers = ["effect", "low", "high", "least", "greatest"]
        # The source is the same in each row of most tables, and long.
        shown = self.table.drop(columns="source")
        text = [format_table(shown, numbers, self.spec, "")] if self.effects else []
        return "\n".join([*text, *(f"warning: {each}" for each in self.warnings)])

    def _repr_html_(self) -> str:
        warnings = "".join(f"<p><strong>{escape(each)}.</strong></p>" for each in self.warnings)
        return self.table.to_html(na_rep="") + warnings


def _describe(main: "Effect", effect: "PairedDifference") -> tuple[object, ...]:
    contrast = main.contrast
    return (
        contrast.parameter,
        contrast.before,
        contrast.after,
        effect.mean,
        effect.low,
        effect.high,
        effect.pairs,
        effect.is_significant,
    )


@dataclass(frozen=True, eq=False, repr=False)
class Pareto:
    """Architectures that no other one beats at its cost; printed as their table.

    Attributes:
        front: the front, and the architectures off it.
        is_replicated: whether architectures were compared over several runs, corrected for all
            pairs; else over the evaluation windows of single runs, without a correction.
    """

    front: "ParetoFront"
    is_replicated: bool

    @property
    def table(self) -> "pd.DataFrame":
        """One row per architecture on the front, the cheapest first.

        Columns: ``architecture``, its ``trial``, ``parameters``, ``seconds`` of a run (NaN where
        they are not comparable), the held-out loss in ``bits_per_byte``, or as ``loss`` in the unit
        of a task other than text, its ``gap`` to the best with the ends ``low`` and ``high`` of its
        95% interval, in the same unit (NaN for the best),
        and ``cheapest_not_worse``: the cheapest architecture that costs less and is not
        significantly worse; None if all of these are.
        """
        import pandas as pd

        rows = []
        for member in self.front.members:
            each, gap = member.architecture, member.gap
            interval = (gap.mean, gap.low, gap.high) if gap else (float("nan"),) * 3
            cheaper = member.cheaper.label if member.cheaper else None
            costs = (each.parameters, each.seconds, each.loss)
            rows.append((each.label, each.number, *costs, *interval, cheaper))
        columns = [
            "architecture", "trial", "parameters", "seconds", self.front.measure.held_out, "gap",
            "low", "high", "cheapest_not_worse",
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def plot(self) -> "go.Figure":
        """Plot the loss of all architectures against the cost; a notebook displays the figure."""
        from reports.charts.pareto_plots import plot_front

        return plot_front(self.front)

    def __repr__(self) -> str:
        losses = [self.front.measure.held_out, "gap", "low", "high"]
        table = self.table.round({"seconds": 2})
        return format_table(table, losses, self.front.measure.spec)

    def _repr_html_(self) -> str:
        return self.table.to_html()
