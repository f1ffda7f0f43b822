"""The contract of a task, and the built-in tasks, which keep it."""

import importlib
import itertools
import random
import sys

import numpy as np
import pytest
import torch

from rnn.errors import TaskError
from rnn.tasks import datasets
from rnn.tasks.built_in import find_built_in
from rnn.tasks.sequence_task import SequenceTask
from rnn.tasks.task import SPLITS

NUMBERS = {"input_size": 3, "output_size": 1}
TOKENS = {"vocabulary": 4, "classes": 4}


def make_task(attributes, **results):
    """Return a task of 5 steps; what a batch holds is replaced by the given results, if any."""

    class Mine:
        def sample(self, split, rng, count):
            has_tokens = "vocabulary" in attributes
            shape = (count, 5) if has_tokens else (count, 5, 3)
            inputs = rng.integers(4, size=shape) if has_tokens else rng.normal(size=shape)
            targets = inputs if "classes" in attributes else inputs.sum(2)
            batch = {"inputs": inputs, "targets": targets, **results}
            return {name: part(count) if callable(part) else part for name, part in batch.items()}

    for name, value in attributes.items():
        setattr(Mine, name, value)
    return SequenceTask(Mine(), "Mine")


def built_in(source, folder=None, **options):
    cls, options_of_source = find_built_in(source, folder)
    return SequenceTask(cls(**options_of_source, **options), source)


def line_of(call, *arguments, **options):
    with pytest.raises((TaskError, ValueError)) as raised:
        call(*arguments, **options)
    (line,) = str(raised.value).splitlines()
    return line


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    ("attributes", "line"),
    [
        ({"classes": 2}, "has neither of input_size and vocabulary"),
        (NUMBERS | TOKENS, "has input_size and vocabulary of input_size and vocabulary"),
        (TOKENS | {"classes": 0}, "classes of task Mine is 0"),
        (NUMBERS | {"output_size": 2.5}, "output_size of task Mine is 2.5"),
        (NUMBERS | {"sample": None}, "has no method sample"),
        (NUMBERS | {"eval_lengths": (9,)}, "its sample no parameter length"),
        (NUMBERS | {"metrics": {"mae": "smallest"}}, "'mae': 'smallest'"),
        (NUMBERS | {"metrics": {"my mae": "minimize"}}, "'my mae': 'minimize'"),
        (NUMBERS | {"metrics": {"loss": "minimize"}, "loss": abs}, "has the metric loss, the name"),
        (NUMBERS | {"output_names": ["a", "b", "c", "d"]}, "has 4 output_names: expected one for"),
    ],
)
def test_broken_definition_is_refused(attributes, line):
    assert line in line_of(make_task, attributes)


@pytest.mark.parametrize(
    ("attributes", "results", "line"),
    [
        (NUMBERS, {"weights": 1}, "returned 'weights': expected only inputs"),
        (NUMBERS, {"inputs": np.zeros((4, 5))}, "inputs with shape (4, 5)"),
        (NUMBERS, {"inputs": np.zeros((4, 0, 3))}, "inputs with shape (4, 0): expected one step"),
        (NUMBERS, {"inputs": np.zeros((9, 5, 3))}, "expected numbers (4, 5, 3)"),
        (NUMBERS, {"inputs": np.full((4, 5, 3), np.nan)}, "a number that is not finite"),
        (NUMBERS, {"inputs": np.full((4, 5, 3), "a")}, "dtype <U1: expected numbers"),
        (NUMBERS, {"targets": np.full((4, 5), np.inf)}, "targets with a number that is not finite"),
        (
            NUMBERS,
            {"targets": np.zeros((4, 6))},
            "shape (4, 6) and dtype float64: expected",
        ),
        (TOKENS, {"inputs": np.full((4, 5), 4)}, "a value 4: expected 0 to 3"),
        (TOKENS, {"inputs": np.full((4, 5), -1)}, "a value -1: expected 0 to 3"),
        (TOKENS, {"inputs": np.zeros((4, 5))}, "dtype float64: expected integers"),
        (TOKENS, {"targets": np.full((4, 5), 9)}, "targets with a value 9"),
        (TOKENS, {"targets": np.zeros(4, int), "mask": np.ones((4, 5))}, "no mask with it"),
        (TOKENS, {"mask": np.ones((4, 6))}, "mask with shape (4, 6) and dtype float64: expected"),
        (TOKENS, {"mask": np.full((4, 5), np.nan)}, "a negative weight or one that is not finite"),
        (TOKENS, {"mask": -np.ones((4, 5))}, "a negative weight"),
        (TOKENS, {"resets": np.zeros((4, 5))}, "dtype float64: expected booleans (4, 5)"),
        (TOKENS, {"slices": {"age": np.zeros((4, 5))}}, "slice age with shape (4, 5)"),
        (TOKENS, {"slices": {"age": np.zeros(3, int)}}, "slice age with shape (3,)"),
    ],
)
def test_broken_batch_is_refused(attributes, results, line):
    task = make_task(attributes, **results)
    refused = line_of(task._sample, "train", np.random.default_rng(0), 4)
    assert refused.startswith("sample of task Mine returned ")
    assert line in refused


