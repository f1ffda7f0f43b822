"""What the answer about a study and its warnings say, and where they are said."""

import math
import random
import re
from contextlib import closing
from dataclasses import replace
from html import escape

import pandas as pd
import pytest
from click.testing import CliRunner
from factories import NO_GATES, created_once, make_replicates, make_runs, results_of
from optuna_dashboard import get_note
from pages import build_from, read_answer

from reports import final_report
from reports.findings import StudyFindings
from reports.sentences import list_headline, list_warnings
from rnn_search import import_results, load
from rnn_search.commands.reports import report
from studies.config import StudyConfig
from studies.storage.open import load_study, open_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

SWITCHES = ("input_gate", "forget_gate", "output_gate", "state_gate", "residual")
GAINS = {"input_gate": -0.5, "forget_gate": -0.4, "output_gate": 0.3, "state_gate": -0.2}


@created_once
def make_switches(url, harm=0.6, name="switches", has_effects=True, **config):
    """Make a study of 128 networks in which four gates change the loss.

    The residual lowers the loss of wide networks by 1.8 and raises that of narrow ones by ``harm``;
    the number of layers changes nothing.
    """
    space = NO_GATES | {switch: [False, True] for switch in SWITCHES}
    raw = {"space": space | {"layers": [1, 2], "state_size": [4, 8]}} | config
    generator = random.Random(0)
    runs = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        value = 4 + generator.gauss(0, 0.004)
        if has_effects:
            value += sum(gain for switch, gain in GAINS.items() if params[switch])
            value += params["residual"] * (harm if params["state_size"] == 4 else -1.8)
        runs.append((params, value, {}))
    make_runs(url, name, raw, runs)


def make_cells(url, value, name="made", **training):
    """Make a study of two cells, three sizes and two depths; None is a diverged trial."""
    space = {"cell": ["elman", "gru"], "layers": [1, 2], "state_size": [4, 8, 16]}
    raw = {
        "space": space | {"training": training},
        "training": {"sequence_length": 1001, "log_every": 100},
    }
    generator = random.Random(0)
    runs = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        found = value(params)
        loss = math.nan if found is None else found + generator.gauss(0, 0.004)
        inputs = 1000 * params.get("batch_size", 256)
        updates = 1000 // params.get("update_every", 1)
        runs.append((params, loss, {"steps": 1000, "inputs": inputs, "updates": updates}))
    make_runs(url, name, raw, runs)


def findings_of(url, name="made"):
    return StudyFindings(results_of(url, name))


def without_intervals(lines):
    """Return lines up to the first bracket, and their last words if there is one."""
    return [line.partition(" [")[0] for line in lines]


# ------------------------------------------------------------------ the answer


def test_answer_lists_three_largest_effects_reversals_counts_and_the_best_network(sqlite_url):
    make_switches(sqlite_url)
    lines = read_answer(findings_of(sqlite_url, "switches"))
    *effects, best = lines
    assert without_intervals(effects) == [
        "state size 4 → 8 lowers the validation loss by 2.401 nats",
        "input gate lowers the validation loss by 0.501 nats",
        "forget gate lowers the validation loss by 0.399 nats",
        "residual lowers the validation loss by 1.800 nats",
        "2 other changes have smaller significant effects",
        "layers 1 → 2 is undecided",
    ]
    assert lines[1].endswith(" nats [0.499, 0.502]")
    assert " with the residual; without it no effect is shown (" in lines[0]
    assert re.search(r" at state size 8; raises it by 0.600 nats \[0.598, 0.60\d\] at 4$", lines[3])
    assert best.startswith("best: ")
    assert best.endswith(
        "validation loss 1.0983 nats per byte; 1 other architecture is within the noise of two "
        "runs (0.013 nats)"
    )


def test_figure_and_table_of_effects_rank_as_the_answer_does(sqlite_url):
    """The mean of the residual is the largest but one, and the last that is significant."""
    make_switches(sqlite_url)
    page = build_from(results_of(sqlite_url, "switches"))
    changes = ["state size 4 → 8", "input gate", "forget gate", "output gate", "state gate"]
    changes += ["residual", "layers 1 → 2"]
    (drawn,) = page.parts[0].chart.figure.data
    assert [row.partition("<br>")[0] for row in drawn.y] == changes
    named = [row.partition("<br>")[2] for row in drawn.y]
    assert named == [""] * 5 + ["<i>depends on state size</i>", ""]
    assert abs(drawn.x[5]) > abs(drawn.x[1])
    rows = page.html.partition(" effects</caption>")[2].partition("</table>")[0].split("<tr>")[2:]
    assert [row.partition("</th>")[0].rpartition(">")[2] for row in rows] == changes
    frame = load("switches", storage=sqlite_url).effects().to_frame()
    assert frame["effect"].tolist() == list(drawn.x)
    assert frame["depends_on"].tolist() == ["residual", *[""] * 4, "state_size", ""]


def test_effect_of_one_sign_is_stated_with_one_verb(sqlite_url):
    make_switches(sqlite_url, harm=-0.2)
    lines = read_answer(findings_of(sqlite_url, "switches"))
    (line,) = (line for line in lines if line.startswith("residual "))
    pattern = r"lowers the validation loss by 1.80\d nats \[.*\] at state size 8; by 0.20\d nats \["
    assert re.search(pattern, line.removeprefix("residual "))
    assert line.endswith("] at 4")


def test_effect_that_vanishes_at_a_value_has_no_reversed_sign(sqlite_url):
    make_switches(sqlite_url, harm=0.0)
    lines = read_answer(findings_of(sqlite_url, "switches"))
    (line,) = (line for line in lines if line.startswith("residual "))
    assert line.startswith("residual lowers the validation loss by 1.800 nats [")
    assert " at state size 8; at 4 no effect is shown (" in line


