"""Workers are killed, frozen, woken and stopped at random; each point is finished once.

Bounded here; ``make chaos`` runs it for a minute with eight workers on 144 points.
"""

import os
import random
import signal
import time

import pytest
from nursery import CURVES, FINISHED, query, recorded, searching, until

SECONDS = float(os.environ.get("RNN_SEARCH_CHAOS_SECONDS", "5"))
WORKERS = int(os.environ.get("RNN_SEARCH_CHAOS_WORKERS", "4"))
POINTS = int(os.environ.get("RNN_SEARCH_CHAOS_POINTS", "12"))
STEPS = int(os.environ.get("RNN_SEARCH_CHAOS_STEPS", "1400"))

SPACE = {
    "training_steps": STEPS,
    "training_log_every": 50,
    "lease_seconds": 2,
    "checkpoint_seconds": 0.3,
    "space_layers": "[1]",
    "space_state_size": str([4 + index for index in range(POINTS // 12)]),
    "space_input_gate": "[false]",
    "space_output_gate": "[false]",
    "space_residual": "[true]",
    "space_exclude": "[]",
}
"""Two switches and three sources: twelve points a state size."""


def disturb(start, has_begun, seconds, workers, random):
    """Keep so many workers at work, and do to them what may be done to a process."""
    crew = [start() for _ in range(workers)]
    until(has_begun)
    frozen: list[tuple[float, object]] = []
    done: dict[str, int] = {}
    everybody = list(crew)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(searcher.ended.is_set() for searcher in crew):
        time.sleep(random.uniform(0.1, 0.5))
        for wake_at, searcher in list(frozen):
            if time.monotonic() >= wake_at:
                searcher.send(signal.SIGCONT)
                frozen.remove((wake_at, searcher))
        index = random.randrange(workers)
        victim = crew[index]
        if any(victim is searcher for _, searcher in frozen):
            continue
        number = random.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
        victim.send(number)
        name = signal.Signals(number).name
        done[name] = done.get(name, 0) + 1
        if number == signal.SIGSTOP:  # for less than its lease, or for longer
            frozen.append((time.monotonic() + random.choice([0.5, 4.0]), victim))
        else:
            crew[index] = start()
            everybody.append(crew[index])
    for _, searcher in frozen:
        searcher.send(signal.SIGCONT)
    return everybody, done


PRUNED = ("--prune", "--set=pruning.keep=0.25", "--set=pruning.confidence=0.6")
"""With pauses, each with a checkpoint, and points that others go on with."""


@pytest.mark.parametrize(
    ("kind", "population", "words"),
    [("sqlite", "5", ()), ("postgresql", "1", ()), ("sqlite", "1", PRUNED)],
    ids=["sqlite", "postgresql", "pruned"],
)
def test_each_point_is_finished_once_and_as_if_nothing_had_been(
    nursery, text, undisturbed, tmp_path, kind, population, words, request
):
    url = request.getfixturevalue(f"{kind}_url")
    search = searching(nursery, url, text)
    seed = int(os.environ.get("RNN_SEARCH_CHAOS_SEED", random.randrange(10**6)))
    print(f"RNN_SEARCH_CHAOS_SEED={seed}")

    def start():
        own = f"--artifacts={tmp_path}/artifacts"
        return search(own, *words, population=population, **SPACE)

    everybody, done = disturb(start, lambda: recorded(url), SECONDS, WORKERS, random.Random(seed))
    print(f"{kind}: {len(everybody)} workers, {done}")
    if all(searcher.ended.is_set() for searcher in everybody):
        everybody.append(start())
    for searcher in everybody:
        searcher.wait(600)

    # Every worker ended as it was asked to (some before they could listen), none with an error.
    allowed = (0, 143, -signal.SIGTERM, -signal.SIGKILL)
    wrong = {searcher.code: searcher.output for searcher in everybody}
    assert wrong.keys() <= set(allowed), wrong

    # By plain SQL: every point is finished once, and none runs.
    finished = query(url, FINISHED)
    pruned = {number for number, state, values in finished if (state, values) == ("PRUNED", 0)}
    assert finished == [
        (number, "PRUNED", 0) if number in pruned else (number, "COMPLETE", 1)
        for number in range(POINTS)
    ]
    assert bool(pruned) == bool(words)

    # Every curve is that of a search that nothing happened to: of networks that are trained one by
    # one bit for bit, of others to the last digits, for their company has changed.
    found, expected = query(url, CURVES), undisturbed(**SPACE)
    last = {number: step for number, step, _ in found}
    expected = [row for row in expected if row[0] not in pruned or row[1] <= last[row[0]]]
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    tolerance = 0 if population == "1" else 1e-3
    losses = [row[2] for row in expected]
    assert [row[2] for row in found] == pytest.approx(losses, rel=tolerance, abs=0)
    assert list((tmp_path / "artifacts").rglob("*checkpoint*")) == [], "checkpoints are left"
    setbacks = query(url, "SELECT value_json FROM trial_user_attributes WHERE key = 'setbacks'")
    print(f"{kind}: setbacks {[value for (value,) in setbacks]}")
    gone_on = sum("goes on from step" in searcher.output for searcher in everybody)
    print(f"{kind}: {gone_on} workers went on from a checkpoint")
    assert setbacks, "nothing has happened to any point"