def test_held_out_data_need_a_target():
    task = make_task(TOKENS, mask=lambda count: np.zeros((count, 5)))
    assert "no step of split test has a target" in line_of(task.held_out, "test", 3)


def test_sample_returns_a_dict():
    task = make_task(TOKENS | {"sample": lambda self, split, rng, count: [1, 2]})
    assert "returned list: expected a dict with inputs and targets" in line_of(lambda: task.steps)


def test_all_training_batches_have_the_shape_of_the_first():
    def sample(self, split, rng, count, index):
        return {"inputs": np.zeros((count, 5 + index), int), "targets": np.zeros(count, int)}

    task = make_task(TOKENS | {"sample": sample})
    task.train_batch(0, 0, 0, 4, 0)
    assert "training sequences of 6 steps with mask or resets: expected 5" in line_of(
        task.train_batch, 0, 1, 0, 4, 0
    )


def test_time_is_the_first_axis_and_a_target_of_a_sequence_is_at_its_last_step():
    task = make_task(TOKENS, targets=np.arange, slices={"class": np.arange(3)})
    batch = task.held_out("test", 3)
    assert batch.inputs.shape == batch.targets.shape == (5, 3)
    assert batch.targets[-1].tolist() == [0, 1, 2]
    assert batch.weights.tolist() == [[0.0] * 3] * 4 + [[1.0] * 3]
    assert batch.slices["class"].tolist() == [[0, 1, 2]] * 5
    assert not make_task(TOKENS, targets=np.arange).spec.is_dense
    assert make_task(TOKENS).spec.is_token_stream


def test_values_without_a_target_may_be_anything():
    mask = np.array([[1, 0, 1, 0, 1]] * 3)
    targets = np.where(mask, 2, -100)
    assert make_task(TOKENS, targets=targets, mask=mask).held_out("test", 3).targets.max() == 2
    numbers = np.where(mask, 2.0, np.nan)
    assert make_task(NUMBERS, targets=numbers, mask=mask).held_out("test", 3).targets.max() == 2


def test_numbers_are_standardized_by_the_training_alone():
    def sample(self, split, rng, count):
        numbers = rng.normal(*((5, 2) if split == "train" else (1000, 50)), (count, 5))
        constant = np.full((count, 5), 0.1)
        mask = np.ones((count, 5))
        targets = np.where(rng.random((count, 5)) < 0.5, 10 * numbers, np.nan)
        mask[np.isnan(targets)] = 0
        inputs = np.stack((numbers, constant, 1e9 - numbers), 2)
        return {"inputs": inputs, "targets": targets, "mask": mask}

    task = make_task(NUMBERS | {"standardize": True, "sample": sample})
    train, test = task.train_batch(0, 0, 0, 500, 0), task.held_out("test", 50)
    assert train.inputs.mean((0, 1)) == pytest.approx([0, 0, 0], abs=0.1)
    assert train.inputs.std((0, 1)) == pytest.approx([1, 0, 1], abs=0.1)
    assert train.inputs.dtype == train.targets.dtype == np.float32
    scored = train.targets[train.weights > 0]
    assert (scored.mean(), scored.std()) == pytest.approx((0, 1), abs=0.1)
    assert test.inputs[..., 0].mean() == pytest.approx((1000 - 5) / 2, rel=0.05)
    in_units = task.to_units(test.targets)[test.weights > 0]
    assert in_units.mean() == pytest.approx(10_000, rel=0.01)
    own = make_task(NUMBERS | {"standardize": True, "loss": lambda self, outputs, targets: outputs})
    assert own.train_batch(0, 0, 0, 2, 0).targets.dtype == np.float32
    as_tensor = task.to_units(torch.from_numpy(test.targets)).numpy()[test.weights > 0]
    assert as_tensor == pytest.approx(in_units)


