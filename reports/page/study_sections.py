"""Sections of a study's page, in their order.

A function for each section returns None where the study has nothing to show there. The template
``study.html`` renders their blocks. The first screen is :mod:`reports.page.first_screen`, setup and
accounting are :mod:`reports.page.setup`.
"""

import shlex

from reports import sentences, study_tables
from reports.analysis.leaderboard import LEADERBOARD_SIZE
from reports.blocks import Block, Code, Folded, Pair, Section, Text
from reports.charts import comparison_plots, network_plots, trial_plots
from reports.charts.chart import Chart
from reports.findings import StudyFindings
from reports.formatting import join_params, label_change, to_sentence
from reports.page import setup
from rnn.codegen import generate_module
from studies.messages import format_count, to_printable

MAX_SAMPLES = 3
"""Best networks of which a sample of text is shown."""


def list_sections(findings: StudyFindings, shown: Chart | None) -> list[Section]:
    """List the sections of a study's page below its first screen.

    The figure that this has shown is not drawn again.
    """
    sections = [
        _show_effects(findings, shown),
        _show_dependence(findings),
        _show_hypotheses(findings),
        _show_importances(findings),
        _show_refinement(findings, shown),
        _show_replicates(findings, shown),
        _show_windows(findings),
        _show_curves(findings),
        _show_leaderboard(findings),
        _show_costs(findings),
        _show_memory(findings),
        _show_source(findings),
        _show_pruning(findings),
        setup.show_setup(findings),
    ]
    return [section for section in sections if section is not None]


# ------------------------------------------------------------------ effects


def _show_effects(findings: StudyFindings, shown: Chart | None) -> Section | None:
    results = findings.results
    if not findings.effects:
        return None
    texts = [sentences.describe_pairs(findings)]
    texts += [to_sentence(clause) for clause in sentences.list_additive(findings)]
    texts += sentences.list_noise(findings)
    for effect in findings.effects:
        if drawn := sentences.describe_drawn(findings, effect.contrast):
            texts.append(to_sentence(f"{label_change(effect.contrast)}: {drawn}"))
    texts.append(
        "* marks significant effects, by p-values corrected for their number (Holm). Intervals are "
        "not corrected, so one that excludes zero may have no mark."
    )
    blocks: list[Block] = [Text(texts, is_note=True)]
    chart = comparison_plots.chart_effects(findings)
    if shown is None or shown.title != chart.title:
        blocks.append(chart)
    blocks.append(study_tables.tabulate_effects(findings, f"{results.title} effects"))
    return Section("effects", results.effects_title, blocks)


def _show_dependence(findings: StudyFindings) -> Section | None:
    conditional = sorted(findings.conditional, key=lambda found: -found.difference.mean)
    chart = comparison_plots.chart_conditional_effects(conditional, findings.measure)
    if chart is None:
        return None
    name = f"{findings.results.title} conditional effects"
    table = study_tables.tabulate_conditional(conditional, findings.measure, name)
    return Section("conditional", chart.title, [chart, Folded("All conditional effects", [table])])


def _show_hypotheses(findings: StudyFindings) -> Section | None:
    if not findings.hypotheses:
        return None
    table = study_tables.tabulate_hypotheses(findings, f"{findings.results.title} hypotheses")
    return Section("hypotheses", "Hypotheses", [table])


def _show_importances(findings: StudyFindings) -> Section | None:
    with_slices = findings.is_additive or not findings.effects
    charts = trial_plots.chart_importances(findings.results, with_slices)
    if not charts:
        return None
    texts = ["PED-ANOVA and fANOVA by Optuna; neither gives a direction."]
    if findings.misled:
        texts.append(
            f"They are over all {findings.networks:,} networks, of which {findings.misled:,} do "
            "not see their input."
        )
    note = Text(texts, is_note=True)
    return Section("importances", "Importances", [note, Pair(charts[:2]), *charts[2:]])


# ------------------------------------------------------------------ other studies, replicates


def _show_refinement(findings: StudyFindings, shown: Chart | None) -> Section | None:
    comparison = findings.source_comparison
    if comparison is None:
        return None
    results = findings.results
    chart = comparison_plots.chart_variants(comparison, results)
    blocks: list[Block] = [] if shown is not None and shown.title == chart.title else [chart]
    if copied := int(results.table["copied_from"].count()):
        trials = format_count(copied, "trial")
        text = f"{trials} would repeat runs of {comparison.source} exactly: these runs count here."
        blocks.insert(0, Text([text], is_note=True))
    name = f"{results.title} variants"
    blocks.append(study_tables.tabulate_variants(findings, name))
    return Section("refinement", f"Against {comparison.source}", blocks)


def _show_replicates(findings: StudyFindings, shown: Chart | None) -> Section | None:
    if not findings.results.has_replicates:
        return None
    blocks: list[Block] = []
    texts = _list_verdict_rules(findings)
    if texts:
        blocks.append(Text(texts, is_note=True))
    runs = comparison_plots.chart_replicates(findings)
    if shown is None or shown.title != runs.title:
        blocks.append(runs)
    if findings.summary.comparison is not None:
        differences = comparison_plots.chart_differences(
            findings.summary.comparison, findings.results.metric
        )
        if differences is not None:
            blocks.append(differences)
    return Section("replicates", "Replicates", blocks) if blocks else None


