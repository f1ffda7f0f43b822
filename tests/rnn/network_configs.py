"""Every combination of switches for ``make test-all``, and a few that represent them otherwise."""

import itertools
from collections.abc import Sequence
from dataclasses import astuple

import pytest

from rnn.config import BaselineConfig, GatedConfig


def representatives(architectures: Sequence[GatedConfig], together: int = 4) -> list[GatedConfig]:
    """Choose few architectures in which every ``together`` fields take all values together.

    Only combinations of values that occur among the given architectures are covered.
    """
    numbers: dict[object, int] = {}
    masks = []
    for architecture in architectures:
        found = itertools.combinations(enumerate(astuple(architecture)), together)
        masks.append(sum(1 << numbers.setdefault(values, len(numbers)) for values in found))
    chosen, missing = [], (1 << len(numbers)) - 1
    while missing:
        best = max(range(len(masks)), key=lambda i: (masks[i] & missing).bit_count())
        chosen.append(architectures[best])
        missing &= ~masks[best]
    return chosen


def label(architecture: GatedConfig | BaselineConfig) -> str:
    return f"{architecture.label} {getattr(architecture, 'gate_inputs', '')}"


def each_of(
    architectures: Sequence[GatedConfig],
    others: Sequence[BaselineConfig] = (),
    together: int = 4,
) -> pytest.MarkDecorator:
    """Run a test on each architecture; ``make test`` runs it on representatives and on others."""
    few = set(representatives(architectures, together))
    parameters = [
        pytest.param(each, marks=() if each in few else pytest.mark.extended)
        for each in architectures
    ]
    return pytest.mark.parametrize("architecture", [*parameters, *others], ids=label)
