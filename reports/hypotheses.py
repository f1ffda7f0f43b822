"""``python -m reports.hypotheses STUDY [STUDY …]``: test hypotheses on finished studies.

Studies that test no hypothesis, of replicates or baseline cells, are listed with the ranking and
comparison of their architectures.
"""

import itertools
import math
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from reports.data.results import Results, read_results
from reports.errors import ReportError
from reports.formatting import (
    escape_markdown,
    format_count,
    format_number,
    format_signed,
    load_templates,
)
from reports.output import OUTPUT, choose_path, identity_tag, report_identity
from reports.stats.decision_rules import (
    Finding,
    Hypothesis,
    Verdict,
    evaluate_hypothesis,
    read_hypotheses,
)
from reports.stats.effects import FactorialTable
from reports.stats.leaderboard import summarize_study
from reports.stats.nuisance import find_edges, join_names
from reports.stats.paired_difference import MIN_PAIRS
from rnn.config import BASELINE_CELLS
from studies.artifacts import atomic_write
from studies.attributes import OBJECTIVE_NAMES
from studies.cli import run_command, storage_options, studies_argument
from studies.errors import StudiesError
from studies.storage.open import read_storage
from studies.text import format_duration

HYPOTHESES = Path(__file__).with_suffix(".toml")
"""Default file of hypotheses: what was published about the first search of this kind."""

EQUIVALENCE_MARGIN = 0.02
"""Nats that count as no difference: about the spread between runs of one architecture."""

_HEADING = "# Hypotheses, tested"


def evaluate_hypotheses(
    results: Results, hypotheses: Sequence[Hypothesis], margin: float = EQUIVALENCE_MARGIN
) -> list[Finding]:
    """Test the hypotheses that a finished study can test.

    In a refinement only the parameters that its variants change are contrasted: its other
    differences are a result of the selection of its source trials.

    Args:
        results: results of the study; replicates count as one trial with their mean value, and each
            architecture is judged at its best values of the nuisance parameters.
        hypotheses: the hypotheses.
        margin: nats that count as no difference.

    Raises:
        ReportError: if the study is not finished.
    """
    counts = results.counts
    if counts.finished < counts.planned:
        raise ReportError(
            f"study {results.name!r} has finished {counts.finished:,} of {counts.planned:,} "
            "trials: run it to its end first"
        )
    parameters, refinement = results.judged_parameters, results.config.refinement
    varied = set(parameters)
    if refinement is not None:
        varied &= set().union(*refinement.variants)
    if not varied or set(results.cells) <= set(BASELINE_CELLS):
        return []
    groups = results.judge().groupby(parameters, dropna=False)
    means = groups["value"].agg(value="mean", runs="count").reset_index()
    runs = results.complete if results.has_replicates else results.replicates
    table = FactorialTable.from_frame(means, parameters, runs, is_grid=refinement is None)
    threshold = results.config.report_threshold
    subsets = {"all": table}
    if threshold is not None:
        subsets[f"below {threshold}"] = table.subset({}, threshold)
    options = [name for cell in results.config.cells.values() for name in cell.options]
    return [
        finding
        for number, hypothesis in enumerate(hypotheses, 1)
        for name, subset in subsets.items()
        for finding in evaluate_hypothesis(
            number, hypothesis, subset, name, margin, varied, options
        )
    ]


