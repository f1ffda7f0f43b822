"""Optuna's figures of a study, each with its words."""

from dataclasses import dataclass

from reports.charts import alt_text as in_words
from reports.charts import optuna_plots as optuna_figures
from reports.charts.chart import Chart
from reports.data.results import Results, full_factorial_blocks
from reports.formatting import format_count, value_axis_title

FEW = 100
"""Points below which an importance for the best tenth rests on a handful."""

QUESTIONS = {
    "PED-ANOVA": "What brings a trial among the best tenth?",
    "fANOVA": "What moves the loss overall?",
}


@dataclass(frozen=True)
class Importances:
    """Optuna's two importances, side by side, over some of the trials."""

    where: str
    note: str
    drawings: list[Chart]

    @property
    def leading(self) -> list[str]:
        """The parameters, as the figures call them, by what moves the loss overall."""
        bars = self.drawings[-1].figure.data[0]
        return [name for _, name in sorted(zip(bars.x, bars.y, strict=True), reverse=True)]


def compute_importances(
    results: Results, numbers: list[int], where: str, note: str = ""
) -> list[Importances]:
    """Return both importances over some trials; none where these are too few, or all alike."""
    if not optuna_figures.has_enough_trials(results, numbers):
        return []
    study = optuna_figures.to_optuna_study(
        results, numbers, optuna_figures.varying(results, numbers)
    )
    if len(numbers) < FEW:
        tenth = format_count(max(1, len(numbers) // 10), "point")
        note += f" The best tenth is {tenth}: with so few, take PED-ANOVA as a hint."
    drawings = []
    for name, evaluator in optuna_figures.evaluators().items():
        figure = optuna_figures.importance(study, evaluator)
        drawings.append(
            Chart(name, figure, f"{where}: {in_words.importance(figure)}", QUESTIONS[name])
        )
    return [Importances(f"{where} ({format_count(len(numbers), 'point')})", note.strip(), drawings)]


def compute_block_importances(results: Results) -> list[Importances]:
    """Return both importances within each full-factorial block."""
    blocks = full_factorial_blocks(results.table, results.parameters)
    complete = results.complete.index
    found = []
    for name, block in blocks.items():
        numbers = list(block.index.intersection(complete))
        found += compute_importances(results, numbers, f"where {name}")
    return found


def chart_parameters(
    results: Results, numbers: list[int], importances: list[Importances]
) -> list[Chart]:
    """Draw what Optuna has for the trials' parameters, the most important by the first of these."""
    if not importances:
        return []
    names = optuna_figures.varying(results, numbers)
    study = optuna_figures.to_optuna_study(results, numbers, names)
    rows = results.table.loc[numbers]
    leading, axis = importances[0].leading, value_axis_title(results.config)
    drawings = [
        Chart(
            "Slice: every trial over each parameter",
            optuna_figures.slices(study, axis),
            in_words.medians(rows, names),
            width=130 * len(names),
        )
    ]
    if len(leading) > 1:
        top, pair = leading[:3], leading[:2]
        drawings += [
            Chart(
                f"Rank over the most important parameters ({', '.join(top)})",
                optuna_figures.ranks(study, top, axis),
                in_words.least(rows, [_parameter(word) for word in top]),
                "The bluer, the better a trial's rank. Many trials lie in one place: the best of "
                "them is on top, and seen.",
                width=640,
            ),
            Chart(
                "Parallel coordinates: every trial as a line",
                optuna_figures.parallel_coordinates(study),
                in_words.medians(rows, names),
                "The best in orange, on top.",
                width=110 * (1 + len(names)),
            ),
            Chart(
                f"Contour over the two most important parameters ({', '.join(pair)})",
                optuna_figures.contour(study, pair, axis),
                in_words.least(rows, [_parameter(word) for word in pair]),
                "Of the trials with the same two values the best counts.",
            ),
        ]
    return drawings


def chart_study(results: Results) -> list[Chart]:
    """Draw what Optuna has for a study as a whole."""
    study = optuna_figures.to_optuna_study(
        results, list(results.complete.index), results.parameters
    )
    axis = value_axis_title(results.config)
    return [
        Chart(
            "Empirical distribution of the loss",
            optuna_figures.distribution(study, axis),
            in_words.distribution(results.complete),
        ),
        Chart(
            "Optimization history",
            optuna_figures.history(study, axis),
            in_words.history(results.complete),
            "Nothing learns from the trials before: that the best so far falls is chance.",
        ),
    ]


def _parameter(word: str) -> str:
    return word.replace(" ", "_")
