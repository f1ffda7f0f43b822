"""What an imported study is: results that another program recorded; and the label of any trial."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from studies.config import PruningSettings, Refinement, StudyConfig, to_trial_config
from studies.hypotheses import Hypothesis
from studies.records import CellRecord, StrictModel
from studies.space import REPLICATE

Direction = Literal["minimize", "maximize"]


class ImportedConfig(StrictModel):
    """An imported study.

    Attributes:
        source: file or study that the results were read from, for a reader.
        question: what the results are to answer.
        metric: name of the value.
        unit: unit of the value; "" for none.
        direction: whether a lower or a higher value is better.
        parameters: names of the parameters, in the order of the source.
        notes: what the import decided or left out, one sentence each.
        is_adaptive: whether a sampler may have chosen later rows by the results of earlier ones.
    """

    source: str
    question: str = ""
    metric: str = Field(default="value", min_length=1)
    unit: str = ""
    direction: Direction = "minimize"
    parameters: list[str]
    notes: list[str] = []
    is_adaptive: bool = False

    # What a study that is trained here may have in addition.

    @property
    def refinement(self) -> Refinement | None:
        """None: it derives from no other study."""
        return None

    @property
    def nuisance(self) -> list[str]:
        """No parameter: each row is judged by its own value."""
        return []

    @property
    def report_threshold(self) -> float | None:
        """None: no value divides the rows into good and bad ones."""
        return None

    @property
    def cells(self) -> dict[str, CellRecord]:
        """No cell."""
        return {}

    @property
    def hypothesis(self) -> list[Hypothesis]:
        """No hypothesis: the results are known already."""
        return []

    @property
    def pruning(self) -> PruningSettings:
        """The pruner is off: another program's pruner has other rules."""
        return PruningSettings()


def label_trial(params: Mapping[str, Any], config: StudyConfig | ImportedConfig) -> str:
    """Describe a trial by its network, or, if it was imported, by its parameters."""
    if not isinstance(config, ImportedConfig):
        return to_trial_config(params, config).label
    replicate = f" #{params[REPLICATE]}" if REPLICATE in params else ""
    named = (f"{name} {params[name]}" for name in config.parameters if name in params)
    return ", ".join(named) + replicate
