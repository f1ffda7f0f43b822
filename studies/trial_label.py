"""Short descriptions of trials: of their network, or of their parameters."""

from collections.abc import Mapping
from typing import Any

from studies.config import StudyConfig, to_trial_config
from studies.imported import ImportedConfig
from studies.space import REPLICATE


def label_trial(params: Mapping[str, Any], config: StudyConfig | ImportedConfig) -> str:
    """Describe a trial by its network, or, if it was imported, by its parameters."""
    if not isinstance(config, ImportedConfig):
        return to_trial_config(params, config).label
    replicate = f" #{params[REPLICATE]}" if REPLICATE in params else ""
    named = (f"{name} {params[name]}" for name in config.parameters if name in params)
    return ", ".join(named) + replicate
