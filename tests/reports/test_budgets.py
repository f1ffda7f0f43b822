"""Effects at equal steps, at equal tokens and at equal updates."""

import math
import random

import pytest
from factories import created_once, gated_params, make_runs

from reports.page.page import write_report
from rnn_search import load

STEPS = range(50, 1001, 50)


@created_once
def make_batches(url, driver, name="made", smoothing=0.95):
    """Store a study whose loss falls with the number of tokens, or of updates, and nothing else."""
    generator, runs = random.Random(0), []
    for size in (4, 8):
        for residual in (False, True):
            for batch in (16, 24):
                for every in (1, 2):
                    settings = {"batch_size": batch, "update_every": every}
                    params = gated_params(state_size=size) | {"residual": residual} | settings
                    noise = generator.gauss(0, 0.001) + 0.1 * residual
                    rate = {"tokens": batch, "updates": 16 / every}[driver]
                    curve = {step: 3 - 0.2 * math.log(step * rate) + noise for step in STEPS}
                    recorded = {"curve": curve, "training_loss": curve[1000]}
                    recorded |= {"steps": 1000, "updates": 1000 // every, "inputs": 1000 * batch}
                    runs.append((params, curve[1000], recorded))
    space = {"state_size": [4, 8], "layers": [1], "residual": [False, True]}
    space |= {f"{gate}_gate": [False] for gate in ("input", "forget", "output", "state")}
    space |= {"state_source": ["new"]}
    space |= {"training": {"batch_size": [16, 24], "update_every": [1, 2]}}
    raw = {
        "space": space,
        "training": {"steps": 1000, "sequence_length": 1001, "smoothing": smoothing},
        "objective": "training",
    }
    make_runs(url, name, raw, runs)


@pytest.mark.parametrize(
    ("driver", "parameter", "budget"),
    [("tokens", "batch_size", "bytes"), ("updates", "update_every", "updates")],
)
def test_change_that_only_reads_or_updates_more_has_no_effect_at_that_budget(
    sqlite_url, tmp_path, driver, parameter, budget
):
    make_batches(sqlite_url, driver)
    rows = load("made", storage=sqlite_url).effects().budgets.set_index(["parameter", "equal"])
    more = -0.2 * math.log(1.5) if driver == "tokens" else 0.2 * math.log(2)
    assert rows["effect"][parameter, "steps"] == pytest.approx(more, abs=0.002)
    assert rows["significant"][parameter, "steps"]
    assert rows["effect"][parameter, budget] == pytest.approx(0, abs=0.002)
    assert not rows["significant"][parameter, budget]
    # What all of the compared trials have reached; 16,000 bytes are between two log points of 24.
    assert rows["amount"][parameter].to_dict() == {"steps": 1000, "bytes": 16000, "updates": 500}
    assert set(rows.index.get_level_values(0)) == {"batch_size", "update_every"}, "no residual"
    if driver == "tokens":
        page = write_report(sqlite_url, ["made"], tmp_path / "page.html").path.read_text()
        assert "At equal steps, bytes and updates" in page


def test_budget_at_which_the_smoothed_loss_still_depends_on_its_start_is_left_out(sqlite_url):
    """Half of the trials have 500 updates at step 500, of which the start has 8%."""
    make_batches(sqlite_url, "tokens", smoothing=0.995)
    budgets = load("made", storage=sqlite_url).effects().budgets
    assert set(budgets["equal"]) == {"steps", "bytes"}
