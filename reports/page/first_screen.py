"""What a reader sees first: the question, its answer, one figure, and the numbers that limit it."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.charts.chart import Chart
from reports.page.answer import answer_question
from reports.page.limits import Limit, list_limits
from reports.page.section import Section


@dataclass(frozen=True)
class FirstScreen:
    """What a reader sees first of a study.

    Attributes:
        title: the question, or the name of the study if it has none.
        answer: sentences that answer it.
        chart: the figure that shows the answer; None if nothing can be drawn.
        chart_title: its title.
        caption: what is drawn and what to see, one or two sentences.
        limits: numbers that limit the answer.
    """

    title: str
    answer: list[Markup]
    chart: Chart | None
    chart_title: str
    caption: str
    limits: list[Limit]


def build_first_screen(section: Section) -> FirstScreen:
    """Build the first screen of a study."""
    chart, caption = _choose_chart(section)
    results = section.results
    title = results.config.question or results.name
    if results.is_imported and not results.config.question:
        title = f"Which parameters matter for {results.metric.name}?"
    heading = chart.title if chart else ""
    if chart is section.effects[0].chart:
        heading = section.effects_title
    elif section.pruning and section.early_effects and chart is section.early_effects.chart:
        heading = f"{section.effects_title} after {section.pruning.common_step:,} steps"
    return FirstScreen(
        title, answer_question(section), chart, heading, caption, list_limits(section)
    )


def _choose_chart(section: Section) -> tuple[Chart | None, str]:
    """Choose the chart that answers the question, and say what to see in it."""
    results = section.results
    unit = "architecture" if section.nuisance else "trial"
    if results.is_imported and results.has_replicates:
        unit = results.noun
    name = results.scale.name
    better, worse = ("rises", "falls") if results.scale.higher_is_better else ("falls", "rises")
    has_effects = section.effects[0].chart and not section.summary.has_verdicts
    if section.replicates_chart and not has_effects:
        caption = (
            f"Every run of each {results.noun}, and the mean with its 95% interval. Means whose "
            "intervals overlap may differ by luck."
        )
        return section.replicates_chart, caption
    if section.effects[0].chart:
        drawn = "95% interval"
        if section.audited_effects:
            drawn = "95% interval of drawing other audited trials"
        caption = f"Mean change of the {name} over all pairs of {unit}s that differ in this alone"
        effects = section.effects[0].effects
        if not any(effect.is_decidable for effect in effects):
            caption += ". There are too few pairs to call one significant."
        elif any(effect.is_significant for effect in effects):
            caption += (
                f", with its {drawn}. Triangles: the interval excludes zero, in blue if the {name} "
                f"{better} and in orange if it {worse}."
            )
        else:
            caption += f", with its {drawn}. None is significant."
        return section.effects[0].chart, caption
    if section.early_effects and section.pruning:
        step, steps = section.pruning.common_step, results.trained.training.steps
        caption = (
            f"Not the answer: effects after {step:,} of {steps:,} steps, the last one that all "
            "trials have reached. What helps at first may not help at the end."
        )
        return section.early_effects.chart, caption
    if section.slopes:
        return section.slopes, section.slopes.caption
    return None, ""