def render_page(
    studies: Sequence[Results],
    hypotheses: Sequence[Hypothesis],
    margin: float = EQUIVALENCE_MARGIN,
    note: str = "",
    command: str = "",
) -> str:
    """Render the page as Markdown; the text depends on the arguments alone.

    Args:
        studies: results of finished studies; one or more of them tests a hypothesis.
        hypotheses: the hypotheses.
        margin: nats that count as no difference.
        note: remark on how the studies were made, such as the machine.
        command: command that writes the page.

    Raises:
        ReportError: if a study is not finished, or none of them tests a hypothesis.
    """
    findings = {each.name: evaluate_hypotheses(each, hypotheses, margin) for each in studies}
    if all(each.verdict is Verdict.NOT_TESTABLE for group in findings.values() for each in group):
        names = ", ".join(repr(each.name) for each in studies)
        raise ReportError(
            f"no hypothesis is tested by {names}: expected a gated study with several values of a "
            "parameter in the hypotheses"
        )
    verdicts: dict[int, dict[tuple[str, str], list[str]]] = {}
    for study, group in findings.items():
        for finding in group:
            if finding.verdict not in (None, Verdict.NOT_TESTABLE):
                cells = verdicts.setdefault(finding.number, {})
                cells.setdefault((study, finding.subset), []).append(finding.verdict)
    differing = {
        number: cells
        for number, cells in sorted(verdicts.items())
        if len(set(itertools.chain(*cells.values()))) > 1
    }
    return _TEMPLATES.get_template("hypotheses.md").render(
        heading=_HEADING,
        identity_tag=identity_tag(report_identity(each.identity for each in studies)),
        hypotheses=list(enumerate(hypotheses, 1)),
        margin=margin,
        min_pairs=MIN_PAIRS,
        objectives=OBJECTIVE_NAMES,
        studies=[(each, findings[each.name]) for each in studies if findings[each.name]],
        others=[(each, summarize_study(each)) for each in studies if not findings[each.name]],
        provenance=[(each, _describe_provenance(each)) for each in studies],
        note=note,
        command=command,
        has_untestable=any(
            each.verdict is Verdict.NOT_TESTABLE for group in findings.values() for each in group
        ),
        nuisance=[
            f"{escape_markdown(each.name)}: {join_names(each.nuisance)}"
            for each in studies
            if each.nuisance
        ],
        warnings={
            each.name: [edge.warning for edge in find_edges(each) if edge.is_prominent]
            for each in studies
        },
        columns=list(dict.fromkeys(key for cells in differing.values() for key in cells)),
        differing=differing,
    )


def write_hypotheses(
    storage_url: str,
    names: Sequence[str],
    output: Path | None = None,
    margin: float = EQUIVALENCE_MARGIN,
    note: str = "",
    hypotheses: Path = HYPOTHESES,
) -> tuple[Path, str]:
    """Write the page about one or several finished studies.

    Args:
        storage_url: URL of the storage; opened for reading only.
        names: names of the studies, in the order of the page.
        output: file to write; ``findings.md`` in :data:`OUTPUT` by default, see
            :func:`reports.output.choose_path`.
        margin: nats that count as no difference.
        note: see :func:`render_page`.
        hypotheses: TOML file of the hypotheses.

    Returns:
        The file, and a line for the user if it is not the expected one, else "".

    Raises:
        StudiesError: if a study or the storage is missing.
        ReportError: if the hypotheses cannot be read, a study is not finished or tests nothing, the
            file cannot be written, or it exists and reports something else.
    """
    path = output or (OUTPUT / "findings.md").absolute()
    tested = read_hypotheses(hypotheses)
    with closing(read_storage(storage_url)) as storage:
        results = [read_results(storage, name, with_curves=()) for name in dict.fromkeys(names)]
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
    words = ["python", "-m", "reports.hypotheses", *(each.name for each in studies)]
    words += [] if hypotheses == HYPOTHESES else ["--hypotheses", str(hypotheses)]
    words += [] if margin == EQUIVALENCE_MARGIN else ["--margin", str(margin)]
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
    "file_name": lambda name: Path(name).name,
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
    help="Hypotheses to test; by default those published about the first search of this kind.",
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
    default=EQUIVALENCE_MARGIN,
    show_default=True,
    help="Largest difference that counts as none.",
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
    debug: bool,
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


if __name__ == "__main__":
    run_command(hypotheses_command, (StudiesError, ReportError))