def _list_verdict_rules(findings: StudyFindings) -> list[str]:
    """Say in sentences what the verdicts on replicates mean; none without verdicts."""
    judgement = findings.summary.judgement
    if judgement is None or not findings.summary.has_verdicts:
        return []
    margin = f"{judgement.margin:g} {findings.results.metric.unit}".rstrip()
    texts = [
        f"{findings.results.noun.capitalize()}s are compared in pairs, over runs of the same "
        "number.",
        "Worse: another is significantly better, with a probability of 5% of any false difference.",
        f"As good: at most {margin} worse than the best, whichever that is.",
        "All others are undecided, which does not show that they are equal.",
    ]
    if earlier := findings.results.earlier_replicates:
        before = ", then ".join(map(str, earlier))
        texts.append(
            f"The study had {before} replicates before it was extended: the 5% hold for one look, "
            "and looking again costs error."
        )
    return texts


# ------------------------------------------------------------------ trials


def _show_windows(findings: StudyFindings) -> Section | None:
    chart = network_plots.chart_windows(findings.results, findings.summary.entries)
    return None if chart is None else Section("windows", chart.title, [chart])


def _show_curves(findings: StudyFindings) -> Section | None:
    chart = trial_plots.chart_curves(findings.results)
    return None if chart is None else Section("curves", chart.title, [chart])


def _show_leaderboard(findings: StudyFindings) -> Section:
    results = findings.results
    summary = findings.summary
    entries = summary.entries if summary.judgement else summary.entries[:LEADERBOARD_SIZE]
    table = study_tables.tabulate_leaderboard(
        results, summary, entries, f"{results.title} leaderboard"
    )
    note = Text(_list_ranking_rules(findings), is_note=True)
    return Section("leaderboard", "Leaderboard", [table, note])


def _list_ranking_rules(findings: StudyFindings) -> list[str]:
    """Say in sentences what the leaderboard ranks by, and what a place in it is worth."""
    results = findings.results
    texts = []
    if results.nuisance:
        texts.append(f"Each {results.noun} is ranked at its best {join_params(results.nuisance)}.")
    if findings.summary.worse is not None:
        texts.append("The interval of the share is Wilson’s 95% interval.")
        texts.append(to_sentence(sentences.describe_solved_verdicts(findings)))
    elif results.has_replicates:
        texts.append("The interval is Student’s 95% interval of the mean over the runs.")
        if any(entry.is_adjusted for entry in findings.summary.entries):
            texts.append("Means are adjusted for the replicates that are missing.")
    elif findings.summary.compares_single_runs:
        texts.append(
            f"“vs. best” compares single runs on the same {results.measure.window}s. It has no "
            "interval: that of the same networks trained again is not known."
        )
    return texts


def _show_costs(findings: StudyFindings) -> Section | None:
    charts = network_plots.chart_costs(findings.results, findings.summary)
    blocks: list[Block] = [Pair(charts)] if charts else []
    states = network_plots.chart_states(findings.results, findings.summary.entries)
    if states is not None:
        blocks.append(states)
    title = f"{findings.results.measure.loss.capitalize()} against cost"
    return Section("cost", title, blocks) if blocks else None


def _show_memory(findings: StudyFindings) -> Section | None:
    results = findings.results
    entries = findings.summary.entries
    blocks: list[Block] = []
    chart = network_plots.chart_context(results, entries)
    if chart is not None:
        blocks.append(chart)
    table = study_tables.tabulate_memory(results, entries, f"{results.title} by length and slice")
    if table.rows:
        blocks.append(table)
    return Section("memory", "Memory", blocks) if blocks else None


# ------------------------------------------------------------------ the best network


def _show_source(findings: StudyFindings) -> Section | None:
    results = findings.results
    best = findings.summary.best
    if best.architecture is None:
        return None
    texts = [
        f"{best.full_label}, trial {best.number}, without its switched-off parts.",
        f"Train it once more, alone: rnn-search run {shlex.quote(results.name)} "
        f"--trial {best.number}.",
    ]
    if not best.architecture.is_built_in:
        texts.append(f"The source file of {best.architecture.cell} is stored with the study.")
    module = generate_module(best.architecture, results.spec, best.bptt_steps)
    source = Folded("The network as a Python module", [Code(module)])
    blocks: list[Block] = [Text(texts, is_note=True), source]
    for entry in findings.summary.entries[:MAX_SAMPLES]:
        if entry.sample is not None:
            title = f"Sample of trial {entry.sample_trial}, {entry.label}"
            blocks.append(Folded(title, [Code(to_printable(entry.sample), language="text")]))
    return Section("source", "Source of the best network", blocks)


def _show_pruning(findings: StudyFindings) -> Section | None:
    pruning = findings.pruning
    if pruning is None:
        return None
    results = findings.results
    texts = [
        f"The best {pruning.top_count} of {pruning.planned:,} {results.pruned_noun}s are to be "
        f"kept; {pruning.step_share:.0%} of all steps were trained.",
        *sentences.list_audit(findings),
    ]
    blocks: list[Block] = [Text(texts)]
    if len(pruning.rungs):
        table = study_tables.tabulate_rungs(pruning, f"{results.title} rungs")
        blocks.append(Folded("When trials were pruned", [table]))
    return Section("pruning", "Pruning", blocks)
