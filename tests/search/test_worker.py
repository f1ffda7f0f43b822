"""Worker: recorded results, retries, requeued trials, and lockstep training."""

import logging
import math

import optuna
import pytest
import torch
from helpers import QUICK, TEXT, join_study
from hooks import HANG_TIMEOUT
from optuna.trial import TrialState
from process_runner import wait_until

from rnn.config import TrialConfig
from rnn.engines import build_network
from rnn.errors import DeviceError
from rnn.export import deserialize_model
from rnn.network import count_parameters
from rnn.tasks.text import TextData, select_eval_windows
from rnn.training.evaluation import compute_eval_losses
from rnn.training.loop import TrainLoop
from search.create_or_join import open_study
from search.display import Display
from search.run import run_workers
from search.run_options import RunOptions, WorkerOptions
from search.status import estimate_seconds_left
from search.worker.checkpoints import Checkpoints
from search.worker.claims import Claim, ClaimManager
from search.worker.cpu_budget import ThreadBudget
from search.worker.lockstep import to_train_config
from search.worker.shutdown import ShutdownSignal
from search.worker.trainer import Trainer
from studies.artifacts import ArtifactFolders, TrialFiles
from studies.attributes import Failure, TrialRecord
from studies.errors import StorageUnavailableError
from studies.storage.counts import TimingStats, TrialCounts, count_retries, count_trials
from studies.storage.leases import PendingWrite
from studies.storage.open import open_storage
from studies.trial_params import to_trial_config

SETTINGS = [
    "seed=5",
    "keep_weights=0",
    "training.steps=10",
    "training.batch_size=4",
    "training.sequence_length=8",
    "training.log_every=4",
    "training.smoothing=0.5",
    "evaluation.windows=3",
    "evaluation.window_length=9",
    "space.state_size=[4]",
    "space.layers=[2]",
    "space.input_gate=[false]",
    "space.output_gate=[false]",
    "space.state_gate=[true]",
    "space.residual=[true]",
]
"""Overrides for six networks that train in an instant."""

ONE_NETWORK = ["space.forget_gate=[false]", "space.state_source=['new']"]


class RecordingDisplay(Display):
    """Display that collects what a worker logs, the end of a trial as its outcome alone."""

    def __init__(self, messages):
        super().__init__()
        self.messages = messages
        self.addFilter(lambda record: record.name != "search.run")

    def __enter__(self):
        super().__enter__()
        logging.getLogger("search").setLevel(logging.DEBUG)  # the ends of paused trials as well
        return self

    def print_line(self, line):
        self.messages.append(line)


def create_study(url, text, *overrides, **terms):
    """Create or join a study of the six networks, or of those that the overrides name."""
    return join_study(QUICK, url, (*SETTINGS, *overrides), text, **terms)


def work(url, text, overrides=(), study=QUICK, **terms):
    """Work on a study as ``rnn-search run`` does; return its handle and the messages."""
    settings = (*(SETTINGS if study == QUICK else ()), *overrides)
    given = {"study": study, "storage": url, "overrides": settings, "corpus": text and str(text)}
    messages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.run.Display", lambda stop: RecordingDisplay(messages))
        patch.setattr("search.worker.queue.format_trial_end", lambda *end: end[2])
        name = run_workers(RunOptions(threads=1, **given | terms)).study
    return open_study(name, url, WorkerOptions(corpus=given["corpus"])), messages


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Trials of a float32 study whose networks are trained one by one."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "text").write_bytes(TEXT)
    url = f"sqlite:///{folder}/studies.db"
    joined, _ = work(url, folder / "text", ["precision='fp32'"], lockstep=1)
    return joined.study.trials


