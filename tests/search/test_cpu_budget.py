"""Workers on one machine share its cores, however they end."""

import multiprocessing
import re
import signal
from pathlib import Path

import pytest
import torch
from hooks import HANG_TIMEOUT
from threadpoolctl import ThreadpoolController, threadpool_info

from search.worker import cpu_budget
from search.worker.cpu_budget import ThreadBudget


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(cpu_budget, "cores", lambda: 8)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_workers_share_all_cores_and_reclaim_those_of_ended_workers(tmp_path):
    with ThreadBudget(folder=tmp_path) as one:
        with ThreadBudget(folder=tmp_path) as two, ThreadBudget(folder=tmp_path) as three:
            assert sorted(w.thread_count() for w in (one, two, three)) == [2, 3, 3]
        assert one.thread_count() == 8


def test_fixed_thread_count_is_kept_and_subtracted_for_others(tmp_path):
    with ThreadBudget(folder=tmp_path) as one, ThreadBudget(3, folder=tmp_path) as fixed:
        assert (one.thread_count(), fixed.thread_count()) == (5, 3)
        with ThreadBudget(20, folder=tmp_path):
            assert one.thread_count() == 1, "a share is at least one thread"


def hold(folder, ready) -> None:
    with ThreadBudget(folder=folder):
        ready.set()
        signal.pause()


@pytest.mark.extended
def test_cores_of_a_killed_worker_go_to_the_others(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(HANG_TIMEOUT)
    with ThreadBudget(folder=tmp_path) as one:
        assert one.thread_count() == 4
        other.kill()
        other.join()
        assert one.thread_count() == 8


def put_open_folder(place):
    place.mkdir()
    place.chmod(0o777)


@pytest.mark.parametrize("put", [put_open_folder, Path.touch])
def test_unusable_folder_is_left_alone_and_the_worker_trains_as_if_alone(tmp_path, caplog, put):
    """Another user has put something else in its place."""
    place = tmp_path / "workers"
    put(place)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with ThreadBudget(folder=place) as one, ThreadBudget(3, folder=place) as fixed:
        assert (one.apply(), fixed.apply()) == (8, 3)
        one.release()
        assert one.apply() == 8
    (warning,) = caplog.messages  # none of the worker that does not share
    assert str(place) in warning
    assert "--threads" in warning
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def numpy_blas_threads():
    (library,) = (each for each in threadpool_info() if "numpy" in each["filepath"])
    return library["num_threads"]


def test_numpy_uses_one_thread_and_pytorch_its_share(tmp_path):
    """Its predictions run while PyTorch trains."""
    with ThreadpoolController().limit(limits=4, user_api="blas"):
        assert numpy_blas_threads() == 4
        with ThreadBudget(3, folder=tmp_path) as budget:
            assert numpy_blas_threads() == 1
            assert budget.apply() == torch.get_num_threads() == 3
            # OpenMP's threads, and those of matrix products where MKL computes them.
            info = torch.__config__.parallel_info()
            assert set(re.findall(r"(?:omp|mkl)_get_max_threads\(\) : (\d+)", info)) == {"3"}
        assert numpy_blas_threads() == 4
