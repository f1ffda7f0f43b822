"""The step in C at every size, and what happens where it cannot be used."""

import ctypes
import random
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from networks import (
    NATIVE_PRECISIONS,
    assert_evaluates_as_plain_modules,
    assert_trains_as_plain_modules,
    gated_configs,
)

from rnn.config import GatedOptions, TaskSpec, TrialConfig
from rnn.engines import build_network
from rnn.native import library
from rnn.native.engine import NativeStack, computes_correctly, library_obstacle
from rnn.native.library import SWITCH, load_library
from rnn.network import Window

each_precision = pytest.mark.parametrize("precision", NATIVE_PRECISIONS)
needs_bf16 = pytest.mark.skipif("bf16" not in NATIVE_PRECISIONS, reason="no bfloat16 in the CPU")
needs_compiler = pytest.mark.skipif(load_library("fp32") is None, reason="no compiler")

# Sizes that fill whole vectors and tiles, and sizes that do not; streams of one block, of two.
SHAPES = [(32, 2, 64, 256, 1), (5, 3, 9, 256, 3), (100, 1, 129, 61, 3), (48, 2, 130, 300, 1)]


@each_precision
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 2, 3)], ids=str)
def test_networks_of_any_size_train_on_any_number_of_threads(shape, precision, thread_count):
    size, layers, streams, vocab_size, threads = shape
    configs = random.Random(0).sample(gated_configs(layers, size, ["state"]), 4)
    thread_count(threads)
    spec = TaskSpec.of_text(vocab_size)
    network = NativeStack(list(map(TrialConfig, configs)), 3, precision, spec)
    assert_trains_as_plain_modules(network, precision, streams, spec, lengths=[3])
    windows = np.random.default_rng(0).integers(0, vocab_size, (3, streams), dtype=np.uint16)
    assert_evaluates_as_plain_modules(network, precision, windows, spec)


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_precision
@pytest.mark.parametrize("streams", [7, 300])
def test_network_computes_the_same_bit_for_bit_in_any_stack_and_on_any_threads(
    streams, precision, thread_count
):
    configs = [TrialConfig(config) for config in gated_configs(2, 7, ["candidate"])[::19]]
    tokens = torch.arange(streams) % 11
    thread_count(1)
    window = Window(tokens[None], tokens[None] + 1)
    together = NativeStack(configs, 3, precision)
    losses, _ = together.loss_and_grad(window, together.init_state(streams))
    for k, config in enumerate(configs):
        thread_count(1 + k % 4)
        alone = NativeStack([config], 3, precision)
        for _ in range(2):  # the second finds the memory of the first
            loss, _ = alone.loss_and_grad(window, alone.init_state(streams))
        assert torch.equal(loss[0], losses[k])
        own = alone.parameters.extract(0, alone.parameters.grads)
        for name, grad in together.parameters.extract(k, together.parameters.grads).items():
            assert torch.equal(grad, own[name]), name


@needs_compiler
@pytest.mark.parametrize(
    ("tokens", "targets", "streams", "error"),
    [
        ([1, -1], [1, 2], 2, "a token is not below 256, the vocabulary size"),
        ([1, 256], None, 2, "a token is not below 256, the vocabulary size"),
        ([1, 2], [1], 2, r"shapes \[\(2,\), \(1,\), .*: expected one token and one target"),
        ([1, 2], [1, 2], 3, r"states \[\(1, 2, 8\)\]"),
    ],
)
def test_arguments_that_would_read_other_memory_are_errors(tokens, targets, streams, error):
    stack = NativeStack([TrialConfig(gated_configs(1, 8)[0])], 3)
    step = partial(stack.forward, torch.tensor([tokens]))
    if targets is not None:
        window = Window(torch.tensor([tokens]), torch.tensor([targets]))
        step = partial(stack.loss_and_grad, window)
    with pytest.raises((IndexError, ValueError), match=error):
        step(stack.init_state(streams))


ALL_OPTIONS = [TrialConfig(GatedOptions.of_largest().network(layers=2, state_size=8))]


def first_loss(network):
    tokens = torch.arange(6)[None]
    losses, _ = network.loss_and_grad(Window(tokens, tokens), network.init_state(6))
    return losses.item()


