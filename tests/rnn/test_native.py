"""The step in C computes the same as the fast engine, and its absence costs only speed."""

import ctypes
import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from network_configs import each_of, gated_configs

from rnn.config import GatedConfig, TrialConfig
from rnn.models.factory import build_network
from rnn.native import library
from rnn.native.library import SWITCH, load_library
from rnn.native.network import NativeStack, computes_correctly, library_obstacle, pays_off
from rnn.stacked.network import NetworkStack
from rnn.training.checkpoint import deserialize_checkpoint, serialize_checkpoint
from rnn.training.loop import TrainConfig, TrainLoop

PRECISIONS = [
    pytest.param(
        precision,
        marks=pytest.mark.skipif(
            load_library(precision) is None, reason=f"no compiler, or no {precision} on this CPU"
        ),
    )
    for precision in ("fp32", "bf16")
]
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}

# Sizes that fill whole vectors and tiles, and sizes that do not; streams of one block, of two.
SHAPES = [(32, 2, 64, 256), (5, 3, 9, 256), (33, 1, 129, 61), (48, 2, 130, 300), (1, 1, 1, 2)]


def stacks(configs, precision, vocab_size=256):
    expected = NetworkStack([TrialConfig(config) for config in configs], 3, "fp64", vocab_size)
    return NativeStack(expected.configs, 3, precision, vocab_size), expected


def assert_same(actual, expected, precision, scale=None):
    scale = float(expected.abs().max()) if scale is None else scale
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=TOLERANCE[precision] * max(scale, 1e-3)
    )


def assert_steps_same(actual, expected, precision, streams, vocab_size, steps=2):
    """Take steps in training and in evaluation, each from the states of the last."""
    generator = torch.Generator().manual_seed(0)
    states = [stack.init_training_state(streams) for stack in (actual, expected)]
    for _ in range(steps):
        tokens, targets = torch.randint(0, vocab_size, (2, streams), generator=generator)
        logits = [
            stack.forward(tokens, each)[0]
            for stack, each in zip((actual, expected), states, strict=True)
        ]
        assert_same(*logits, precision, scale=1.0)
        assert_same(
            *(
                stack.losses(each, targets)
                for stack, each in zip((actual, expected), logits, strict=True)
            ),
            precision,
        )
        losses, after = zip(
            *(
                stack.loss_and_grad(tokens, targets, each)
                for stack, each in zip((actual, expected), states, strict=True)
            ),
            strict=True,
        )
        assert_same(*losses, precision)
        for each, next_states in zip(states, after, strict=True):
            for state, next_state in zip(each, next_states, strict=True):
                state.copy_(next_state)
        for state, other in zip(*states, strict=True):
            assert_same(state, other, precision, scale=1.0)
        for k in range(len(actual.configs)):
            grads = [
                stack.parameters.extract(k, stack.parameters.grads) for stack in (actual, expected)
            ]
            scale = max(float(grad.abs().max()) for grad in grads[1].values())
            for name, grad in grads[0].items():
                assert_same(grad, grads[1][name], precision, scale)


