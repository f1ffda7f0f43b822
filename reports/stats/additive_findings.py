"""What an additive model found, as effects."""

from reports.stats.additive_model import AdditiveModel
from reports.stats.contrast import Contrast
from reports.stats.effects import Effect
from reports.stats.noise import NoiseSource
from reports.stats.scale import Scale


def list_level_effects(model: AdditiveModel, scale: Scale) -> list[Effect]:
    """Return the differences between levels that can be estimated, for tables and figures."""
    return [
        Effect(
            contrast=Contrast(each.parameter, each.before, each.after),
            pairs=0,
            mean=each.estimate.mean,
            error=each.estimate.error,
            degrees=each.estimate.degrees,
            source=NoiseSource.ADDITIVE,
            improved_count=0,
            scale=scale,
            only_before=0,
            only_after=0,
            neither=0,
        )
        for each in model.levels
        if not each.estimate.reason
    ]
