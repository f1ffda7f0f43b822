"""The command ``rnn-search hypotheses``: test hypotheses on finished studies.

Tested are the hypotheses that the studies store, and those of a file, which are exploratory where a
study does not store them.

Studies that test no hypothesis, of replicates or baseline cells, are listed with the ranking and
comparison of their architectures.
"""

import math
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mode

import click

from reports import phrases, tables
from reports.analysis.hypothesis_tests import (
    HypothesisTest,
    describe_comparison,
    describe_region,
    describe_rule,
    list_unknown,
    run_test,
)
from reports.errors import ReportError
from reports.findings import StudyFindings
from reports.formatting import format_number, load_templates
from reports.narrative import list_warnings
from reports.phrases import count_outcomes, format_estimate, strong, to_markdown, to_sentence
from reports.results import Results, find_replicates
from reports.stats.effects import MIN_PAIRS
from reports.stats.hypotheses import OUTCOME_MARGIN, Verdict
from reports.stats.scale import format_count
from reports.study_reader import read_studies
from reports.tables import Column, Table
from studies.cli import storage_options, studies_argument
from studies.files import REPORTS, atomic_write, require_regular
from studies.hypotheses import DEFAULT_MARGIN, Hypothesis
from studies.loader import load_hypotheses
from studies.storage.open import read_storage
from studies.text import escape_markdown, format_duration

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

    @cached_property
    def findings(self) -> StudyFindings:
        """What the study shows besides."""
        return StudyFindings(self.results)

    @property
    def is_tested(self) -> bool:
        """Whether it tests a hypothesis."""
        return any(test.findings for test in self.tests.values())

    @property
    def below_threshold(self) -> str:
        """How many trials are on the good side of the threshold, in a sentence; "" without one."""
        clause = count_outcomes(self.results)
        has_verdict = any(self.describe_verdicts(number, True) for number in self.tests)
        nothing = "" if has_verdict else ", so no verdict is about that"
        return f"{clause}{nothing}." if clause else ""

    @property
    def failures(self) -> list[str]:
        """Say which hypotheses do not hold, and by which estimates, in sentences."""
        return [
            f"{self.results.name}: “{test.hypothesis.claim}” does not hold ({finding.contrast}: "
            f"{format_estimate(estimate)})."
            for test in self.tests.values()
            for finding in test.findings
            for verdict, estimate in finding.judged
            if verdict is Verdict.FAILS
        ]

    def describe_verdicts(self, number: int, on_outcomes: bool) -> str:
        """Return the verdicts on a hypothesis with their estimates, for a reader; "" for none."""
        findings = self.tests[number].findings if number in self.tests else []
        verdicts = [
            f"{strong(verdict)}: {format_estimate(estimate)}"
            for finding in findings
            for verdict, estimate in finding.judged
            if estimate.scale.is_outcome == on_outcomes
        ]
        return "; ".join(dict.fromkeys(verdicts))


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