@pytest.mark.parametrize("precision", PRECISIONS)
@each_of(gated_configs(2, 20))
def test_library_computes_the_losses_and_gradients_of_the_fast_engine(config, precision):
    assert_steps_same(*stacks([config], precision, 67), precision, 9, 67)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_library_computes_stacks_of_any_size_on_any_number_of_threads(
    shape, threads, precision, thread_count
):
    size, layers, streams, vocab_size = shape
    configs = random.Random(0).sample(gated_configs(layers, size, ["state"]), 5)
    thread_count(threads)
    for count in (1, 5):
        assert_steps_same(
            *stacks(configs[:count], precision, vocab_size), precision, streams, vocab_size, 2
        )


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("streams", [7, 40, 200, 300])
def test_network_computes_the_same_bit_for_bit_in_any_stack_and_on_any_threads(
    streams, precision, thread_count
):
    configs = [TrialConfig(config) for config in gated_configs(2, 7, ["candidate"])[::9]]
    tokens = torch.arange(streams) % 11
    thread_count(1)
    together = NativeStack(configs, 3, precision)
    losses, _ = together.loss_and_grad(tokens, tokens + 1, together.init_state(streams))
    for k, config in enumerate(configs):
        thread_count(1 + k % 4)
        alone = NativeStack([config], 3, precision)
        for _ in range(2):  # the second finds the memory of the first
            loss, _ = alone.loss_and_grad(tokens, tokens + 1, alone.init_state(streams))
        assert torch.equal(loss[0], losses[k])
        own = alone.parameters.extract(0, alone.parameters.grads)
        for name, grad in together.parameters.extract(k, together.parameters.grads).items():
            assert torch.equal(grad, own[name]), name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_resumes_bit_for_bit_and_closely_in_the_fast_engine(precision, thread_count):
    thread_count(1)
    text = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
    settings = TrainConfig(20, 3, 8, 4, 0.9, 3, average_fraction=0.6)
    configs = [TrialConfig(config) for config in gated_configs(2, 7, ["state"])[::19]]

    def train(stack, states, until):
        loop = TrainLoop(stack, text, settings, states)
        for point in loop.train():
            if point.step == until:
                break
        return {
            config: deserialize_checkpoint(
                config.architecture, "", serialize_checkpoint(loop.train_state(config), "")
            )
            for config in loop.configs
        }

    def resume(engine, states, until):
        weights = {config: state.weights for config, state in states.items()}
        return train(engine(list(states), 3, precision, weights=weights), states, until)

    expected = train(NativeStack(configs, 3, precision), {}, 20)
    half = train(NativeStack(configs, 3, precision), {}, 8)
    some = {config: half[config] for config in configs[::2]}  # the others are pruned
    exact = resume(NativeStack, some, 20)
    close = resume(NativeStack, resume(NetworkStack, some, 12), 20)
    for config in some:
        assert exact[config].curve == expected[config].curve
        for name, weight in expected[config].weights.items():
            assert torch.equal(exact[config].weights[name], weight)
        assert close[config].curve == pytest.approx(expected[config].curve, rel=2e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_loss_that_is_not_finite_stays_in_its_network(precision):
    configs = [TrialConfig(config) for config in gated_configs(1, 8, ["state"])[:2]]
    stack = NativeStack(configs, 3, precision)
    weights = stack.parameters.extract(0, stack.parameters.values)
    weights["head.weight"].fill_(float("nan"))
    stack.parameters.load(0, stack.parameters.values, weights)
    tokens = torch.arange(5)
    losses, _ = stack.loss_and_grad(tokens, tokens, stack.init_state(5))
    assert losses.isnan().tolist() == [True, False]
    assert stack.parameters.extract(0, stack.parameters.grads)["head.weight"].isnan().any()
    grads = stack.parameters.extract(1, stack.parameters.grads)
    assert all(bool(grad.isfinite().all()) for grad in grads.values())


@pytest.mark.parametrize("value", [-1, 256])
def test_token_outside_the_vocabulary_is_an_error(value):
    if load_library("fp32") is None:
        pytest.skip("no compiler")
    stack = NativeStack([TrialConfig(gated_configs(1, 8)[0])], 3)
    good, bad = torch.tensor([1, 2]), torch.tensor([1, value])
    for tokens, targets in ((good, bad), (bad, good)):
        with pytest.raises(IndexError, match="is not below 256, the vocabulary size"):
            stack.loss_and_grad(tokens, targets, stack.init_state(2))
    with pytest.raises(IndexError):
        stack.forward(bad, stack.init_state(2))


def test_tensors_of_other_shapes_are_errors_and_other_numbers_are_converted():
    if load_library("fp32") is None:
        pytest.skip("no compiler")
    stack = NativeStack([TrialConfig(gated_configs(2, 8)[0])], 3)
    tokens, states = torch.tensor([1, 2]), stack.init_state(2)
    states[0].fill_(0.5)
    for bad in (states[:1], stack.init_state(1), [state[0] for state in states]):
        with pytest.raises(ValueError, match=r"states have shapes .* expected 2 of \(1, 2, 8\)"):
            stack.forward(tokens, bad)
    with pytest.raises(ValueError, match=r"targets have shape \(1,\): expected \(2,\)"):
        stack.loss_and_grad(tokens, tokens[:1], states)
    for bad in (tokens[None], tokens[:0]):
        with pytest.raises(ValueError, match=r"tokens have shape .*: expected one per stream"):
            stack.forward(bad, stack.init_state(0))
    logits = stack.forward(tokens, states)[0].clone()
    doubles = [state.double() for state in states]
    assert torch.equal(stack.forward(tokens.int(), doubles)[0], logits)


def test_networks_of_several_shapes_are_refused():
    with pytest.raises(ValueError, match=r"have the shapes .*: expected one"):
        NativeStack([TrialConfig(gated_configs(1, size)[0]) for size in (8, 9)], 3)


TRAINING = """
import torch
from rnn.config import GatedConfig, TrialConfig
from rnn.models.factory import build_network
from rnn.native.network import library_obstacle
network = build_network([TrialConfig(GatedConfig(True, True, True, True, True, 'both', 2, 8))], 0)
tokens = torch.arange(6)
losses, _ = network.loss_and_grad(tokens, tokens, network.init_state(6))
print(type(network).__name__, losses.item(), library_obstacle(8, "fp32"))
"""


def run_training(**environment):
    result = subprocess.run(
        [sys.executable, "-c", TRAINING],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not result.stderr
    (line,) = result.stdout.splitlines()
    name, loss, obstacle = line.split(maxsplit=2)
    return name, float(loss), obstacle


@pytest.fixture(scope="module")
def compiled():
    if load_library("fp32") is None:
        pytest.skip("no compiler")
    return run_training()


def test_library_is_used_where_there_is_a_compiler(compiled):
    name, _, obstacle = compiled
    assert (name, obstacle) == ("NativeStack", "None")


@pytest.mark.parametrize(
    ("environment", "obstacle"),
    [
        ({"CC": "no-such-compiler"}, "no C compiler 'no-such-compiler': install one, or set CC"),
        ({"CC": "false"}, "false failed: exit code 1"),
        ({"CC": ""}, "no C compiler ''"),
        ({"CC": "cc -DBLOCK_STREAMS=x"}, "error"),
        ({"CC": "cc 'unfinished"}, 'CC is "cc \'unfinished": expected a command'),
        ({"CC": "sh -c 'printf \"\\377 error\" >&2; exit 1'"}, "sh failed: \ufffd error"),
        ({"CC": "cc -fvisibility=hidden"}, "undefined symbol: rnn_"),
        ({"CC": "sh -c 'echo ld: final link failed: No space >&2; exit 1'"}, "No space"),
        ({"CC": "cc -c"}, "rnn/native/__pycache__/step-"),
        ({SWITCH: "0"}, "None"),
    ],
    ids=str,
)
def test_networks_train_the_same_without_the_library(compiled, environment, obstacle):
    name, loss, found = run_training(**environment)
    assert name == "NetworkStack"
    assert loss == pytest.approx(compiled[1], rel=1e-6)
    assert obstacle in found


def test_library_that_computes_wrong_numbers_is_not_used(monkeypatch):
    if load_library("fp32") is None:
        pytest.skip("no compiler")
    config = [TrialConfig(GatedConfig(False, False, False, False, True, "new", 1, 8))]
    assert isinstance(build_network(config, 0), NativeStack)
    compute = NativeStack.loss_and_grad

    def wrong(self, *args):
        losses, states = compute(self, *args)
        self.parameters.full_grads[3] += 0.1
        return losses, states

    monkeypatch.setattr(NativeStack, "loss_and_grad", wrong)
    computes_correctly.cache_clear()
    try:
        assert isinstance(build_network(config, 0), NetworkStack)
        assert (
            library_obstacle(8, "fp32")
            == "the compiled library computes other numbers than PyTorch"
        )
    finally:
        computes_correctly.cache_clear()


def test_compiled_library_is_kept_beside_the_source_or_else_in_a_private_folder(
    monkeypatch, tmp_path
):
    if load_library("fp32") is None:
        pytest.skip("no compiler")
    for name in ("step.c", "layer.h", "products.h"):
        (tmp_path / name).write_bytes((library._FOLDER / name).read_bytes())
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    path = library._compiled([])
    assert path.parent == tmp_path / "__pycache__"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    changed = path.stat().st_mtime_ns
    assert library._compiled([]) == path
    assert path.stat().st_mtime_ns == changed, "compiled once"

    (tmp_path / "step.c").write_text((tmp_path / "step.c").read_text() + "\n")

    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    private = library._compiled([])
    assert private.parent.parent != tmp_path / "__pycache__"
    assert private.parent.stat().st_mode & 0o077 == 0
    assert ctypes.CDLL(str(private)).rnn_tile_columns() > 0


@pytest.mark.parametrize("flags", [["-mno-avx512f"], ["-mno-avx512f", "-mno-avx"]], ids=" ".join)
def test_library_is_right_without_some_instructions(monkeypatch, flags):
    """As compiled for CPUs that have no AVX-512, or no AVX."""
    if load_library("fp32") is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(library, "_FLAGS", [*library._FLAGS, *flags])
    library._load.cache_clear()
    try:
        configs = random.Random(1).sample(gated_configs(2, 21), 8)
        for gate_inputs, group in itertools.groupby(
            sorted(configs, key=lambda config: config.gate_inputs), lambda c: c.gate_inputs
        ):
            assert gate_inputs
            assert_steps_same(*stacks(list(group), "fp32", 50), "fp32", 19, 50)
    finally:
        library._load.cache_clear()


def test_large_networks_and_other_devices_and_precisions_use_pytorch(monkeypatch):
    assert not pays_off(257, "fp32")
    assert not pays_off(385, "bf16")
    assert not pays_off(32, "fp64")
    monkeypatch.setattr("rnn.native.network.library_error", lambda precision: "no C compiler")
    assert library_obstacle(256, "fp32") == "no C compiler"
    assert library_obstacle(257, "fp32") is None, "nothing is missing for networks of this size"
    assert not pays_off(32, "fp32", torch.device("cuda"))
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    assert not pays_off(256, "bf16"), "PyTorch has the faster instructions of such a CPU"