def test_stored_trial_matches_values_recomputed_from_its_config(sqlite_url, text):
    """Only replicates are evaluated on the test split."""
    searched, _ = work(sqlite_url, text, ["gate_inputs='candidate'"], precision="bf16")
    refine = ["refinement.top=1", "refinement.variants=[{}]", "refinement.replicates=2"]
    refine += ["training.steps=12", "eval_split='test'"]
    refined, _ = work(sqlite_url, None, refine, "quick-refined")
    for joined, steps in ((searched, [4, 8]), (refined, [4, 8, 12])):
        config, corpus = joined.config, joined.task_of(()).corpus
        assert (config.seed, config.precision, config.gate_inputs) == (5, "bf16", "candidate")
        for trial in joined.study.trials:
            trial_config = to_trial_config(trial.params, config)
            network = build_network([trial_config], config.seed, config.precision)
            run = TrainLoop(network, TextData(corpus.train), to_train_config(config))
            list(run.train())
            assert [*trial.intermediate_values] == steps
            assert trial.intermediate_values == run.curves[0]
            run.swap_in_averaged_weights()

            def measure_loss(text, run=run):
                windows = select_eval_windows(text, 3, 9)
                return compute_eval_losses(run.stack, windows).mean().item()

            found = trial.user_attrs
            loss = measure_loss(corpus.validation)
            assert trial.value == found["validation_loss"] == pytest.approx(loss)
            assert found["validation_bits_per_byte"] == pytest.approx(loss / math.log(2))
            if joined is searched:
                assert "test_bits_per_byte" not in found
            else:
                bits = measure_loss(corpus.test) / math.log(2)
                assert found["test_bits_per_byte"] == pytest.approx(bits)
            assert found["parameter_count"] == count_parameters(trial_config.architecture)
            assert (found["seed"], found["threads"], found["precision"]) == (5, 1, "bf16")
    assert {trial.params["replicate"] for trial in refined.study.trials} == {1, 2}
    assert len({trial.value for trial in refined.study.trials}) == 2, "they are other networks"


@pytest.mark.parametrize(
    ("objective", "metric", "attribute"),
    [
        ("training", "smoothed training loss", "training_loss"),
        ("training-mean", "mean training loss of the last quarter", "training_mean_loss"),
    ],
)
def test_value_is_that_of_the_objective(sqlite_url, text, objective, metric, attribute):
    joined, _ = work(sqlite_url, text, [*ONE_NETWORK, f"objective='{objective}'"])
    assert joined.study.metric_names == [metric]
    (trial,) = joined.study.trials
    assert trial.value == trial.user_attrs[attribute]
    curve = trial.intermediate_values
    assert trial.user_attrs["training_loss"] == min(curve.values())
    last = [loss for step, loss in curve.items() if step > 0.75 * max(curve)]
    assert 0 < len(last) < len(curve)
    assert trial.user_attrs["training_mean_loss"] == pytest.approx(sum(last) / len(last))


def test_weights_of_the_best_trials_are_those_evaluated(sqlite_url, text):
    joined, messages = work(sqlite_url, text, ["keep_weights=2"], lockstep=4)
    assert messages == ["complete"] * 6
    best = sorted(joined.study.trials, key=lambda trial: trial.value)
    weights = ArtifactFolders(None, sqlite_url).trial_files(joined.artifact_folder, "safetensors")
    assert weights.list_trials() == {trial.number for trial in best[:2]}
    held_out = select_eval_windows(joined.task_of(()).corpus.validation, 3, 9)
    for trial in best[:2]:
        network = deserialize_model(weights.read(trial.number))
        trial_config = to_trial_config(trial.params, joined.config)
        assert network.architecture == trial_config.architecture
        own = {trial_config: network.weights}
        lockstep = build_network([trial_config], 0, network.precision, weights=own)
        loss = compute_eval_losses(lockstep, held_out).mean().item()
        assert loss == pytest.approx(trial.user_attrs["validation_loss"], rel=1e-3)
        assert trial.user_attrs["sample"]


def test_training_continues_when_weights_cannot_be_saved(sqlite_url, text, monkeypatch):
    def write(self, number, content):
        raise OSError("no space left")

    monkeypatch.setattr(TrialFiles, "write", write)
    joined, messages = work(sqlite_url, text, [*ONE_NETWORK, "keep_weights=1"])
    assert [trial.state for trial in joined.study.trials] == [TrialState.COMPLETE]
    (warning,) = [line for line in messages if "cannot keep the weights" in line]
    assert "(no space left)" in warning