# ---------------------------------------------------------------- built-in tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    time = np.arange(200)
    table = np.column_stack((time, np.sin(time / 5), 1000 + time % 7))
    header = "time,wind,load"
    np.savetxt(folder / "series.csv", table, "%.6f", ",", header=header, comments="")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6, 2)), rng.integers(3, size=60)
    np.savez(folder / "sequences.npz", x=x, y=y, lengths=rng.integers(1, 7, 60))
    return folder


SOURCES = [
    "copy:4",
    "adding:6",
    "parity",
    "selective_copy",
    "induction",
    "mqar",
    "words:S3",
    "digits",
    "mnist1d",
    "series:series.csv",
    "sequences:sequences.npz",
]


@pytest.mark.parametrize("source", SOURCES)
def test_batch_is_a_function_of_split_seed_index_and_replicate(source, folder):
    # Their import draws random numbers.
    importlib.import_module("sklearn.datasets")
    importlib.import_module("mnist1d.data")
    states = random.getstate(), np.random.get_state()[1].tolist()
    task = built_in(source, folder)
    keys = [(1, 2, 0), (1, 2, 1), (1, 3, 0), (2, 2, 0)]
    batches = [task.train_batch(*key, 4, 0) for key in keys]
    held_out = task.held_out("test", 20)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert len({batch.inputs.tobytes() for batch in batches}) == len(keys)
    again = built_in(source, folder)
    assert again.summarize_held_out(20) == task.summarize_held_out(20)
    for batch, repeated in [
        (batches[2], again.train_batch(*keys[2], 4, 0)),
        (held_out, again.held_out("test", 20)),
    ]:
        for part, other in zip(batch[:4], repeated[:4], strict=True):
            np.testing.assert_array_equal(part, other)
        assert batch.slices.keys() == held_out.slices.keys()


@pytest.mark.parametrize("source", ["digits", "mnist1d", "sequences:sequences.npz"])
def test_splits_of_stored_sequences_share_none_and_leave_none_out(source, folder):
    task = built_in(source, folder)
    batches = [task.train_batch(0, 0, 0, 500, 0), *(task.held_out(name, 1) for name in SPLITS[1:])]
    train, validation, test = (set(map(bytes, batch.inputs.swapaxes(0, 1))) for batch in batches)
    assert not train & validation
    assert not (train | validation) & test
    rows = [task.definition._rows[split].tolist() for split in SPLITS]
    assert list(map(len, rows[1:])) == [batch.inputs.shape[1] for batch in batches[1:]]
    assert sorted(itertools.chain(*rows)) == list(range(sum(map(len, rows))))


@pytest.mark.parametrize(("source", "needs_input"), [
    ("words:S3", True),
    ("parity", True),
    ("mqar", True),
    ("copy:5", False),
    ("induction", False),
    ("adding:10", False),
    ("digits", False),
])  # fmt: skip
def test_target_needs_the_input_of_its_step_or_an_earlier_one(source, needs_input, folder):
    assert built_in(source, folder).needs_input is needs_input


def test_padded_task_needs_its_input_unless_its_definition_denies_it():
    mask = {"mask": lambda count: np.arange(5) < np.full((count, 1), 3)}
    assert make_task(TOKENS | {"classes": 4}, **mask).needs_input
    assert not make_task(TOKENS | {"classes": 4, "needs_input": False}, **mask).needs_input


def test_batch_without_a_target_is_refused():
    task = make_task(TOKENS | {"classes": 4}, mask=lambda count: np.zeros((count, 5)))
    assert "draws no target in training batch 0" in line_of(task.train_batch, 0, 0, 0, 4, 0)


