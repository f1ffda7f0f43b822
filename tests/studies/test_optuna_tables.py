"""With an Optuna that differs from what is used, every command says so in one line."""

import subprocess
import sys

import pytest

CHANGES = {
    "del models.TrialValueModel": "cannot import name 'TrialValueModel'",
    "del RDBStorage._get_trials": "RDBStorage has no method _get_trials",
    "tables['trials']._columns.remove(tables['trials'].c.number)": (
        "table trials has the columns trial_id study_id state"
    ),
    "models.BaseModel.metadata.remove(tables['trial_values'])": (
        "table trial_values has the columns None, expected trial_value_id"
    ),
}
"""Statements that make another Optuna of the installed one, and what the line says of it."""

PROGRAM = """
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
tables = models.BaseModel.metadata.tables
{change}
from rnn_search.commands import main
main(*{command!r})
"""


@pytest.mark.parametrize("change", CHANGES)
def test_other_tables_or_classes_of_optuna_are_named_with_the_versions_that_work(change, tmp_path):
    for command in (["list"], ["report", "quick"]):
        program = PROGRAM.format(change=change, command=command)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: Optuna 5.")
        assert CHANGES[change] in line
        assert line.endswith(": install optuna>=5,<6")
