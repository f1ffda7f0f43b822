"""The recorded training step: on a GPU, and on the processor with a stand-in for its graphs.

:mod:`test_contract` has what holds for every implementation. ``pytest -m gpu tests/rnn`` needs
PyTorch, numpy and pytest alone.
"""

import contextlib
import gc
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from unittest.mock import Mock

import networks
import pytest
import torch
from graph_stand_in import StandInRecorder
from networks import GPU_IMPLEMENTATIONS, IMPLEMENTATIONS, list_cases
from test_contract import MIDDLE, assert_equal, assert_same, begin, finish, train

from rnn.training.devices import available_memory
from rnn.training.step import WARMUP_STEPS, CudaGraphRecorder, GraphRunner

RECORDED = [
    each
    for each in (*IMPLEMENTATIONS, *GPU_IMPLEMENTATIONS)
    if each.place != "cpu" and each.is_recorded
]
STACKS = [each for each in RECORDED if each.bptt_steps == (1,)]
FIRST = [list_cases([each])[0] for each in STACKS]
STACK = FIRST[0].values[0]


@pytest.fixture
def case(request, monkeypatch):
    networks.prepare(request.param.implementation.place, monkeypatch)
    return request.param


def is_recorded(run):
    runner = run._train_step.graph_runner
    return runner is not None and runner.is_recorded


def assert_all_equal(results, expected):
    assert results.keys() == expected.keys()
    for config, result in results.items():
        assert_equal(result, expected[config])


@pytest.mark.parametrize("case", list_cases(RECORDED), indirect=True)
def test_recorded_step_equals_one_that_is_run(case, monkeypatch):
    recorded = begin(case)
    results = finish(recorded)
    assert is_recorded(recorded)
    monkeypatch.setattr("rnn.training.step.find_recorder", lambda device: None)
    run = begin(case)
    assert_all_equal(results, finish(run))
    assert not is_recorded(run)


@pytest.mark.parametrize("case", FIRST, indirect=True)
def test_step_is_recorded_again_after_networks_have_left(case):
    earlier = []

    def leave():
        if run.step in (WARMUP_STEPS, MIDDLE):
            earlier.append(weakref.ref(run._train_step))
            run.remove_configs(run.configs[1:2])

    run = begin(case)
    results = finish(run, leave)
    assert is_recorded(run)
    assert [each() for each in earlier] == [None, None], "memory may not suffice for both stacks"
    for config, result in results.items():
        assert_same(case, result, train(case)[config])


@pytest.mark.gpu
def test_memory_of_a_stack_is_freed_when_networks_leave():
    case = list_cases(GPU_IMPLEMENTATIONS)[0].values[0]

    def free():
        gc.collect()
        torch.cuda.synchronize(case.device)
        return available_memory(case.device)

    def train_and_leave():
        run = begin(case)
        finish(run, lambda: run.remove_configs(case.configs[:3]) if run.step == MIDDLE else None)
        assert is_recorded(run)

    before = free()
    train_and_leave()
    assert before - free() < 64 * 2**20, "libraries keep some for themselves"


# ------------------------------------------------------------------ recordings that fail


def use_failing_recorder(monkeypatch, error):
    """Let the device run work, and not record it."""
    recorder = StandInRecorder()
    recorder.record = Mock(side_effect=error)
    monkeypatch.setattr("rnn.training.step.find_recorder", lambda device: recorder)


def test_step_that_cannot_be_recorded_is_run(monkeypatch):
    expected = finish(begin(STACK))
    use_failing_recorder(monkeypatch, RuntimeError("operation not permitted\nDetails"))
    run = begin(STACK)
    with pytest.warns(RuntimeWarning, match=r"\(operation not permitted\): it runs") as warned:
        results = finish(run)
    assert len(warned) == 1
    assert not is_recorded(run)
    assert_all_equal(results, expected)


