"""A golden loss curve belongs to a network: whatever trains it, with whom, however interrupted."""

import itertools

import golden_training
import pytest
from golden_training import CASES, train
from training_runs import Run, can_train, lockstep_groups

GOLDEN = dict(zip(golden_training.TOLERANCES, golden_training.GOLDEN, strict=True))
ALONE = [(case,) for case in CASES]
LOCKSTEP = lockstep_groups(CASES)


def each_engine(*engines):
    pairs = [(engine, "fp64") for engine in engines if engine != "native"]
    pairs += itertools.product(engines, ("fp32", "bf16"))
    return pytest.mark.parametrize(("engine", "precision"), pairs)


def assert_golden(groups, engine, precision):
    groups = [cases for cases in groups if can_train(engine, cases, precision)]
    if engine == "native" and not groups:
        pytest.skip(f"no library in C for {precision}")
    assert groups
    golden = GOLDEN[precision]
    expected = golden.read()
    for cases in groups:
        for name, actual in train(cases, precision, engine).items():
            assert not list(golden.differences(expected[name], actual, name))


@each_engine("native", "stacked", "autograd")
def test_every_engine_trains_a_network_alone_to_its_golden_curve(engine, precision):
    """Other networks have one engine, which computes the golden result."""
    groups = [cases for cases in ALONE if can_train("stacked", cases, precision)]
    assert_golden(groups, engine, precision)


@each_engine("native", "stacked", "autograd")
def test_networks_train_in_lockstep_to_their_golden_curves(engine, precision):
    assert_golden(LOCKSTEP, engine, precision)


@pytest.mark.parametrize("precision", GOLDEN)
@pytest.mark.parametrize("groups", [ALONE, LOCKSTEP], ids=["alone", "lockstep"])
def test_interrupted_training_resumes_bit_for_bit(precision, groups):
    for cases in groups:
        # Within a sequence, between log points, and while weights are averaged.
        resumed = Run(cases, precision).interrupt(13)
        assert resumed.finish() == train(cases, precision)
