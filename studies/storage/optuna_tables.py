"""The only imports of Optuna's private modules, and a check that they are as expected.

See "Optuna's private modules" in ``docs/design.md``.

Raises:
    UserError: on import, if the installed Optuna has other tables or methods.
"""

from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from rnn.errors import UserError

_VERSIONS = "optuna>=5,<6"
"""Versions that work, as pyproject.toml has them."""

_COLUMNS = {
    "studies": "study_id study_name",
    "study_directions": "study_direction_id direction study_id objective",
    "study_user_attributes": "study_user_attribute_id study_id key value_json",
    "study_system_attributes": "study_system_attribute_id study_id key value_json",
    "trials": "trial_id number study_id state datetime_start datetime_complete",
    "trial_user_attributes": "trial_user_attribute_id trial_id key value_json",
    "trial_system_attributes": "trial_system_attribute_id trial_id key value_json",
    "trial_params": "param_id trial_id param_name param_value distribution_json",
    "trial_values": "trial_value_id trial_id objective value value_type",
    "trial_intermediate_values": (
        "trial_intermediate_value_id trial_id step intermediate_value intermediate_value_type"
    ),
    "trial_heartbeats": "trial_heartbeat_id trial_id heartbeat",
    "version_info": "version_info_id schema_version library_version",
}
"""Columns of each table in their order."""

_METHODS = ("_create_new_trial", "_get_trials", "_set_trial_param")
"""Private methods of Optuna's storage that are overridden."""


def _describe(found: str) -> UserError:
    return UserError(f"Optuna {optuna.__version__} is not supported ({found}): install {_VERSIONS}")


try:
    from optuna.storages import _rdb
    from optuna.storages._rdb.models import BaseModel, TrialIntermediateValueModel, TrialValueModel

    METADATA = BaseModel.metadata
    FINITE = TrialValueModel.TrialValueType.FINITE
    value_to_stored_repr = TrialValueModel.value_to_stored_repr
    intermediate_value_to_stored_repr = (
        TrialIntermediateValueModel.intermediate_value_to_stored_repr
    )
except (ImportError, AttributeError) as error:
    raise _describe(str(error)) from error

MIGRATIONS = Path(_rdb.__file__).parent / "alembic"
"""Folder of the versions of Optuna's schema."""


def _check() -> None:
    """Require the tables and methods that this program uses.

    Raises:
        UserError: if the installed Optuna has others.
    """
    tables = {
        name: " ".join(column.name for column in table.columns)
        for name, table in METADATA.tables.items()
    }
    for name, columns in _COLUMNS.items():
        if tables.get(name) != columns:
            raise _describe(f"table {name} has the columns {tables.get(name)}, expected {columns}")
    for name in _METHODS:
        if not hasattr(RDBStorage, name):
            raise _describe(f"RDBStorage has no method {name}")


_check()