def evaluate_study(results: Results, hypotheses: Sequence[Hypothesis]) -> StudyTests:
    """Test hypotheses on a finished study.

    Of those that studies store, only these studies are tested.

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
    tests = enumerate((run_test(results, each) for each in hypotheses), 1)
    return StudyTests(
        results,
        {
            number: test
            for number, test in tests
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
    if not any(each.is_tested for each in tested):
        names = ", ".join(repr(each.name) for each in studies)
        problems = [run_test(each, hypothesis).problem for each in studies for hypothesis in listed]
        raise ReportError(
            f"no hypothesis is tested by {names} ({mode(problems)}): choose other studies, or "
            "state hypotheses about these with --hypotheses"
        )
    trained = {each.name: each for each in studies}
    return _TEMPLATES.get_template("hypotheses.md").render(
        heading=_HEADING,
        verdicts=tabulate_verdicts(tested, listed),
        rules=tabulate_rules(listed),
        min_pairs=MIN_PAIRS,
        outcome_margin=f"{OUTCOME_MARGIN:.0%}",
        studies=sorted(tested, key=lambda each: not each.is_tested),
        provenance=[(name, each, _describe_provenance(each)) for name, each in trained.items()],
        note=note,
        command=command,
        list_warnings=list_warnings,
        phrases=phrases,
        tables=tables,
    )


def tabulate_verdicts(
    studies: Sequence[StudyTests], hypotheses: Sequence[Hypothesis]
) -> Table[tuple[int, Hypothesis]]:
    """Tabulate the verdicts on hypotheses in each study."""

    def show(study: StudyTests, on_outcomes: bool, row: tuple[int, Hypothesis]) -> str:
        return study.describe_verdicts(row[0], on_outcomes)

    rows = list(enumerate(hypotheses, 1))
    columns = []
    for study in studies:
        results = study.results
        mean = f"mean {results.measure.loss}"
        threshold = f"{results.scale.good_side} {results.config.report_threshold}"
        columns += [
            Column(f"{results.name}, {title}", partial(show, study, on_outcomes))
            for on_outcomes, title in ((False, mean), (True, threshold))
        ]
    columns = [each for each in columns if any(map(each.value, rows))]
    tested = [row for row in rows if any(each.value(row) for each in columns)]
    return Table("verdicts", tested, [*_name_columns(), *columns])


def tabulate_rules(hypotheses: Sequence[Hypothesis]) -> Table[tuple[int, Hypothesis]]:
    """Tabulate when each hypothesis holds."""
    return Table(
        "rules",
        enumerate(hypotheses, 1),
        [
            *_name_columns(),
            Column("comparison", lambda row: describe_comparison(row[1])),
            Column("region", lambda row: describe_region(row[1]),
                   condition=any(each.region for each in hypotheses)),
            Column("margin", lambda row: row[1].margin, "g"),
            Column("holds if", lambda row: describe_rule(row[1])[0]),
            Column("does not hold if", lambda row: describe_rule(row[1])[1]),
        ],
    )  # fmt: skip


def _name_columns() -> list[Column[tuple[int, Hypothesis]]]:
    return [
        Column("number", lambda row: row[0], "d"),
        Column("hypothesis", lambda row: row[1].claim),
    ]


def write_hypotheses(
    storage_url: str,
    names: Sequence[str],
    output: Path | None = None,
    margin: float = DEFAULT_MARGIN,
    note: str = "",
    hypotheses: Path = HYPOTHESES,
) -> Path:
    """Write the page about one or several finished studies.

    Args:
        storage_url: URL of the storage; opened for reading only.
        names: names of the studies, in the order of the page.
        output: file to write; ``findings.md`` in :data:`studies.files.REPORTS` by default.
        margin: see :func:`render_page`.
        note: see :func:`render_page`.
        hypotheses: TOML file of the hypotheses.

    Returns:
        The file.

    Raises:
        StudiesError: if a study or the storage is missing, or the hypotheses cannot be read.
        ReportError: if a study is not finished or tests nothing, or the file cannot be written.
    """
    path = output or (REPORTS / "findings.md").absolute()
    tested = load_hypotheses(hypotheses)
    with closing(read_storage(storage_url)) as storage:
        results = read_studies(storage, list(dict.fromkeys(names)), with_curves=False)
    results = [replace(each, replicates=find_replicates(each, results)) for each in results]
    if several := [each.name for each in results if each.config.task_names]:
        raise ReportError(
            f"study {several[0]!r} has several tasks: expected a study of one; rnn-search report "
            "tests the hypotheses that it stores in each of them"
        )
    command = _format_command(results, margin, note, hypotheses)
    page = f"{render_page(results, tested, margin, note, command).rstrip()}\n".encode()
    try:
        require_regular(path)
        atomic_write(path, [page])
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror}; choose another --output"
        ) from error
    return path


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
    "escaped": escape_markdown,
    "marked": to_markdown,
    "number": format_number,
    "sentence": to_sentence,
}


@click.command(
    help="Write a Markdown page about finished studies: which hypotheses hold in which of them. "
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
    path = write_hypotheses(storage, studies, output, margin, " ".join(note.split()), hypotheses)
    click.echo(path)
    return 0