def test_dependence_without_a_significant_end_is_stated_as_a_difference(sqlite_url):
    make_switches(sqlite_url, harm=1.8)
    findings = findings_of(sqlite_url, "switches")
    (reversal,) = findings.answer.reversals
    condition = reversal.condition
    levels = tuple(replace(level, p_adjusted=1.0) for level in condition.levels)
    main = replace(reversal.main, error=9.0, p_adjusted=1.0)
    effect = replace(reversal, main=main, condition=replace(condition, main=main, levels=levels))
    findings.__dict__["answer"] = replace(findings.answer, reversals=[], dependent=[effect])
    line = (
        "the effect of residual differs significantly, by 3.600 nats, between state size 4 and 8; "
        "neither effect is significant"
    )
    assert line in read_answer(findings)
    findings.__dict__["answer"] = replace(findings.answer, dependent=[effect] * 5)
    lines = read_answer(findings)
    assert lines.count(line) == 4
    findings.__dict__["answer"] = replace(findings.answer, dependent=[*[effect] * 5, reversal])
    stated = [
        text for text in read_answer(findings) if text == line or text.startswith("residual ")
    ]
    assert stated[0].startswith("residual "), "one that is significant somewhere comes first"
    assert stated[1:] == [line] * 3
    assert "1 other effect depends on another parameter" in lines
    findings.__dict__["answer"] = replace(findings.answer, largest=[], dependent=[effect])
    assert not any("no change has a significant effect" in line for line in read_answer(findings))


def test_no_significant_effect_and_many_undecided_ones_are_one_line_each(sqlite_url):
    make_switches(sqlite_url, has_effects=False)
    *lines, _ = read_answer(findings_of(sqlite_url, "switches"))
    assert lines == ["no change has a significant effect", "7 changes are undecided"]


def test_page_terminal_notebook_and_note_have_the_same_lines(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_switches(sqlite_url, cells={}, name="made")
    answer = read_answer(findings_of(sqlite_url))
    assert len(answer) == 7
    done = CliRunner().invoke(report, ["made", "--storage", sqlite_url])
    path, *printed = done.stdout.splitlines()
    assert printed == answer
    html = (tmp_path / path).read_text("utf-8")
    listed = html.partition('<ul class="answer">')[2].partition("</ul>")[0]
    assert listed.replace("<strong>", "").replace("</strong>", "").split("\n")[1:-1] == [
        f"<li>{escape(line)}</li>" for line in answer
    ]
    effects = load("made", storage=sqlite_url).effects()
    assert effects.answer == answer
    assert repr(effects).startswith("\n".join(answer))
    items = "".join(f"<li>{escape(line)}</li>" for line in answer)
    assert effects._repr_html_().startswith(f"<ul>{items}")
    final_report.write_final_report(sqlite_url, "made")
    with closing(open_storage(sqlite_url)) as storage:
        note = get_note(load_study(storage, "made")).replace("\\", "")
    assert [line[2:] for line in note.splitlines() if line.startswith("- ")] == answer


def test_labels_round_the_values_of_nuisance_parameters(sqlite_url):
    rows = [{"width": w, "rate": r / 3000, "loss": w + r} for w in (1, 2) for r in (1, 2)]
    import_results(
        pd.DataFrame(rows), storage=sqlite_url, name="rates", value="loss", nuisance=["rate"]
    )
    *_, best = read_answer(findings_of(sqlite_url, "rates"))
    assert best.startswith("best: width 1, rate 0.0003333 (trial ")


# ------------------------------------------------------------------ warnings


def test_cell_that_diverged_in_more_than_half_of_its_trials_is_named(sqlite_url):
    def make_diverging(name, is_lost):
        make_cells(sqlite_url, lambda p: None if p["cell"] == "elman" and is_lost(p) else 2.0, name)

    make_diverging("half", lambda p: p["layers"] == 1)
    assert list_warnings(findings_of(sqlite_url, "half")) == []
    make_diverging("made", lambda p: p["state_size"] != 8)
    findings, warning = findings_of(sqlite_url), "Elman diverged in 4 of 6 trials"
    assert list_headline([findings], {})[-1] == f"warning: {warning}"
    assert f"warning: {warning}" in repr(load("made", storage=sqlite_url).effects())
    assert f"{warning}." in build_from(findings.results).words


def test_architecture_whose_replicates_diverged_is_named(sqlite_url):
    make_replicates(sqlite_url)
    results = results_of(sqlite_url, "replicates")
    rows = results.table
    is_lost = (rows["architecture"] == rows["architecture"].iloc[-1]) & (rows["replicate"] > 1)
    lost = rows.assign(
        state=rows["state"].mask(is_lost, "DIVERGED"), value=rows["value"].mask(is_lost)
    )
    (divergence,) = StudyFindings(replace(results, table=lost)).divergences
    assert (divergence.diverged, divergence.ended) == (2, 3)


def test_values_with_unequal_budgets_at_equal_steps_are_named(sqlite_url):
    budgets = {"batch_size": [16, 64], "update_every": [1, 4]}
    make_cells(sqlite_url, lambda p: 2 - p["batch_size"] / 100, **budgets)
    in_steps = "in the same number of steps"
    assert list_warnings(findings_of(sqlite_url)) == [
        f"{in_steps}, batch size 64 has 4 times as many bytes as 16",
        f"{in_steps}, update every 1 has 4 times as many updates as 4",
    ]