def test_tokens_are_learnt_and_losses_stated_per_byte(sqlite_url, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"the cat sat on the mat, and the dog sat on it. " * 100)
    joined, messages = work(sqlite_url, text, [*ONE_NETWORK, "task.tokenizer='bpe:270'"])
    assert messages == ["complete"]
    assert joined.config.task_record.inputs == joined.task_of(()).tokenizer.size > 256
    found = joined.study.trials[0].user_attrs
    bits_per_token = found["validation_loss"] / math.log(2)
    assert found["validation_bits_per_byte"] < bits_per_token


def test_worker_updates_its_share_of_the_cores_between_steps(sqlite_url, text, monkeypatch):
    shares = iter([1, 1, 2, 2, 1] * 1000)
    monkeypatch.setattr("search.worker.queue.POLL_INTERVAL", 0)
    monkeypatch.setattr(ThreadBudget, "thread_count", lambda self: next(shares))
    before = torch.get_num_threads()
    joined, _ = work(sqlite_url, text, ["space.forget_gate=[false]"], lockstep=1)
    torch.set_num_threads(before)
    assert {trial.user_attrs["threads"] for trial in joined.study.trials} == {1, 2}


def test_waiting_worker_releases_its_cores(sqlite_url, text, monkeypatch):
    joined = create_study(sqlite_url, text)
    joined.storage.claim(joined.study_id, "you/1")
    seen = []
    monkeypatch.setattr(ThreadBudget, "release", lambda self: seen.append("release"))
    monkeypatch.setattr(ShutdownSignal, "wait", lambda self, seconds: seen.append("wait"))
    monkeypatch.setattr(ShutdownSignal, "requested", property(lambda self: "wait" in seen))
    _, messages = work(sqlite_url, text)
    assert messages[:5] == ["complete"] * 5
    assert "waiting for them" in messages[5]
    assert seen[:2] == ["release", "wait"]


def test_divergence_after_the_last_log_point_is_detected(sqlite_url, text):
    overrides = ["training.learning_rate=1e30", "training.steps=1", "training.log_every=1"]
    joined, messages = work(sqlite_url, text, overrides)
    assert set(messages) == {"diverged"}
    assert {trial.user_attrs["failure"] for trial in joined.study.trials} == {"diverged"}


GROWING = """
from torch import nn

class Growing(nn.Module):
    def __init__(self, input_size, state_size, *, factor: float = 1.0):
        super().__init__()
        self.factor = factor
        self.read = nn.Linear(input_size, state_size)

    def forward(self, x, state):
        state = self.factor * state + self.read(x)
        return state, state
"""


def test_network_whose_states_explode_has_diverged(sqlite_url, tmp_path):
    (tmp_path / "cell.py").write_text(GROWING)
    (tmp_path / "growing.toml").write_text(
        'task = { source = "selective_copy", length = 24, items = 3 }\n'
        '[space]\ncell = ["cell.py:Growing"]\nlayers = [1]\nstate_size = [4]\nfactor = [1.0, 4.0]\n'
        '[training]\nupdates = 1\nbptt_steps = "sequence"\n'
    )
    joined, _ = work(sqlite_url, None, ["evaluation.windows=2"], str(tmp_path / "growing.toml"))
    for trial in joined.study.trials:
        has_diverged = trial.user_attrs.get("failure") == "diverged"
        assert has_diverged == (trial.params["factor"] > 1)


def test_restarted_trial_replaces_its_curve(sqlite_url, text):
    """Its last worker left no checkpoint to resume from, and that of another one no value."""
    overrides = ["training.eval_every=3"]
    joined = create_study(sqlite_url, text, *overrides)
    trial_ids = [joined.storage.claim(joined.study_id, "gone") for _ in range(2)]
    metrics = {
        "curve:validation_loss": [[2, 9.0], [12, None]],
        "curve:validation_accuracy": [[2, 0.5]],
    }
    written = PendingWrite(trial_ids[0], "gone", {3: 9.0, 12: 9.0}, metrics=metrics)
    joined.storage.flush([written])
    for trial_id in trial_ids:
        joined.storage.requeue_all([PendingWrite(trial_id, "gone")], Failure.LEASE_EXPIRED)
    work(sqlite_url, text, overrides)
    for trial_id in trial_ids:
        trial = joined.storage.get_trial(trial_id)
        assert list(trial.intermediate_values) == [4, 8]
        assert [step for step, _ in trial.system_attrs["curve:validation_loss"]] == [3, 6, 9, 10]
        assert not trial.system_attrs.get("curve:validation_accuracy")