def test_lack_of_memory_in_a_recording_ends_the_training(monkeypatch):
    """The worker then trains fewer networks together."""
    use_failing_recorder(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    run = begin(STACK)
    with pytest.raises(torch.OutOfMemoryError):
        list(run.train())
    assert run.step == WARMUP_STEPS


# ------------------------------------------------------------------ how CUDA is called


def test_recording_that_fails_leaves_no_trace(monkeypatch):
    """As in PyTorch, a recording that fails leaves its stream selected."""
    default, side = Mock(), Mock()
    selected = [default]

    @contextlib.contextmanager
    def select(stream):
        before, selected[0] = selected[0], stream
        try:
            yield
        finally:
            selected[0] = before

    @contextlib.contextmanager
    def record(graph, stream):
        assert not gc.isenabled()
        selected[0] = stream
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr("rnn.training.step._side_stream", lambda device: side)
    for name, value in {
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda: selected[0],
        "stream": select,
        "graph": record,
        "CUDAGraph": Mock,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    runner = GraphRunner(CudaGraphRecorder(torch.device("cuda:0")))
    streams = []
    for _ in range(WARMUP_STEPS):
        runner.run(lambda: streams.append(selected[0]))
    side.wait_stream.assert_called_with(default)
    default.wait_stream.assert_called_with(side)
    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        runner.run(lambda: streams.append(selected[0]))
    assert set(streams) == {side}, "warmed up on the stream that it is recorded on"
    assert selected == [default]
    assert gc.isenabled()


# ------------------------------------------------------------------ without other libraries


ROOT = Path(__file__).parents[2]

HIDE_OTHER_LIBRARIES = f"""
import sys
from importlib.machinery import PathFinder

ALLOWED = {{
    "numpy", "torch", "functorch", "torchgen",
    "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy",
    "typing_extensions",
    "pytest", "_pytest", "iniconfig", "packaging", "pluggy", "py", "pygments",
}}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        if spec is None or name.partition(".")[0] in ALLOWED:
            return spec
        places = [spec.origin or "", *(spec.submodule_search_locations or [])]
        return None if any("site-packages" in place for place in places) else spec

sys.meta_path[sys.meta_path.index(PathFinder):] = [Finder]
sys.path.insert(0, {str(ROOT)!r})
"""

REHEARSE = """
from dataclasses import replace
from benchmarks import gpu
from benchmarks.__main__ import main
gpu.REHEARSAL = replace(
    gpu.REHEARSAL, counts=(1, 2), sizes=((2, 4),), baseline_size=(1, 4), windows=(1, 2),
    streams=2, log_every=1, seconds=0.001,
)
main(["gpu", "--device", "cpu"])
"""

RUN_TESTS = 'import pytest\nsys.exit(pytest.main(["-p", "no:cacheprovider", *{arguments}]))'


def run(code):
    return subprocess.run(
        [sys.executable, "-c", HIDE_OTHER_LIBRARIES + code],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.extended
def test_gpu_benchmark_needs_nothing_else():
    ended = run(REHEARSE)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "rehearsal" in lines[1]
    assert len([line for line in lines if re.match("[12]×4 .* [12] +[0-9]", line)]) == 15
    assert lines[-1].startswith("no rows failed")


@pytest.mark.extended
def test_gpu_tests_need_nothing_else():
    """Those of the stand-in, in both files, are run; those of a GPU are collected with them."""
    words = "recorded and candidate and fp64 and (plain_module or again)"
    arguments = ["-vv", "-m", "not extended", "-k", words, "tests/rnn"]
    ended = run(RUN_TESTS.format(arguments=arguments))
    assert ended.returncode == 0, ended.stdout
    for file in ("test_contract", "test_gpu"):
        assert re.search(rf"{file}\.py::.* PASSED", ended.stdout)
        assert re.search(rf"{file}\.py::.*GPU.* (PASSED|SKIPPED)", ended.stdout)
    assert "FAILED" not in ended.stdout
