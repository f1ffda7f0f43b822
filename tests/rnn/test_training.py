"""The training loop: exact repetition, members that do not see each other, the smoothed loss."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.matmul_limit import count_flops, matmul_shapes
from rnn.config import GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack, initial_weights
from rnn.training.evaluation import eval_losses, eval_windows
from rnn.training.loop import TrainConfig, TrainLoop, sample_batch

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 30, np.uint8)
SETTINGS = TrainConfig(
    steps=20,
    batch_size=6,
    sequence_length=9,
    log_every=2,
    learning_rate=0.01,
    smoothing=0.9,
    seed=3,
)

MIXED = [
    TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 8)),
    TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 8)),
    TrialConfig(GatedConfig(False, False, False, False, False, "old", 2, 8)),
    TrialConfig(GatedConfig(True, False, False, True, False, "both", 2, 8)),
    TrialConfig(GatedConfig(False, True, True, False, True, "old", 2, 8)),
]


def curves(configs, precision="fp32", settings=SETTINGS):
    """The smoothed losses (log points, K), in the order of these members; and the population."""
    stack = NetworkStack(configs, seed=1, precision=precision)
    run = TrainLoop(stack, TEXT, settings)
    points = list(run.train())
    columns = [run.configs.index(config) for config in configs]
    return np.array([point.smoothed_losses for point in points])[:, columns], stack


def losses_of(stack, reads, targets, states):
    """One step forward, with the states replaced by the next ones; the losses (K, B)."""
    logits, after = stack.forward(stack.prepare_inputs(reads), states)
    for state, new in zip(states, after, strict=True):
        state.copy_(new)
    return stack.losses(logits, targets)


def test_a_network_alone_repeats_bit_for_bit():
    first, one = curves(MIXED[:1])
    second, two = curves(MIXED[:1])
    assert first.tobytes() == second.tobytes()
    assert torch.equal(one.parameters.values, two.parameters.values)


@pytest.mark.parametrize("gate_inputs", ["state", "candidate"])
def test_a_member_learns_the_same_in_company_as_alone(gate_inputs):
    configs = [
        TrialConfig(
            GatedConfig(
                *[getattr(m.architecture, f) for f in GatedConfig.__slots__[:8]], gate_inputs
            ),
            m.replicate,
        )
        for m in MIXED
    ]
    together, _ = curves(configs, "fp64")
    for k, config in enumerate(configs):
        alone, _ = curves([config], "fp64")
        np.testing.assert_allclose(together[:, k], alone[:, 0], rtol=1e-9)


def test_the_smoothed_loss_is_an_average_that_starts_at_three():
    settings = TrainConfig(**{**SETTINGS.__dict__, "learning_rate": 1e-30, "steps": 8})
    smoothed, stack = curves(MIXED[:1], "fp64", settings)
    # With weights that stand still, the losses are those of the untrained network.
    text = torch.from_numpy(sample_batch(TEXT, settings, 0)).long()
    states, expected, log = stack.init_state(6), 3.0, []
    for t in range(8):
        loss = losses_of(stack, text[t], text[t + 1], states).mean().item()
        expected = 0.9 * expected + 0.1 * loss
        log.append(expected)
    np.testing.assert_allclose(smoothed[:, 0], log[1::2], rtol=1e-9)


def test_log_points_are_the_multiples_of_log_every():
    settings = TrainConfig(**{**SETTINGS.__dict__, "steps": 20, "log_every": 6})
    points = list(TrainLoop(NetworkStack(MIXED[:1], 1), TEXT, settings).train())
    assert [point.step for point in points] == [6, 12, 18]


def test_states_are_zero_at_a_sequences_start_and_steps_are_one_less_than_its_length():
    """A sequence of L symbols gives L − 1 steps: the seventeenth step begins the third sequence."""
    settings = TrainConfig(
        **{
            **SETTINGS.__dict__,
            "learning_rate": 1e-30,
            "steps": 17,
            "smoothing": 0.0,
            "log_every": 1,
        }
    )
    smoothed, stack = curves(MIXED[:1], "fp64", settings)
    text = torch.from_numpy(sample_batch(TEXT, settings, 2)).long()
    states = stack.init_state(6)
    expected = losses_of(stack, text[0], text[1], states).mean().item()
    assert math.isclose(smoothed[16, 0], expected, rel_tol=1e-9)


def test_every_architecture_reads_the_same_text_and_each_sequence_another():
    assert np.array_equal(sample_batch(TEXT, SETTINGS, 0), sample_batch(TEXT, SETTINGS, 0))
    assert not np.array_equal(sample_batch(TEXT, SETTINGS, 0), sample_batch(TEXT, SETTINGS, 1))
    other_seed = TrainConfig(**{**SETTINGS.__dict__, "seed": 4})
    assert not np.array_equal(sample_batch(TEXT, SETTINGS, 0), sample_batch(TEXT, other_seed, 0))
    again = sample_batch(TEXT, SETTINGS, 0, replicate=1)
    assert not np.array_equal(sample_batch(TEXT, SETTINGS, 0), again), (
        "a replicate's order is its own"
    )
    column = sample_batch(TEXT, SETTINGS, 0)[:, 0].tobytes()
    assert column in TEXT.tobytes()


def test_sequences_reach_both_ends_of_the_text():
    text = np.arange(12, dtype=np.uint8)
    drawn = [sample_batch(text, SETTINGS, number) for number in range(30)]
    assert min(streams.min() for streams in drawn) == 0
    assert max(streams.max() for streams in drawn) == 11


def test_initial_weights_differ_by_architecture_and_replicate_alone():
    one, other = MIXED[0], MIXED[1]

    def start(config, seed=1):
        return initial_weights(config, seed)["layers.0.candidate"][0]

    assert torch.equal(start(one), start(one))
    assert not torch.equal(start(one), start(one._replace(replicate=1)))
    assert not torch.equal(start(one), start(other))
    assert not torch.equal(start(one), start(one, seed=2))


def test_initial_weights_are_the_same_for_ever():
    """Written down: studies that are half done must go on as they began."""
    architecture = MIXED[0].architecture
    assert architecture.key == "01011-new-2-8-state"
    weight, bias = initial_weights(TrialConfig(architecture, 3), seed=7)["layers.1.forget_gate"]
    found = [weight[0, 0].item(), weight[15, 7].item(), bias[0].item()]
    assert found == pytest.approx(FIRST_WEIGHTS, rel=1e-15)


FIRST_WEIGHTS = [0.07484296387147843, 0.1771534241530403, 0.11368022042480241]


def test_initial_weights_are_uniform_within_one_over_the_root_of_the_inputs():
    architecture = GatedConfig(True, True, True, True, True, "both", 1, 64)
    for name, (inputs, outputs) in architecture.param_shapes().items():
        weight, bias = initial_weights(TrialConfig(architecture), 0)[name]
        assert weight.shape == (inputs, outputs)
        assert bias.shape == (outputs,)
        bound = 1 / math.sqrt(inputs)
        assert weight.abs().max() <= bound
        assert bias.abs().max() <= bound
        assert weight.abs().max() > 0.95 * bound
        assert abs(weight.mean()) < 0.05 * bound


def test_a_member_that_diverges_leaves_its_fellows_alone():
    stack = NetworkStack(MIXED, seed=1, precision="fp64")
    ill = MIXED[1]
    k = stack.configs.index(ill)
    values = stack.parameters.values
    weights = stack.parameters.of(k, values)
    weights["head"][0].fill_(math.inf)
    stack.parameters.put(k, values, weights)
    run = TrainLoop(stack, TEXT, SETTINGS)
    list(run.train())
    together = dict(zip(run.configs, run.curves, strict=True))
    assert not math.isfinite(together[ill][20])
    undisturbed, _ = curves(MIXED, "fp64")
    for column, config in enumerate(MIXED):
        if config != ill:
            found = list(together[config].values())
            np.testing.assert_allclose(found, undisturbed[:, column], rtol=1e-9)


@pytest.mark.parametrize("leaving", [[0], [1, 3], [0, 1, 2, 3]])
def test_members_that_are_dropped_leave_the_others_as_they_were(leaving):
    """In the midst of a sequence, between two log points."""
    run = TrainLoop(NetworkStack(MIXED, seed=1, precision="fp64"), TEXT, SETTINGS)

    def look():
        if run.step == 11:
            run.drop([MIXED[k] for k in leaving])

    points = list(run.train(look))
    staying = [config for k, config in enumerate(MIXED) if k not in leaving]
    assert set(run.configs) == set(staying)
    assert len(points[-1].smoothed_losses) == len(staying)
    for config, curve in zip(run.configs, run.curves, strict=True):
        alone, _ = curves([config], "fp64")
        np.testing.assert_allclose(list(curve.values()), alone[:, 0], rtol=1e-9)


def test_a_dropped_member_costs_nothing_from_then_on():
    run = TrainLoop(NetworkStack(MIXED, seed=1), TEXT, SETTINGS)
    whole = matmul_shapes(run)
    run.drop(MIXED[:3])
    left = matmul_shapes(run)
    smaller = TrainLoop(NetworkStack(MIXED[3:], seed=1), TEXT, SETTINGS)
    assert left == matmul_shapes(smaller)
    assert count_flops(left) < count_flops(whole)
    assert run.stack.parameters.values.numel() == smaller.stack.parameters.values.numel()


def test_nothing_is_trained_when_all_are_dropped():
    run = TrainLoop(NetworkStack(MIXED, seed=1), TEXT, SETTINGS)

    def look():
        if run.step == 5:
            run.drop(MIXED)

    assert [point.step for point in run.train(look)] == [2, 4]
    assert run.configs == ()


def test_a_members_seconds_are_its_share_of_the_time(monkeypatch):
    """By a clock that shows a second more after each step, and 100 more after each log point."""
    now = 0.0
    monkeypatch.setattr("rnn.training.loop.time", SimpleNamespace(monotonic=lambda: now))

    def take_a_second():
        nonlocal now
        now += 1

    run = TrainLoop(NetworkStack(MIXED, seed=1), TEXT, SETTINGS)
    for _ in run.train(take_a_second):
        now += 100  # whoever looks at the log point takes them, not the training
    assert run.seconds == pytest.approx([SETTINGS.steps / len(MIXED)] * len(MIXED))


def test_training_lowers_the_loss():
    settings = TrainConfig(**{**SETTINGS.__dict__, "steps": 200, "log_every": 10})
    smoothed, stack = curves(MIXED[:1], settings=settings)
    assert smoothed[-1, 0] < smoothed[1, 0] - 1
    held_out = eval_losses(stack, eval_windows(TEXT, 4, 20))
    assert held_out.shape == (1, 4)
    assert held_out.mean() < math.log(256) - 2


def test_members_of_different_shapes_are_refused():
    other = TrialConfig(GatedConfig(False, False, False, False, False, "new", 1, 8))
    with pytest.raises(ValueError, match="one shape"):
        NetworkStack([MIXED[0], other], 1)


def test_members_of_several_replicates_are_refused():
    configs = [MIXED[0], MIXED[0]._replace(replicate=1)]
    with pytest.raises(ValueError, match=r"\[0, 1\]; allowed: one"):
        TrainLoop(NetworkStack(configs, 1), TEXT, SETTINGS)


def test_what_is_measured_is_the_mean_of_the_weights_over_the_last_steps():
    """Of twenty steps the last three tenths, which are six, whoever else is dropped meanwhile."""
    settings = TrainConfig(**{**SETTINGS.__dict__, "average": 0.3})
    run = TrainLoop(NetworkStack(MIXED[:2], 1, "fp64"), TEXT, settings)
    other, config = run.configs
    seen = []

    def look():
        if run.step == 17:
            run.drop([other])
        k, parameters = run.configs.index(config), run.stack.parameters
        seen.append(parameters.of(k, parameters.values))

    list(run.train(look))
    last = seen[-1]
    run.swap_in_averaged_weights()
    found = run.stack.parameters.of(0, run.stack.parameters.values)
    for name, (weight, bias) in found.items():
        for place, mean in enumerate((weight, bias)):
            by_hand = torch.stack([weights[name][place] for weights in seen[-6:]]).mean(0)
            torch.testing.assert_close(mean, by_hand)
    assert not torch.equal(found["head"][0], last["head"][0])
    plain = TrainLoop(NetworkStack(MIXED[:1], 1), TEXT, SETTINGS)
    list(plain.train())
    before = plain.stack.parameters.values.clone()
    plain.swap_in_averaged_weights()
    assert torch.equal(plain.stack.parameters.values, before), "without one, the last weights"