def stop_in_the_midst(url, text, monkeypatch, overrides=(), lockstep=None, step=4):
    """Work on a study, and shut down when its first trials reach a step."""
    reached = []
    report = Claim.report

    def noted(self, at, loss):
        report(self, at, loss)
        if at == step:
            reached.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Claim, "report", noted)
        patch.setattr("search.worker.queue.POLL_INTERVAL", 0)
        patch.setattr(ShutdownSignal, "requested", property(lambda self: bool(reached)))
        return work(url, text, overrides, lockstep=lockstep)


def test_missing_checkpoints_of_a_moved_database_are_reported_in_one_line(
    sqlite_url, text, tmp_path, monkeypatch
):
    overrides = ["precision='fp32'", "training.steps=12"]
    joined, _ = stop_in_the_midst(sqlite_url, text, monkeypatch, overrides, lockstep=2)
    joined.storage.close()
    assert len(list(tmp_path.glob("studies.db.checkpoints/*/*"))) == 2
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "studies.db").rename(moved / "studies.db")
    url = f"sqlite:///{moved}/studies.db"
    joined, said = work(url, text, overrides, lockstep=6)
    place = f"{moved}/studies.db.checkpoints/{joined.artifact_folder}"
    (line,) = [line for line in said if "checkpoint" in line]
    assert line == (
        f"warning: no checkpoint of trials 0-1 in {place}, though step 4 was recorded: training "
        "restarts from step 0; if the database was moved, move its checkpoint folder along with "
        "it, or name the folder with --artifacts"
    )
    assert said.count("complete") == 6


def test_trials_resumed_by_another_version_record_both(sqlite_url, text, monkeypatch):
    overrides = ["precision='fp32'", "training.steps=12"]

    def set_versions(patch, version):
        for function in ("source_hash", "torch_version"):
            patch.setattr(f"rnn.training.checkpoint.{function}", lambda: version)

    with monkeypatch.context() as patch:
        set_versions(patch, "0.1")
        stop_in_the_midst(sqlite_url, text, monkeypatch, overrides, lockstep=2)
    set_versions(monkeypatch, "0.2")
    joined, said = work(sqlite_url, text, overrides, lockstep=3)
    assert said.count("trials 0-1 resume from step 4") == 1
    for trial in joined.study.trials:
        assert trial.state is TrialState.COMPLETE
        for name in ("code", "torch"):
            expected = ["0.1"] if trial.number < 2 else None
            assert trial.user_attrs[name] == "0.2"
            assert trial.user_attrs.get(f"earlier_{name}") == expected


def test_joining_warns_if_other_versions_trained_the_unfinished_study(
    sqlite_url, text, monkeypatch
):
    """The process that created the study has the same versions as the last that joins."""
    ended = []

    def join():
        joined = create_study(sqlite_url, text, "training.steps=12")
        joined.storage.close()
        return joined.warning

    assert join() == ""
    with monkeypatch.context() as patch:
        patch.setattr("rnn.training.checkpoint.source_hash", lambda: "ba9876543210")
        assert "this worker trains with training code ba9876543210; to avoid" in join()
        patch.setattr(Checkpoints, "remove", lambda self, number: ended.append(number))
        patch.setattr(ShutdownSignal, "requested", property(lambda self: bool(ended)))
        work(sqlite_url, text, ["training.steps=12"], lockstep=1)
    assert len(ended) == 1
    assert "was created or trained with training code ba9876543210 so far" in join()
    work(sqlite_url, text, ["training.steps=12"])
    assert join() == "", "nothing is left to train"


