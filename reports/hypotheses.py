"""``python -m reports.hypotheses STUDY [STUDY …]``: published statements, tested on studies.

Studies that test none, of replicates, known cells or gradient windows, stand beside them with what
tells their architectures apart.
"""

import itertools
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from reports.data.results import Results, read_results
from reports.errors import ReportError
from reports.formatting import escape_markdown, format_count, format_signed, load_templates
from reports.output import OUTPUT, choose_path, identity_tag, report_identity
from reports.stats.decision_rules import STATEMENTS, Change, Statement, Verdict, Worth, worth_of
from reports.stats.effects import MIN_PAIRS, FactorialTable
from reports.stats.summary import summarize_study
from studies.artifacts import atomic_write
from studies.attributes import OBJECTIVE_NAMES
from studies.cli import run_command, storage_options, studies_argument
from studies.errors import StudiesError
from studies.storage.open import read_storage
from studies.text import format_duration

MARGIN = 0.02
"""Nats that are no difference: about what one architecture, run again, differs by."""

_AGAINST = [Verdict.HOLDS, Verdict.UNDECIDED, Verdict.FAILS]
"""From what speaks for a statement to what speaks against it."""

_HEADING = "# Published statements, tested"


@dataclass(frozen=True)
class Finding:
    """What a study, or a part of it, says of a statement.

    Attributes:
        number: of the statement, from 1.
        words: what is compared.
        among: which points.
        worth: of the change.
        verdict: None where the worth is shown and not judged.
    """

    number: int
    words: str
    among: str
    worth: Worth
    verdict: Verdict | None


def evaluate_hypotheses(results: Results, margin: float = MARGIN) -> list[Finding]:
    """Return what a finished study says of the statements that it can test.

    Of a derived study's comparisons only those count that its variants make: in what else its
    points differ, they differ because they were chosen.

    Args:
        results: of the study; replicates of a point count as their mean.
        margin: nats that are no difference.

    Raises:
        ReportError: if points are not finished.
    """
    _require_finished(results)
    parameters, refinement = results.parameters, results.config.refinement
    varied = set(parameters)
    if refinement is not None:
        varied &= set().union(*refinement.variants)
    found: list[Finding] = []
    if varied and results.is_gated:  # nothing that was said is about known cells
        points = results.table.groupby(parameters)["value"].mean().reset_index()
        grid, threshold = (
            FactorialTable.from_frame(points, parameters),
            results.config.report_threshold,
        )
        parts = {"all": grid}
        if threshold is not None:
            parts[f"below {threshold}"] = grid.where({}, threshold)
        for number, statement in enumerate(STATEMENTS, 1):
            for among, part in parts.items():
                found += _test(number, statement, part, among, margin, varied)
    return found


def _require_finished(results: Results) -> None:
    counts = results.counts
    if counts.finished < counts.planned:
        raise ReportError(
            f"study {results.name!r} has finished {counts.finished:,} of "
            f"{counts.planned:,} points; allowed: all; run it to its end first"
        )


def _test(
    number: int,
    statement: Statement,
    grid: FactorialTable,
    among: str,
    margin: float,
    varied: set[str],
) -> list[Finding]:
    def told(changes: Iterable[Change]) -> Iterator[tuple[str, Worth]]:
        for change in changes:
            worth = worth_of(grid, change)
            if worth.pairs and varied.issuperset(change.before):
                yield change.words, worth

    tested = [
        (words, worth, statement.rule.verdict(worth, margin))
        for words, worth in told(statement.changes(grid))
    ]
    if not tested:
        return []
    if statement.is_of_all:
        tested = [max(tested, key=lambda test: (_AGAINST.index(test[2]), test[1].high))]
    redact = [(words, worth, None) for words, worth in told(statement.redact)]
    return [
        Finding(number, words, among, worth, verdict)
        for words, worth, verdict in (*redact, *tested)
    ]