def test_copy_recalls_the_symbols_in_their_order():
    batch = built_in("copy:4", items=3, symbols=5).train_batch(0, 0, 0, 20, 0)
    assert batch.inputs.shape == (3 + 4 + 3, 20)
    assert batch.inputs[3:].tolist() == [[n] * 20 for n in (5, 5, 5, 6, 5, 5, 5)]
    np.testing.assert_array_equal(batch.targets[7:], batch.inputs[:3])
    assert batch.mask.sum(1).tolist() == [0] * 7 + [20] * 3
    assert batch.slices["position"][7:, 0].tolist() == [0, 1, 2]


def test_adding_adds_the_marked_numbers_of_both_halves():
    batch = built_in("adding:7").train_batch(0, 0, 0, 200, 0)
    numbers, marks = batch.inputs[..., 0], batch.inputs[..., 1]
    assert marks[:3].sum(0).tolist() == marks[3:].sum(0).tolist() == [1] * 200
    assert set(marks.argmax(0)) == {0, 1, 2}
    np.testing.assert_allclose(batch.targets[-1, :, 0], (numbers * marks).sum(0), rtol=1e-6)
    assert batch.mask.sum(1).tolist() == [0] * 6 + [200]


def test_parity_is_that_of_the_bits_up_to_the_target():
    task = built_in("parity", length=5)
    for batch, lengths in [
        (task.train_batch(0, 0, 0, 100, 0), {1, 2, 3, 4, 5}),
        (task.held_out("validation", 100), {1, 2, 3, 4, 5}),
        (task.held_out("test", 100, 10), {10}),
    ]:
        last = batch.mask.argmax(0)
        assert set(last + 1) == lengths
        for stream, bits in enumerate(batch.inputs.T):
            assert batch.targets[last[stream], stream] == bits[: last[stream] + 1].sum() % 2
    assert task.eval_lengths == [10, 20]


def test_selective_copy_recalls_scattered_symbols_in_their_order():
    task = built_in("selective_copy", length=9, items=3, symbols=5)
    batch = task.train_batch(0, 0, 0, 200, 0)
    first = set()
    for stream, tokens in enumerate(batch.inputs.T):
        assert tokens[6:].tolist() == [6, 6, 6]
        places = np.flatnonzero(tokens[:6] < 5)
        first.add(int(places[0]))
        assert batch.targets[6:, stream].tolist() == tokens[places].tolist()
        assert set(np.delete(tokens[:6], places)) == {5}
    assert first == {0, 1, 2, 3}
    assert batch.mask.sum(1).tolist() == [0] * 6 + [200] * 3
    assert batch.slices["position"][6:, 0].tolist() == [0, 1, 2]
    assert (task.spec.inputs, task.spec.outputs) == (7, 5)


def test_induction_asks_for_the_token_behind_the_special_one():
    task = built_in("induction", length=8, vocabulary=5)
    assert task.eval_lengths == [16, 32]
    for steps, batch in [
        (8, task.train_batch(0, 0, 0, 300, 0)),
        (16, task.held_out("validation", 300, 16)),
    ]:
        places = set()
        for stream, tokens in enumerate(batch.inputs.T):
            place, last = np.flatnonzero(tokens == 4)
            places.add(int(place))
            assert last == steps - 1
            assert batch.targets[-1, stream] == tokens[place + 1]
            distance = int(last - place)
            assert batch.slices["distance"][-1, stream] == 2 ** (distance.bit_length() - 1)
        assert places == set(range(steps - 2))
        assert batch.weights.sum(1).tolist() == [0] * (steps - 1) + [300]


