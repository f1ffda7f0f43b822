"""Networks with different options, padded to one program."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from network_configs import assert_close, gated_configs

from benchmarks.matmul_limit import count_operations
from rnn.config import OPTIMIZERS, GatedConfig, OptimizerConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.stacked.padding import pad, padding_pays
from rnn.training.evaluation import compute_eval_losses, select_eval_windows
from rnn.training.loop import TrainConfig, TrainLoop

TEXT = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)

SETTINGS = TrainConfig(30, 5, 20, 5, 0.9, 0, average_fraction=0.5)


def begin(configs, precision="fp64", is_padded=True, states=None):
    weights = {config: state.weights for config, state in (states or {}).items()}
    stack = NetworkStack(
        configs, 0, precision, weights=weights, static_graph=True, is_padded=is_padded
    )
    return TrainLoop(stack, TEXT, SETTINGS, states)


def results(run):
    """Return the losses of each network, those of its averaged weights last, and these."""
    run.swap_in_averaged_weights()
    parameters = run.stack.parameters
    losses = compute_eval_losses(run.stack, select_eval_windows(TEXT, 4, 20))
    return {
        config: (
            [*run.curves[k].values(), *losses[k].tolist()],
            parameters.extract(k, parameters.values),
        )
        for k, config in enumerate(run.configs)
    }


def assert_same_training(run, other, **tolerance):
    found, expected = results(run), results(other)
    for config, (losses, weights) in found.items():
        assert losses == pytest.approx(expected[config][0], rel=tolerance["rtol"])
        assert_close(weights, expected[config][1], **tolerance)


EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("gate_inputs", ["state", "candidate"])
@pytest.mark.parametrize("layers", [1, 2])
def test_padded_networks_train_as_without_padding(layers, gate_inputs):
    configs = [TrialConfig(config) for config in gated_configs(layers, 5, [gate_inputs])]
    padded, plain = begin(configs), begin(configs, is_padded=False)
    assert padded.stack.is_padded
    assert not plain.stack.is_padded
    for run in (padded, plain):
        list(run.train())
    assert_same_training(padded, plain, **EXACT)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.02)])
def test_padding_changes_no_more_than_rounding(precision, tolerance):
    configs = [TrialConfig(config) for config in gated_configs(2, 5, ["state"])[::5]]
    padded, plain = begin(configs, precision), begin(configs, precision, is_padded=False)
    for run in (padded, plain):
        list(run.train())
    assert_same_training(padded, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_padded_networks_train_with_every_optimizer(name, limit):
    optimizer = OptimizerConfig(name, 0.002, gradient_clipping=limit)
    configs = [
        TrialConfig(config, optimizer=optimizer) for config in gated_configs(1, 5, ["state"])[::7]
    ]
    padded, plain = begin(configs), begin(configs, is_padded=False)
    for run in (padded, plain):
        list(run.train())
    # RMSprop divides gradients that are next to zero by their size.
    assert_same_training(padded, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("step", [10, 20])
def test_padded_networks_resume_and_leave(step):
    """Before and after averaging begins; the others then have fewer options."""
    configs = [TrialConfig(config) for config in gated_configs(1, 5, ["state"])[::7]]
    plain = begin(configs, is_padded=False)
    list(plain.train())
    run = begin(configs)
    for point in run.train():
        if point.step == step:
            break
    resumed = begin(configs, states={config: run.train_state(config) for config in run.configs})
    for point in resumed.train():
        if point.step == step + 5:
            resumed.remove_configs(configs[1::3])
    assert resumed.stack.is_padded
    assert len(resumed.configs) < len(configs)
    assert_same_training(resumed, plain, **EXACT)


def test_finished_training_of_padded_networks_is_resumed_and_evaluated():
    """The checkpoint has the average of each network's own weights, not of the constants."""
    configs = [TrialConfig(config) for config in gated_configs(1, 5, ["state"])[::7]]
    run, plain = begin(configs), begin(configs, is_padded=False)
    for each in (run, plain):
        list(each.train())
    resumed = begin(configs, states={config: run.train_state(config) for config in run.configs})
    assert_same_training(resumed, plain, **EXACT)


def test_networks_with_weight_decay_are_not_padded():
    """It would change the constants."""
    configs = [
        TrialConfig(config, optimizer=OptimizerConfig(weight_decay=decay))
        for config, decay in zip(gated_configs(1, 5)[:2], (0.0, 0.1), strict=True)
    ]
    assert not begin(configs).stack.is_padded
    assert not begin(configs[:1]).stack.is_padded, "one network needs no padding"
    assert begin(
        [config._replace(optimizer=OptimizerConfig()) for config in configs]
    ).stack.is_padded


def test_networks_of_streams_that_share_tokens_are_not_padded():
    configs = [TrialConfig(config) for config in gated_configs(1, 5)[:2]]
    assert not NetworkStack(configs, 0, static_graph=False, is_padded=True).is_padded


def test_padding_is_for_small_networks_on_a_gpu():
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    assert [padding_pays(gpu, size) for size in (32, 64, 256)] == [True, True, False]
    assert not padding_pays(cpu, 32)


def test_padded_networks_have_the_options_of_any_of_them():
    plain = GatedConfig(False, False, False, False, False, "old", 1, 5)
    others = [replace(plain, forget_gate=True), replace(plain, state_source="new")]
    both = replace(plain, forget_gate=True, state_source="both")
    assert pad([plain, *others]) == [both] * 3
    assert pad([plain, replace(plain, output_gate=True)]) == [
        plain,
        replace(plain, output_gate=True),
    ], "the output gate is not padded"


def count_step(configs, is_padded):
    loop = begin([TrialConfig(config) for config in configs], "fp32", is_padded)
    tokens, targets, _ = next(iter(loop._steps()))
    return count_operations(lambda: loop._train_step.step(tokens, targets))


def test_operations_of_a_padded_step_do_not_grow_with_the_number_of_networks():
    configs = gated_configs(2, 5, ["state"])
    few = [configs[0], configs[-1]]  # without and with every option
    padded = [count_step(each, is_padded=True) for each in (few, configs[::2], configs)]
    assert len(set(padded)) == 1
    assert count_step(configs, is_padded=False) > 5 * padded[0]
