"""The Pareto front of a study, as a table and a figure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import
    import pandas as pd
    import plotly.graph_objects as go

    from reports.stats.pareto_front import ParetoFront


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
        they are not comparable), the held-out loss in ``bits_per_byte``, its ``gap`` to the best
        with the ends ``low`` and ``high`` of its 95% interval, in the same unit (NaN for the best),
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
            "architecture", "trial", "parameters", "seconds", "bits_per_byte", "gap", "low", "high",
            "cheapest_not_worse",
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def plot(self) -> "go.Figure":
        """Plot the loss of all architectures against the cost; a notebook displays the figure."""
        from reports.charts.pareto_plots import plot_front

        return plot_front(self.front)

    def __repr__(self) -> str:
        digits = {"seconds": 2, "bits_per_byte": 4, "gap": 4, "low": 4, "high": 4}
        return self.table.round(digits).to_string(index=False)

    def _repr_html_(self) -> str:
        return self.table.to_html()