def test_associative_recall_asks_for_the_value_of_each_key_once():
    batch = built_in("mqar", pairs=4, length=20, vocabulary=12).train_batch(0, 0, 0, 50, 0)
    distances = set()
    for stream, tokens in enumerate(batch.inputs.T):
        values = dict(zip(tokens[:8:2], tokens[1:8:2], strict=True))
        assert len(set(values.values())) == 4
        assert 0 < min(values) <= max(values) < 6 <= min(values.values())
        queries = np.flatnonzero(batch.mask[:, stream])
        assert set(tokens[queries]) == set(values)
        assert set(np.delete(tokens[8:], queries - 8)) == {0}
        for query in queries:
            assert batch.targets[query, stream] == values[tokens[query]]
            distance = query - tokens[:8].tolist().index(tokens[query])
            assert batch.slices["distance"][query, stream] == 2 ** (int(distance).bit_length() - 1)
            distances.add(distance)
    assert min(distances) == 2
    assert max(distances) == 18


def test_associative_recall_has_the_settings_of_zoology():
    """Drawing distinct tokens of many must be as uniform as drawing them of few."""
    batch = built_in("mqar", pairs=16, length=256, vocabulary=8192).train_batch(0, 0, 0, 200, 0)
    pairs = batch.inputs[:32].T
    for start, stop, tokens in ((1, 4096, pairs[:, ::2]), (4096, 8192, pairs[:, 1::2])):
        assert all(len(set(row)) == 16 for row in tokens.tolist())
        assert start <= tokens.min() < start + 20
        assert stop - 20 < tokens.max() < stop
        assert tokens.mean() == pytest.approx((start + stop) / 2, abs=100)
    shares = batch.mask[32::2].mean(1)  # of the sequences with a query at each place
    assert 1 > shares[0] > shares[2] > shares[5] > shares[10] > shares[20]
    assert shares[0] > 0.9
    assert 0.02 < shares[100:].mean() < 0.06
    assert not batch.mask[33::2].any()


def test_associative_recall_may_have_noise_between_the_queries():
    quiet, noisy = (
        built_in("mqar", vocabulary=30, noise=noise).held_out("test", 20) for noise in (False, True)
    )
    is_blank = quiet.inputs == 0
    np.testing.assert_array_equal(quiet.inputs[~is_blank], noisy.inputs[~is_blank])
    np.testing.assert_array_equal(quiet.mask, noisy.mask)
    assert set(noisy.inputs[is_blank]) == set(range(30))


def test_words_are_products_of_the_elements_of_a_group():
    # In the drawing, permutations are numbered in the order of their digits: 213 is number 2.
    numbers = {"123": 0, "132": 1, "213": 2, "231": 3, "312": 4, "321": 5}
    products = built_in("words:S3").definition._products
    state = numbers["213"]
    for read, order in (("132", "231"), ("321", "132"), ("213", "312")):
        state = products[state, numbers[read]]
        assert state == numbers[order]
    for group, size in (("S3", 6), ("A5", 60)):
        task = built_in(f"words:{group}", length=12)
        assert (task.spec.inputs, task.spec.outputs, task.eval_lengths) == (size, size, [24, 48])
        products = task.definition._products
        # Associative, with an inverse of each element, and not commutative.
        np.testing.assert_array_equal(products[products], products[:, products])
        assert (np.sort(products) == np.arange(size)).all()
        assert (products != products.T).any()
        batch = task.held_out("test", 5, 24)
        states = batch.targets[0]
        np.testing.assert_array_equal(states, batch.inputs[0])
        for read, state in zip(batch.inputs[1:], batch.targets[1:], strict=True):
            states = products[states, read]
            np.testing.assert_array_equal(states, state)


def test_class_is_the_slice_of_an_image():
    task = built_in("digits", pixelwise=True)
    batch = task.held_out("test", 1)
    assert batch.inputs.shape == (64, 360, 1)
    assert set(batch.targets[-1]) == set(range(10))
    np.testing.assert_array_equal(batch.slices["class"][-1], batch.targets[-1])


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    line = line_of(datasets._make_mnist1d.__wrapped__)
    assert "install it with pip install 'rnn-search[mnist1d]'" in line