def test_unrecorded_divergence_is_recorded_by_the_next_worker(sqlite_url, text, monkeypatch):
    """Its checkpoint contains a complete curve."""

    def away(*arguments):
        raise StorageUnavailableError("away")

    overrides = ["training.learning_rate=1e30", "training.log_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(ClaimManager, "finish", away)
        with pytest.raises(StorageUnavailableError):
            work(sqlite_url, text, overrides)
    joined = create_study(sqlite_url, text, *overrides)
    for trial_id, lease in joined.storage.running_leases(joined.study_id).items():
        joined.storage.requeue_all(
            [PendingWrite(trial_id, lease.claim_token)], Failure.LEASE_EXPIRED
        )
    _, messages = work(sqlite_url, text, overrides)
    assert messages.count("diverged") == 6
    for trial in joined.study.trials:
        assert trial.user_attrs["failure"] == "diverged"
        assert list(trial.intermediate_values) == [2]


def fail_with_a_forget_gate(monkeypatch, error):
    """Fail the evaluation of stacks with a forget gate; return the list of failed attempts."""

    def measure(lockstep, *rest):
        if any(trial_config.architecture.gated.forget_gate for trial_config in lockstep.configs):
            tries.append(lockstep.configs)
            raise error
        return compute_eval_losses(lockstep, *rest)

    tries: list[tuple[TrialConfig, ...]] = []
    monkeypatch.setattr("rnn.tasks.text.compute_eval_losses", measure)
    return tries


def test_failing_network_does_not_affect_others_in_its_stack(sqlite_url, text, alone, monkeypatch):
    """The stack is halved until the failing network is found; only its retries are counted."""
    tries = fail_with_a_forget_gate(monkeypatch, RuntimeError("no"))
    overrides = ["precision='fp32'", "space.forget_gate=[false, true]"]
    joined, messages = work(sqlite_url, text, overrides, lockstep=4)
    assert max(map(len, tries)) == 4
    assert any("trained in lockstep failed (RuntimeError: no)" in line for line in messages)
    for trial, same in zip(joined.study.trials, alone, strict=True):
        assert trial.params == same.params
        if trial.params["forget_gate"]:
            assert trial.state is TrialState.FAIL
            assert trial.user_attrs["retries"] == {"exception": 3}
        else:
            assert "retries" not in trial.user_attrs
            assert trial.value == pytest.approx(same.value, rel=1e-5)
            assert list(trial.intermediate_values) == [4, 8]


def test_out_of_memory_reduces_the_number_of_networks_trained_together(
    sqlite_url, text, monkeypatch
):
    sizes = []

    def build(trial_configs, *args, **kwargs):
        sizes.append(len(trial_configs))
        if len(trial_configs) > 2:
            raise torch.OutOfMemoryError("no")
        return build_network(trial_configs, *args, **kwargs)

    monkeypatch.setattr("search.worker.trainer.build_network", build)
    joined, _ = work(sqlite_url, text, ["space.layers=[1, 2]"], lockstep=4)
    assert {trial.state for trial in joined.study.trials} == {TrialState.COMPLETE}
    assert sizes.count(4) == 2  # once for each shape
    assert not any("retries" in trial.user_attrs for trial in joined.study.trials)


def test_worker_that_loses_one_trial_continues_with_the_others(sqlite_url, text, monkeypatch):
    """Another worker has requeued the lost trial, which is waiting at the end."""
    overrides = ["precision='fp32'", "training.log_every=2", "training.steps=40"]
    alone, _ = work(sqlite_url, text, overrides, name="alone", lockstep=1)
    sizes, lost = [], []
    remove, storage = Trainer._remove_diverged, open_storage(sqlite_url)

    def remove_diverged(self, loop):
        sizes.append(len(loop.configs))
        if loop.step == 4:
            claim = self._claims[loop.configs[0]]
            storage.requeue_all(
                [PendingWrite(claim.trial_id, claim.claim_token)], Failure.LEASE_EXPIRED
            )
            storage.claim(storage.get_study_id_from_name("quick"), "you", HANG_TIMEOUT)
            lost.append(claim.trial_id)
            wait_until(lambda: claim.is_lost)
        return remove(self, loop)

    monkeypatch.setattr(Trainer, "_remove_diverged", remove_diverged)
    monkeypatch.setattr("search.worker.queue.POLL_INTERVAL", 0)
    joined, messages = work(sqlite_url, text, overrides, lockstep=6, wait=False)
    assert messages.count("dropped: claimed by another worker after its lease expired") == 1
    assert messages.count("complete") == 5
    assert sizes == [6] * 3 + [5] * 18
    for trial, same in zip(joined.study.trials, alone.study.trials, strict=True):
        if trial._trial_id in lost:
            assert trial.state is TrialState.RUNNING
        else:
            assert trial.value == pytest.approx(same.value, rel=1e-4)


def test_precision_that_the_device_lacks_is_rejected(sqlite_url, text, monkeypatch):
    """Also if the command names no precision and so adopts that of the study."""
    with monkeypatch.context() as patch:
        patch.setattr("search.networks.check_precision", lambda precision, device: None)
        work(sqlite_url, text, precision="tf32")
    with pytest.raises(DeviceError, match="precision tf32 is not supported on cpu"):
        work(sqlite_url, text)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("out of something\nand more"), "exception"),
        (KeyError("a bug"), "exception"),
        (torch.OutOfMemoryError("no"), "out of memory"),
    ],
)
def test_trial_is_retried_three_times_after_errors(sqlite_url, text, monkeypatch, error, cause):
    tries = fail_with_a_forget_gate(monkeypatch, error)
    joined, messages = work(sqlite_url, text, lockstep=1)
    line = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if isinstance(error, KeyError):  # its traceback is printed once
        assert messages.count(f"warning: training failed ({line})") == 12
        assert sum(each.startswith("Traceback (") for each in messages) == 1
        assert sum("bug in rnn-search (KeyError: 'a bug')" in each for each in messages) == 1
        messages = [each for each in messages if each.startswith(("complete", "failed"))]
    assert sorted(messages) == sorted(
        ["complete"] * 3
        + ["failed, requeued for a retry"] * 9
        + [f"failed after 3 retries ({line})"] * 3
    )
    assert len(tries) == 12
    # Other trials run before the retry: the cause may be temporary.
    assert len(set(tries[:3])) == 3
    assert all(len(together) == 1 for together in tries)
    for trial in joined.study.trials:
        if not trial.params["forget_gate"]:
            assert "retries" not in trial.user_attrs
            continue
        assert trial.state is TrialState.FAIL
        assert trial.user_attrs["failure"] == cause
        assert trial.user_attrs["error"] == line
        assert trial.user_attrs["retries"] == {cause: 3}
        TrialRecord.model_validate(trial.user_attrs)
    counts = count_trials(joined.storage, joined.study_id)
    assert (counts.complete, counts.failed) == (3, 3)
    assert count_retries(joined.storage, joined.study_id) == {cause: 9}