def render_page(studies: Sequence[Results], margin: float = MARGIN, note: str = "") -> str:
    """Return the page as Markdown. The same results always give the same text.

    Args:
        studies: finished, one of them or more with something to say of a statement.
        margin: nats that are no difference.
        note: what else is to be known of how they were made, such as the machine.

    Raises:
        ReportError: if they are not.
    """
    found_in = {each.name: evaluate_hypotheses(each, margin) for each in studies}
    if not any(found_in.values()):
        named = ", ".join(repr(each.name) for each in studies)
        raise ReportError(
            f"none of the statements is tested by {named}; allowed: one or more studies of our own "
            "cell whose points differ in a switch, layers (2 and 3) or state size; name one more"
        )
    verdicts: dict[int, dict[tuple[str, str], list[str]]] = {}
    for name, found in found_in.items():
        for each in found:
            if each.verdict is not None:
                cells = verdicts.setdefault(each.number, {})
                cells.setdefault((name, each.among), []).append(each.verdict)
    differing = {
        number: cells
        for number, cells in sorted(verdicts.items())
        if len(set(itertools.chain(*cells.values()))) > 1
    }
    return _TEMPLATES.get_template("findings.md").render(
        heading=_HEADING,
        identity_tag=identity_tag(report_identity(each.identity for each in studies)),
        statements=list(enumerate(STATEMENTS, 1)),
        margin=margin,
        least_pairs=MIN_PAIRS,
        metrics=OBJECTIVE_NAMES,
        studies=[(each, found_in[each.name]) for each in studies if found_in[each.name]],
        others=[(each, summarize_study(each)) for each in studies if not found_in[each.name]],
        made=[(each, _made(each)) for each in studies],
        note=note,
        command=_command(studies, margin, note),
        columns=list(dict.fromkeys(key for cells in differing.values() for key in cells)),
        differing=differing,
    )


def _command(studies: Sequence[Results], margin: float, note: str) -> str:
    """Return what writes the same page again, wherever the studies are kept."""
    words = ["python", "-m", "reports.hypotheses", *(each.name for each in studies)]
    words += [] if margin == MARGIN else ["--margin", str(margin)]
    return shlex.join(words + (["--note", note] if note else []))


def _made(results: Results) -> str:
    """Say when, where and for how long a study was trained; nothing if that was not recorded."""
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


def write_findings(
    storage_url: str,
    names: Sequence[str],
    output: Path | None = None,
    margin: float = MARGIN,
    note: str = "",
) -> tuple[Path, str]:
    """Write the page about one or several finished studies.

    Args:
        storage_url: where they are kept; opened for reading only.
        names: of the studies, in the order of the page.
        output: the file to write; by default ``findings.md`` in :data:`OUTPUT`, see
            :func:`reports.output.choose_path`.
        margin: nats that are no difference.
        note: see :func:`render_page`.

    Returns:
        The file that was written, and one line for the user if it is not the one to be expected.

    Raises:
        StudiesError: if a study or the storage is not there.
        ReportError: if a study is not finished or tests nothing, the file cannot be written, or it
            exists and is about something else.
    """
    path = output or (OUTPUT / "findings.md").absolute()
    with closing(read_storage(storage_url)) as storage:
        results = [read_results(storage, name, with_curves=()) for name in dict.fromkeys(names)]
    page = f"{render_page(results, margin, note).rstrip()}\n".encode()
    identity = report_identity(each.identity for each in results)
    try:
        path, line = choose_path(path, output is None, identity, _HEADING.encode())
        atomic_write(path, [page])
    except OSError as error:
        raise ReportError(
            f"the page cannot be written to {path} ({error.strerror}); name another --output"
        ) from error
    return path, line


_TEMPLATES = load_templates(escaping=False)
_TEMPLATES.filters |= {
    "escaped": escape_markdown,
    "file_name": lambda name: Path(name).name,
    "signed": format_signed,
}


@click.command(
    help="Write a Markdown page about finished studies: which published statements hold there."
)
@studies_argument
@storage_options
@click.option(
    "--output",
    metavar="FILE.md",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; by default reports/out/findings.md.",
)
@click.option(
    "--margin",
    metavar="NATS",
    type=click.FloatRange(min=0, min_open=True),
    default=MARGIN,
    show_default=True,
    help="What is no difference.",
)
@click.option(
    "--note", metavar="TEXT", default="", help="To be said of how they were made: the machine, say."
)
def findings(
    studies: tuple[str, ...],
    storage: str,
    output: Path | None,
    margin: float,
    note: str,
    debug: bool,
) -> int:
    """Write the page."""
    if not math.isfinite(margin):  # nan is in every range
        raise click.BadParameter(f"--margin {margin} is no bound; allowed: above 0; correct it")
    path, line = write_findings(storage, studies, output, margin, " ".join(note.split()))
    click.echo(path)
    if line:
        click.echo(line, err=True)
    return 0


if __name__ == "__main__":
    run_command(findings, (StudiesError, ReportError))