def test_metrics_are_of_each_target():
    outputs = torch.tensor([[[0.1, 0.9], [0.7, 0.3]]])
    accuracy = make_task(TOKENS).measure("accuracy", outputs, torch.tensor([1, 1]))
    assert accuracy.tolist() == [[1, 0]]
    errors = make_task(NUMBERS | {"output_size": 2}).measure("mae", outputs, torch.zeros(2, 2))
    assert errors.flatten().tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("source", "options", "line"),
    [
        ("copy:0", {}, "delay = 0: expected 1 to 100000"),
        ("copy:4", {"symbols": 1}, "symbols = 1: expected 2 to 1000"),
        ("adding:1", {}, "length = 1: expected 2 to 100000"),
        ("mqar", {"pairs": 20}, "length = 64: expected 80 to 100000"),
        ("mqar", {"vocabulary": 17}, "vocabulary = 17: expected 18 to 65536"),
        ("selective_copy", {"length": 11}, "length = 11: expected 12 to 100000"),
        ("selective_copy", {"symbols": 1}, "symbols = 1: expected 2 to 1000"),
        ("selective-copy", {}, "did you mean selective_copy? expected text"),
        ("induction", {"length": 2}, "length = 2: expected 3 to 100000"),
        ("induction", {"vocabulary": 2}, "vocabulary = 2: expected 3 to 65536"),
        ("series:series.csv", {"warmup": 100}, "warmup = 100: expected -1 to 99"),
        ("copy:D", {}, "task 'copy:D': expected a whole number after the colon"),
        ("mqar:8", {}, """expected options by their names, as in { source = "mqar", pairs = … }"""),
        ("words:S4", {}, "task 'words:S4': expected S3 or A5 after the colon"),
        ("words:A5", {"length": 11}, "length = 11: expected 12 to 100000"),
        ("coppy:4", {}, "did you mean copy:D? expected text, copy:D, adding:T, parity"),
        (
            "my_task.py",
            {},
            "adding:T, parity, selective_copy, induction, mqar, words:G, digits, mnist1d, series",
        ),
        ("series:none.csv", {}, "task 'series:none.csv' not found: expected a file /"),
    ],
)
def test_unknown_task_or_invalid_option_is_refused(source, options, line, folder):
    assert line in line_of(built_in, source, folder, **options)


def test_class_of_a_user_is_not_built_in(folder):
    for source in ("my task.py:Adding", "package.module:Adding", "module:Adding"):
        assert find_built_in(source, folder) is None


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("length", "horizon", "warmup"), [(7, 1, 0), (7, 3, 2), (30, 5, 29), (8, 1, 3)]
)
def test_each_held_out_line_is_predicted_once_from_the_lines_before(
    length, horizon, warmup, folder
):
    options = {"length": length, "horizon": horizon, "warmup": warmup}
    task = built_in("series:series.csv", folder, targets="wind,time", **options)
    assert task.output_names == ["wind", "time"]
    assert task.persistence == [1, 0]
    for split, lines in [("validation", range(160, 180)), ("test", range(180, 200))]:
        batch = task.held_out(split, 1)
        is_scored = batch.weights.T > 0  # (B, T): windows in their order
        times = task.to_units(batch.targets)[..., 1].T[is_scored]
        assert times.round().astype(int).tolist() == list(lines)
        scaling = task.input_scaling
        read = (batch.inputs * scaling.std + scaling.mean)[..., 0].T
        assert (times - read[is_scored]).round().tolist() == [horizon] * 20
        assert (np.diff(read.ravel()).round()[: len(lines)] == 1).all(), "no line is read twice"
        assert is_scored.ravel()[:warmup].sum() == 0
    train = task.train_batch(0, 0, 0, 2000, 0)
    times = task.to_units(train.targets)[..., 1][train.weights > 0].round()
    assert (times.min(), times.max()) == (horizon + warmup, 159)
    assert task.input_scaling.mean[0] < 90


def test_a_tenth_of_a_window_warms_up_in_training(folder):
    task = built_in("series:series.csv", folder, length=30)
    assert task.train_batch(0, 0, 0, 5, 0).weights.T.argmax(1).tolist() == [3] * 5