def test_trial_is_requeued_when_the_process_exits(sqlite_url, text, monkeypatch):
    def end(self, step, loss):
        raise SystemExit

    monkeypatch.setattr(Claim, "report", end)
    monkeypatch.setattr("search.worker.queue.REQUEUE_TIMEOUT", HANG_TIMEOUT)
    with pytest.raises(SystemExit):
        work(sqlite_url, text)
    study = optuna.load_study(study_name="quick", storage=sqlite_url)
    assert {trial.state for trial in study.trials} == {TrialState.WAITING}


def test_remaining_time_is_estimated_by_shape():
    shapes = [
        TimingStats(complete=2, waiting=3, running=1, seconds=10.0),
        TimingStats(complete=1, waiting=2, seconds=40.0),
    ]
    some = TrialCounts(complete=3, running=1, waiting=5)
    assert estimate_seconds_left(shapes, some, workers=2) == (3.5 * 10 + 2 * 40) / 2
    assert estimate_seconds_left(shapes, some, workers=0) is None
    unknown = [*shapes, TimingStats(waiting=1)]
    assert estimate_seconds_left(unknown, TrialCounts(complete=3, waiting=7), workers=1) is None
    slow = [TimingStats(complete=1, seconds=10.0), TimingStats(running=1)]
    assert estimate_seconds_left(slow, TrialCounts(complete=1, running=1), workers=1) is None