@pytest.fixture
def load_again():
    """Let the library be compiled, loaded and checked as in a new process."""

    def clear():
        library._load.cache_clear()
        computes_correctly.cache_clear()

    clear()
    yield
    clear()


@needs_compiler
@pytest.mark.parametrize(
    ("variable", "value", "obstacle"),
    [
        ("CC", "no-such-compiler", "no C compiler 'no-such-compiler': install one, or set CC"),
        ("CC", "false", "false failed: exit code 1"),
        ("CC", "cc 'unfinished", "No closing quotation"),
        ("CC", "sh -c 'printf \"\\377 error\" >&2; exit 1'", "sh failed: \ufffd error"),
        ("CC", "cc -fvisibility=hidden", "undefined symbol: rnn_"),
        ("CC", "sh -c 'shift $(($# - 2)); echo > $1'", "rnn-search/native-"),  # not a library
        (SWITCH, "0", "None"),
    ],
)
def test_networks_train_the_same_without_the_library(
    monkeypatch, load_again, variable, value, obstacle
):
    expected = first_loss(NativeStack(ALL_OPTIONS, 0))
    library._load.cache_clear()
    monkeypatch.setenv(variable, value)
    network = build_network(ALL_OPTIONS, 0)
    assert not isinstance(network, NativeStack)
    assert first_loss(network) == pytest.approx(expected, rel=1e-6)
    assert obstacle in str(library_obstacle(8, "fp32"))
    assert "\n" not in str(library_obstacle(8, "fp32"))


@needs_compiler
def test_library_that_computes_wrong_numbers_is_not_used(monkeypatch, load_again):
    assert isinstance(build_network(ALL_OPTIONS, 0), NativeStack)
    assert library_obstacle(8, "fp32") is None
    compute = NativeStack.loss_and_grad

    def wrong(self, *args):
        losses, states = compute(self, *args)
        self.parameters.grads[3] += 0.1
        return losses, states

    monkeypatch.setattr(NativeStack, "loss_and_grad", wrong)
    computes_correctly.cache_clear()
    assert not isinstance(build_network(ALL_OPTIONS, 0), NativeStack)
    expected = "the compiled library computes other numbers than PyTorch"
    assert library_obstacle(8, "fp32") == expected


@needs_compiler
def test_library_is_compiled_once_for_all_checkouts_or_else_into_a_private_folder(
    monkeypatch, tmp_path
):
    checkouts = [tmp_path / "first", tmp_path / "second"]
    for checkout in checkouts:
        shutil.copytree(library._FOLDER, checkout)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "_FLAGS", [*library._FLAGS, "-O0"])  # compiles sooner
    monkeypatch.setattr(library, "_FOLDER", checkouts[0])
    path = library._compiled([])
    assert path.parent == tmp_path / "cache/rnn-search"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    changed = path.stat().st_mtime_ns
    monkeypatch.setattr(library, "_FOLDER", checkouts[1])
    assert library._compiled([]) == path
    assert path.stat().st_mtime_ns == changed, "compiled once"

    source = checkouts[1] / "step.c"
    source.write_text(source.read_text() + "\n")

    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    private = library._compiled([])
    assert private.parent.parent != path.parent
    assert private.parent.stat().st_mode & 0o077 == 0
    assert ctypes.CDLL(str(private)).rnn_packed_size(1, 1) > 0


@needs_compiler
@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("fp32", ["-mno-avx512f"]),
        ("fp32", ["-mno-avx512f", "-mno-avx"]),
        pytest.param("bf16", ["-DNO_AMX"], marks=needs_bf16),
    ],
)
def test_library_is_right_without_some_instructions(monkeypatch, load_again, precision, flags):
    """As compiled for CPUs that have no AVX-512, no AVX, or no AMX."""
    monkeypatch.setattr(library, "_FLAGS", [*library._FLAGS, *flags])
    configs = random.Random(1).sample(gated_configs(2, 21, ["candidate"]), 4)
    network = NativeStack(list(map(TrialConfig, configs)), 3, precision, TaskSpec.of_text(50))
    assert_trains_as_plain_modules(network, precision, 19, TaskSpec.of_text(50), lengths=[3])