def test_columns_of_times_are_left_out_with_a_notice(tmp_path):
    times = ["2024-01-02 03:00:00", "2.1.2024", "1/2/24", "2024-01-02T03:00Z", "03:00"]
    for number, time in enumerate(times):
        file = tmp_path / f"{number}.csv"
        file.write_text("date,wind,load\n" + f"{time},1.5,3\n" * 150)
        task = built_in(f"series:{number}.csv", tmp_path)
        assert task.output_names == ["wind", "load"]
        assert task.notices == [f"column 'date' of {file} has times: it is left out"]
        assert "column 'date': '" in line_of(
            built_in, f"series:{number}.csv", tmp_path, columns="date"
        )
    file.write_text("date\n" + "2024-01-02\n" * 150)
    assert "has no column but ['date']" in line_of(built_in, f"series:{number}.csv", tmp_path)


CSV = "time,wind,load\n2020,1.5,3\n2021,2.5,4\n"


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("", {}, "line 1: []: expected the names of the columns"),
        ("1,2\n3,4\n", {}, "line 1: ['1', '2']: expected the names of the columns"),
        (CSV + "2022,calm,5\n", {}, "line 4, column 'wind': 'calm': expected a finite number"),
        (CSV + "2022,nan,5\n", {}, "line 4, column 'wind': 'nan': expected a finite number"),
        (CSV + "\n2022,1\n", {}, "line 5: 2 values: expected 3"),
        (CSV + '2022,"1,2\n', {}, "cannot be read (unexpected end of data)"),
        (
            CSV,
            {"columns": "wind, lod"},
            "column 'lod': its columns are ['time', 'wind', 'load']",
        ),
        (CSV, {"columns": "wind", "targets": "load"}, "no column 'load': its columns are ['wind']"),
        ("a,a\n1,2\n", {}, "more than one column 'a'"),
        (CSV, {}, "has 2 lines of numbers: expected 101 or more in the first 80%"),
        (CSV, {"length": 1}, "has 2 lines of numbers: expected 2 or more in the first 80%"),
        ("a;b\n1;2\n", {}, "line 2, column 'a;b': '1;2'"),
        ("ä", {}, "can't decode byte 0xe4 in position 0"),
    ],
)
def test_line_and_column_of_a_bad_series_are_given(text, options, line, tmp_path):
    (tmp_path / "bad.csv").write_bytes(text.encode("latin-1"))
    refused = line_of(built_in, "series:bad.csv", tmp_path, **options)
    assert refused.startswith(str(tmp_path / "bad.csv"))
    assert line in refused


def test_columns_and_separator_of_a_series(tmp_path):
    rows = "".join(f"{n};2020-01-{n:02}; {10 * n}\n" for n in range(1, 31))
    (tmp_path / "spread.csv").write_text("\ufeffa b;day;c\n" + rows + "\n", "utf-8")
    task = built_in("series:spread.csv", tmp_path, columns="c, a b", separator=";", length=4)
    assert task.output_names == ["c", "a b"]
    units = task.to_units(task.held_out("test", 1).targets)
    assert units[:3, 0].round().tolist() == [[280, 28], [290, 29], [300, 30]]


X, STEPS = np.zeros((20, 4, 2)), np.zeros((20, 4))


def save(path, x, y, **arrays):
    np.savez(path, x=x, y=y, **arrays)


@pytest.mark.parametrize(
    ("x", "y", "dense", "sizes"),
    [
        (STEPS.astype(np.uint8) + 6, STEPS.astype(int), True, (7, 1, True, True)),
        (STEPS.astype(bool), np.arange(20), False, (1, 20, True, True)),
        (STEPS, STEPS > 0, True, (1, 1, False, True)),
        (X, np.arange(20.0), False, (2, 1, False, False)),
        (X.astype(int), np.zeros((20, 3)), False, (2, 3, False, False)),
        (X, STEPS, True, (2, 1, False, False)),
        (X, X, True, (2, 2, False, False)),
    ],
)
def test_shapes_and_types_of_arrays_tell_what_is_predicted(x, y, dense, sizes, tmp_path):
    save(tmp_path / "a.npz", x, y)
    task = built_in("sequences:a.npz", tmp_path)
    spec = task.spec
    assert (spec.inputs, spec.outputs, spec.reads_tokens, spec.predicts_classes) == sizes
    assert spec.is_dense == dense
    assert task.metrics == ({"accuracy": "maximize"} if sizes[3] else {"mae": "minimize"})
    assert [task.held_out(split, 1).inputs.shape[1] for split in SPLITS[1:]] == [2, 2]


