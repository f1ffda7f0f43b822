"""The command ``rnn-search hypotheses``: test hypotheses on finished studies.

Tested are the hypotheses that the studies store, and those of a file, which are exploratory where a
study does not store them.

Studies that test no hypothesis, of replicates or baseline cells, are listed with the ranking and
comparison of their architectures.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from reports.analysis.hypothesis_tests import (
    HypothesisTest,
    describe_comparison,
    describe_region,
    list_unknown,
    run_test,
)
from reports.analysis.nuisance import join_names
from reports.errors import ReportError
from reports.findings import StudyFindings
from reports.formatting import escape_markdown, format_number, load_templates
from reports.narrative import list_warnings
from reports.output import OUTPUT, choose_path, identity_tags, report_identity
from reports.phrases import (
    count_outcomes,
    describe_best,
    describe_verdicts,
    explain_single_runs,
    list_notes,
    to_markdown,
    to_sentence,
)
from reports.results import Results
from reports.stats.effects import MIN_PAIRS
from reports.stats.hypotheses import OUTCOME_MARGIN, RULES, Verdict
from reports.stats.scale import format_count, format_signed
from reports.study_reader import read_results
from reports.tables import tabulate_findings, tabulate_leaderboard
from studies.cli import storage_options, studies_argument
from studies.files import atomic_write
from studies.hypotheses import DEFAULT_MARGIN, Hypothesis
from studies.loader import load_hypotheses
from studies.storage.open import read_storage
from studies.text import format_duration

HYPOTHESES = Path(__file__).with_suffix(".toml")
"""Default file of hypotheses: what was published about the first search of this kind."""

_HEADING = "# Hypotheses, tested"


@dataclass(frozen=True)
class StudyTests:
    """Tests of hypotheses on one study.

    Attributes:
        results: results of the study.
        tests: test of each hypothesis by its number. Those of a file that do not apply to the study
            are left out.
    """

    results: Results
    tests: dict[int, HypothesisTest]

    @property
    def has_findings(self) -> bool:
        """Whether it tests a hypothesis."""
        return any(test.findings for test in self.tests.values())

    @property
    def below_threshold(self) -> str:
        """How many trials are on the good side of the threshold, in a sentence; "" without one."""
        clause = count_outcomes(self.results)
        verdicts = [
            finding.outcome_verdict for test in self.tests.values() for finding in test.findings
        ]
        nothing = "" if any(verdicts) else ", so no verdict is about that"
        return f"{clause}{nothing}." if clause else ""

    def list_verdicts(self) -> Iterator[tuple[int, str, str]]:
        """Yield each verdict with the number of its hypothesis and what it is about, in words."""
        threshold, side = self.results.config.report_threshold, self.results.scale.good_side
        for number, test in self.tests.items():
            for finding in test.findings:
                effect, outcomes = finding.effect, finding.outcomes
                if finding.verdict:
                    ends = effect.mean, effect.low, effect.high
                    mean, low, high = (format_signed(end, effect.scale.spec) for end in ends)
                    numbers = "" if math.isnan(effect.mean) else f": {mean}"
                    if not math.isnan(effect.low):
                        numbers += f" ({low} to {high})"
                    subject = f"mean {self.results.measure.loss}"
                    yield number, subject, f"**{finding.verdict}**{numbers}"
                if finding.outcome_verdict and outcomes:
                    numbers = f": {outcomes.rescued} rescued, {outcomes.ruined} ruined"
                    yield number, f"{side} {threshold}", f"**{finding.outcome_verdict}**{numbers}"


def list_hypotheses(
    studies: Sequence[Results], hypotheses: Sequence[Hypothesis], margin: float = DEFAULT_MARGIN
) -> list[Hypothesis]:
    """List the hypotheses of a file, then those that only studies store, each with its margin.

    Of those with the same test only the first is listed.
    """
    given = [each.with_margin(margin) for each in hypotheses]
    stored = [record.hypothesis for results in studies for record in results.hypotheses]
    listed: list[Hypothesis] = []
    for hypothesis in (*given, *stored):
        if not any(each.has_same_test(hypothesis) for each in listed):
            listed.append(hypothesis)
    return listed


def evaluate_study(
    results: Results, hypotheses: Sequence[Hypothesis], margin: float = DEFAULT_MARGIN
) -> StudyTests:
    """Test hypotheses on a finished study.

    Args:
        results: results of the study.
        hypotheses: hypotheses of :func:`list_hypotheses`; of those that a study stores, only the
            study itself is tested.
        margin: largest difference that counts as none unless a hypothesis says otherwise.

    Raises:
        ReportError: if the study is not finished.
    """
    counts = results.counts
    if counts.finished < counts.planned:
        raise ReportError(
            f"study {results.name!r} has finished {counts.finished:,} of {counts.planned:,} "
            "trials: run it to its end first"
        )
    stored = [record.hypothesis for record in results.hypotheses]
    tests = (run_test(results, each.with_margin(margin)) for each in hypotheses)
    return StudyTests(
        results,
        {
            number: test
            for number, test in enumerate(tests, 1)
            if test.findings
            or any(each.has_same_test(test.hypothesis) for each in stored)
            or list_unknown(results, test.hypothesis)
        },
    )


def render_page(
    studies: Sequence[Results],
    hypotheses: Sequence[Hypothesis],
    margin: float = DEFAULT_MARGIN,
    note: str = "",
    command: str = "",
) -> str:
    """Render the page as Markdown; the text depends on the arguments alone.

    Args:
        studies: results of finished studies; one or more of them tests a hypothesis.
        hypotheses: hypotheses to test in addition to those that the studies store.
        margin: largest difference that counts as none unless a hypothesis says otherwise.
        note: remark on how the studies were made, such as the machine.
        command: command that writes the page.

    Raises:
        ReportError: if a study is not finished, or none of them tests a hypothesis.
    """
    listed = list_hypotheses(studies, hypotheses, margin)
    tested = [evaluate_study(each, listed) for each in studies]
    if not any(each.has_findings for each in tested):
        names = ", ".join(repr(each.name) for each in studies)
        raise ReportError(
            f"no hypothesis is tested by {names}: expected a gated study with several values of a "
            "parameter in the hypotheses"
        )
    units = {each.measure.unit for each in studies}
    verdicts: dict[int, dict[tuple[str, str], list[str]]] = {}
    for study in tested:
        for number, subject, verdict in study.list_verdicts():
            cells = verdicts.setdefault(number, {})
            cells.setdefault((study.results.name, subject), []).append(verdict)
    return _TEMPLATES.get_template("hypotheses.md").render(
        heading=_HEADING,
        identity_tags=identity_tags(
            report_identity(each.identity for each in studies), (each.folder for each in studies)
        ),
        hypotheses=list(enumerate(listed, 1)),
        rules=RULES,
        has_regions=any(each.region for each in listed),
        min_pairs=MIN_PAIRS,
        outcome_margin=f"{OUTCOME_MARGIN:.0%}",
        unit=units.pop() if len(units) == 1 and all(units) else "the unit of each study’s value",
        data="text" if all(each.config.is_text for each in studies) else "data",
        studies=[each for each in tested if each.has_findings],
        others=[(each, StudyFindings(each.results)) for each in tested if not each.has_findings],
        provenance=[(each, _describe_provenance(each)) for each in studies],
        note=note,
        command=command,
        has_untestable=any(test.is_untestable for each in tested for test in each.tests.values()),
        not_testable=Verdict.NOT_TESTABLE,
        nuisance=[
            f"{escape_markdown(each.name)}: {join_names(each.nuisance)}"
            for each in studies
            if each.nuisance
        ],
        warnings={each.name: list_warnings(StudyFindings(each)) for each in studies},
        columns=list(dict.fromkeys(key for cells in verdicts.values() for key in cells)),
        verdicts=verdicts,
    )


def write_hypotheses(
    storage_url: str,
    names: Sequence[str],
    output: Path | None = None,
    margin: float = DEFAULT_MARGIN,
    note: str = "",
    hypotheses: Path = HYPOTHESES,
) -> tuple[Path, str]:
    """Write the page about one or several finished studies.

    Args:
        storage_url: URL of the storage; opened for reading only.
        names: names of the studies, in the order of the page.
        output: file to write; ``findings.md`` in :data:`OUTPUT` by default, see
            :func:`reports.output.choose_path`.
        margin: see :func:`render_page`.
        note: see :func:`render_page`.
        hypotheses: TOML file of the hypotheses.

    Returns:
        The file, and a line for the user if it is not the expected one, else "".

    Raises:
        StudiesError: if a study or the storage is missing, or the hypotheses cannot be read.
        ReportError: if a study is not finished or tests nothing, or the file cannot be written, or
            exists and reports something else.
    """
    path = output or (OUTPUT / "findings.md").absolute()
    tested = load_hypotheses(hypotheses)
    with closing(read_storage(storage_url)) as storage:
        results = [read_results(storage, name, with_curves=False) for name in dict.fromkeys(names)]
    if several := [each.name for each in results if each.config.task_names]:
        raise ReportError(
            f"study {several[0]!r} has several tasks: expected a study of one; rnn-search report "
            "tests the hypotheses that it stores in each of them"
        )
    command = _format_command(results, margin, note, hypotheses)
    page = f"{render_page(results, tested, margin, note, command).rstrip()}\n".encode()
    identity = report_identity(each.identity for each in results)
    try:
        path, line = choose_path(path, output is None, identity, _HEADING.encode())
        atomic_write(path, [page])
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror}; choose another --output"
        ) from error
    return path, line


def _format_command(studies: Sequence[Results], margin: float, note: str, hypotheses: Path) -> str:
    """Return the command that writes the same page again, wherever the storage is."""
    words = ["rnn-search", "hypotheses", *(each.name for each in studies)]
    words += [] if hypotheses == HYPOTHESES else ["--hypotheses", str(hypotheses)]
    words += [] if margin == DEFAULT_MARGIN else ["--margin", str(margin)]
    return shlex.join(words + (["--note", note] if note else []))


def _describe_provenance(results: Results) -> str:
    """Return when, where and for how long a study was trained; "" if not recorded."""
    rows = results.table.dropna(subset=["started", "completed", "device"])
    if rows.empty:
        return ""
    first, last = rows["started"].min(), rows["completed"].max()
    days = sorted({f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}"})
    devices, versions, threads = (
        ", ".join(sorted({str(value) for value in rows[name]}))
        for name in ("device", "torch", "threads")
    )
    return (
        f"{' to '.join(days)}, {format_duration((last - first).total_seconds())} with "
        f"{format_count(rows['worker'].nunique(), 'worker')} on {devices} (threads of each: "
        f"{threads}), torch {versions}"
    )


_TEMPLATES = load_templates(escaping=False)
_TEMPLATES.filters |= {
    "comparison": describe_comparison,
    "marked": to_markdown,
    "notes": list_notes,
    "sentence": to_sentence,
    "best": describe_best,
    "single_runs": explain_single_runs,
    "verdicts": describe_verdicts,
    "escaped": escape_markdown,
    "findings": lambda tests, results: tabulate_findings(list(tests), results).to_markdown(),
    "leaderboard": lambda summary, results: tabulate_leaderboard(
        results, summary, summary.entries
    ).to_markdown(),
    "region": describe_region,
    "number": format_number,
    "signed": format_signed,
}


@click.command(
    help="Write a Markdown page about finished studies: which hypotheses hold in which of them."
)
@studies_argument
@storage_options
@click.option(
    "--hypotheses",
    metavar="FILE.toml",
    type=click.Path(dir_okay=False, path_type=Path),
    default=HYPOTHESES,
    help="Hypotheses to test in addition to those that the studies store; by default those "
    "published about the first search of this kind.",
)
@click.option(
    "--output",
    metavar="FILE.md",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; reports/out/findings.md by default.",
)
@click.option(
    "--margin",
    metavar="NATS",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_MARGIN,
    show_default=True,
    help="Largest difference that counts as none, for hypotheses of the file without a margin.",
)
@click.option(
    "--note",
    metavar="TEXT",
    default="",
    help="Remark on how the studies were made, such as the machine.",
)
def hypotheses_command(
    studies: tuple[str, ...],
    storage: str,
    hypotheses: Path,
    output: Path | None,
    margin: float,
    note: str,
) -> int:
    """Write the page."""
    if not math.isfinite(margin):  # NaN passes every range check
        raise click.BadParameter(f"--margin is {margin}: expected a finite number above 0")
    path, line = write_hypotheses(
        storage, studies, output, margin, " ".join(note.split()), hypotheses
    )
    click.echo(path)
    if line:
        click.echo(line, err=True)
    return 0
