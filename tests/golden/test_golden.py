"""What the project computes from fixed inputs is what it computed before."""

import itertools

import golden_training
import pytest
from golden import Golden, load_golden
from golden_training import CASES, can_train, lockstep_groups, train


@pytest.mark.parametrize(
    "golden",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.extended] * each.is_extended)
        for each in load_golden()
    ],
)
def test_result_is_the_golden_one(golden: Golden):
    differences = list(golden.differences(golden.read(), golden.compute()))
    assert not differences, "\n".join(differences[:20])


TRAINING = dict(zip(golden_training.TOLERANCES, golden_training.GOLDEN, strict=True))

ENGINES = [
    *itertools.product(("stacked", "autograd"), TRAINING),
    *itertools.product(["native"], ("fp32", "bf16")),
]


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_networks_train_in_lockstep_to_their_golden_curves_in_every_engine(engine, precision):
    """A curve belongs to a network: whatever trains it, and with whom."""
    groups = lockstep_groups(CASES)
    groups = [cases for cases in groups if can_train(engine, cases, precision)]
    if engine == "native" and not groups:
        pytest.skip(f"no library in C for {precision}")
    assert groups
    golden = TRAINING[precision]
    expected = golden.read()
    for cases in groups:
        for name, actual in train(cases, precision, engine).items():
            assert not list(golden.differences(expected[name], actual, name))
