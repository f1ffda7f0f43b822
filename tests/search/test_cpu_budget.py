"""Workers on one machine share its cores, however they end."""

import multiprocessing
import shutil
import signal

import pytest
import torch
from hooks import HANG_TIMEOUT

from search.worker import cpu_budget
from search.worker.cpu_budget import ThreadBudget


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(cpu_budget, "cores", lambda: 8)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_cleared_temporary_folder_does_not_change_the_share(tmp_path):
    with ThreadBudget(folder=tmp_path / "workers") as budget:
        shutil.rmtree(tmp_path / "workers")
        assert budget.apply() == 8


def test_single_worker_uses_all_cores(tmp_path):
    with ThreadBudget(folder=tmp_path) as budget:
        assert budget.thread_count() == 8
        assert torch.get_num_threads() == 8


def test_workers_share_all_cores_and_reclaim_those_of_ended_workers(tmp_path):
    with ThreadBudget(folder=tmp_path) as one:
        with ThreadBudget(folder=tmp_path) as two, ThreadBudget(folder=tmp_path) as three:
            assert sorted(w.thread_count() for w in (one, two, three)) == [2, 3, 3]
        assert one.thread_count() == 8


def test_fixed_thread_count_is_kept_and_subtracted_for_others(tmp_path):
    with ThreadBudget(folder=tmp_path) as one, ThreadBudget(3, folder=tmp_path) as fixed:
        assert (one.thread_count(), fixed.thread_count()) == (5, 3)


def test_share_is_at_least_one_thread(tmp_path):
    with ThreadBudget(20, folder=tmp_path), ThreadBudget(folder=tmp_path) as one:
        assert one.thread_count() == 1


def hold(folder, ready) -> None:
    with ThreadBudget(folder=folder):
        ready.set()
        signal.pause()


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


def test_lock_file_is_removed(tmp_path):
    with ThreadBudget(folder=tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_released_cores_go_to_others_until_the_share_is_applied(tmp_path):
    with ThreadBudget(folder=tmp_path) as one, ThreadBudget(folder=tmp_path) as two:
        two.release()
        assert one.apply() == 8
        two.release()
        assert two.apply() == 4
        assert one.apply() == 4
        two.release()
    assert list(tmp_path.iterdir()) == []
