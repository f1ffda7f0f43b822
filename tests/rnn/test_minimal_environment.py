"""The tests and the benchmark of a GPU run where PyTorch, numpy and pytest are all there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_benchmark_that_needs_another_library_says_so():
    ended = run('from benchmarks.__main__ import main\nmain(["gpu", "--device=cpu", "scale"])')
    assert ended.returncode == 2
    (message,) = ended.stderr.splitlines()
    assert message.endswith("benchmark 'scale' needs optuna: install the project (make install)")
    assert ended.stdout == ""


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