def test_lengths_mask_and_split_of_sequences(tmp_path):
    lengths = np.arange(20) % 4 + 1
    padding = np.arange(4) >= lengths[:, None]
    x = np.where(padding, np.nan, np.arange(20)[:, None] + np.arange(4))
    split = np.arange(20) % 3
    save(tmp_path / "whole.npz", x, np.arange(20.0), lengths=lengths, split=split)
    task = built_in("sequences:whole.npz", tmp_path)
    batch = task.held_out("test", 1)
    rows = np.flatnonzero(split == 2)
    assert (batch.mask.argmax(0) + 1).tolist() == lengths[rows].tolist()
    assert batch.mask.sum() == len(rows)
    targets = task.to_units(batch.targets)[..., 0]
    assert targets.T[batch.mask.T > 0] == pytest.approx(rows)

    weights = np.where(np.arange(4) == 1, 0.5, 1)
    y = np.where(padding | (np.arange(4) == 0), -100, 1)
    mask = np.where(np.arange(4) == 0, 0, np.broadcast_to(weights, (20, 4)))
    save(tmp_path / "steps.npz", x, y, lengths=lengths, mask=mask, split=split)
    batch = built_in("sequences:steps.npz", tmp_path).held_out("validation", 1)
    expected = np.where(padding, 0, mask)[split == 1]
    assert batch.mask.T.tolist() == expected.tolist()
    assert batch.targets.T.tolist() == (expected > 0).astype(int).tolist()


LABELS = np.zeros(20, int)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"x": X}, "has the arrays x: expected x and y"),
        (
            {"x": X, "y": LABELS, "lenghts": LABELS},
            "the arrays x, y, lenghts: expected x and y",
        ),
        ({"x": np.zeros(20), "y": LABELS}, "x has shape (20,) and dtype float64: expected (N, T)"),
        ({"x": X, "y": LABELS[1:]}, "y has shape (19,) and dtype int64: expected numbers of 20"),
        ({"x": X, "y": np.full(20, "a")}, "y has shape (20,) and dtype <U1: expected numbers"),
        ({"x": X, "y": np.zeros((20, 3), int)}, "expected (N,) or (N, 4) of integers"),
        ({"x": X, "y": np.full(20, None)}, "cannot be read (Object arrays cannot be loaded"),
        ({"x": X, "y": LABELS, "mask": STEPS}, "expected (N, 4, …), as there is an array mask"),
        ({"x": X, "y": STEPS, "mask": X}, "mask has shape (20, 4, 2)"),
        ({"x": X, "y": STEPS, "lengths": STEPS}, "lengths has shape (20, 4)"),
        ({"x": X, "y": LABELS, "lengths": LABELS}, "lengths[0] is 0: expected 1 to 4"),
        ({"x": X, "y": LABELS, "split": LABELS - 1}, "split[0] is -1: expected 0, 1 or 2"),
        ({"x": X[:4], "y": LABELS[:4]}, "no sequence for validation"),
        ({"x": X, "y": LABELS - 1}, "y[0] is -1: expected 0 to 99999"),
        ({"x": STEPS.astype(int) + 10**6, "y": LABELS}, "x[0, 0] is 1000000: expected 0 to 99999"),
        ({"x": np.where(np.arange(2), np.nan, X), "y": LABELS}, "x[0, 0, 1] is nan"),
        ({"x": X, "y": np.where(np.arange(4) == 2, np.inf, STEPS)}, "y[0, 2] is inf"),
    ],
)
def test_array_and_index_of_bad_sequences_are_given(arrays, line, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    refused = line_of(built_in, "sequences:bad.npz", tmp_path)
    assert refused.startswith(str(tmp_path / "bad.npz"))
    assert line in refused


def test_damaged_archive_is_refused_and_nothing_in_it_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    np.savez(tmp_path / "a.npz", x=X, y=np.array([Trap()], object))
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, X)
    for name in ("a", "b"):
        refused = line_of(built_in, f"sequences:{name}.npz", tmp_path)
        assert "cannot be read (" in refused
        assert "expected an NPZ file without pickled objects" in refused
    assert not (tmp_path / "executed").exists()
