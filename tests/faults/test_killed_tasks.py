"""A trial of a task from a user's file goes on from its checkpoint after its worker is killed."""

import signal

import pytest
from hooks import Hooks
from process_runner import CURVES, FINISHED, query, wait_until, wait_until_running
from small_searches import STEP

from search.new_study import StudyOptions
from search.study import create_or_join
from studies.loader import load_config_file

TASK = """
import numpy as np


class Sums:
    input_size = 2
    output_size = 1

    def sample(self, split, rng, count, length=None):
        inputs = rng.random((count, 8, 2))
        starts = rng.random((count, 8)) < 0.2
        mask = rng.random((count, 8)) < 0.1
        return {
            "inputs": inputs,
            "targets": np.cumsum(inputs.sum(2), 1),
            "mask": mask,
            "resets": starts,
        }
"""

STUDY = """
checkpoint.seconds = 0.3
lease.seconds = 1
precision = "fp32"

[task]
source = "sums.py:Sums"

[training]
steps = 200
batch_size = 4
log_every = 20
bptt_steps = 4
update_every = 2

[evaluation]
windows = 8

[space]
cell = ["gru"]
layers = [1]
state_size = [4]
"""


@pytest.mark.extended
def test_killed_trial_of_a_users_task_goes_on_bit_for_bit(runner, gate, tmp_path):
    """It is killed within a sequence whose streams continue those of the batch before."""
    (tmp_path / "sums.py").write_text(TASK)
    (tmp_path / "sums.toml").write_text(STUDY)

    def search(name, hooks):
        url = f"sqlite:///{tmp_path / name}.db"
        given = str(tmp_path / "sums.toml"), "--storage", url, "--threads", "1", "--lockstep", "1"
        return url, runner.start("run_search.py", *given, hooks=hooks)

    expected, whole = search("whole", Hooks(report=False))
    assert whole.wait() == 0, whole.output
    # Created here: the gate would hold the small networks that are trained before a study exists.
    url = f"sqlite:///{tmp_path / 'killed'}.db"
    create_or_join(load_config_file(str(tmp_path / "sums.toml")), url, StudyOptions())
    _, killed = search("killed", Hooks(report=False, gate=gate))
    wait_until_running([killed], lambda: killed.pid in gate.held)
    wait_until(lambda: list(tmp_path.glob("killed.db.checkpoints/*/*.checkpoint")))
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    _, resumed = search("killed", Hooks(report=False))
    assert resumed.wait() == 0, resumed.output
    assert f"trial 0 resumes from step {STEP}" in resumed.output
    assert query(url, FINISHED) == [(0, "COMPLETE", 1)]
    assert query(url, CURVES) == query(expected, CURVES)
    values = "SELECT value FROM trial_values"
    assert query(url, values) == query(expected, values)
