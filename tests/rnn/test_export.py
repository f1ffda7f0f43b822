"""Trained networks outside of a study: model files, text generation and standalone folders."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import extract, make_model
from user_cells import cell_config, source_of

from rnn.autograd import AutogradStack
from rnn.config import GatedOptions, NetworkConfig, TrialConfig
from rnn.errors import CellError, TaskError, UserError
from rnn.export import (
    SavedModel,
    build_trained_module,
    deserialize_model,
    export_files,
    generate,
    serialize_model,
)
from rnn.tasks.sequence_task import SequenceTask
from rnn.tasks.tokenizer import load_tokenizer, train_tokenizer

TEXT = b"the cat, the h\xc3\xa4t; that\n    cat and that hat 123 == 12"
BYTES, BPE = load_tokenizer(None), train_tokenizer("bpe:280", np.frombuffer(TEXT * 9, np.uint8))
GATED = GatedOptions(True, False, True, False, True, "both", "candidate").network(2, 4)
LSTM = NetworkConfig("lstm", 2, 4)
CANDIDATE = GatedOptions(False, True, False, True, False, "new", "candidate").network(1, 4)
OWN = cell_config("Everything", 2, 4, scale=0.25)
METADATA = {"study": "quick", "trial": "3", "note": "\u201ewörtlich\u201c\n"}


class Forecast:
    """Numbers in units of their own: 3 are read and 2 predicted."""

    input_size, output_size, standardize, output_names = 3, 2, True, ["wind", "rain"]

    def sample(self, split, rng, count):
        numbers = np.random.default_rng(len(split)).normal((5, 70, -3), (1, 20, 4), (count, 7, 3))
        return {"inputs": numbers, "targets": numbers[..., :2]}


class Labels:
    """Tokens, and one class of each sequence."""

    vocabulary, classes = 9, 4

    def sample(self, split, rng, count):
        tokens = np.random.default_rng(len(split)).integers(9, size=(count, 6))
        return {"inputs": tokens, "targets": tokens[:, 0] % 4}


class Ranks(Labels):
    """The same with a loss of its own, which reads no logits."""

    def loss(self, outputs, targets):
        return outputs.square().sum(1)


TASKS = {
    "forecast": (GATED, SequenceTask(Forecast(), "weather.csv")),
    "labels": (LSTM, SequenceTask(Labels(), "Labels")),
    "own loss": (OWN, SequenceTask(Ranks(), "Ranks"), "fp64"),
}


READ = {
    "forecast": "numbers (T, 3) or (N, T, 3) in the units of the data",
    "labels": "(T,) or (N, T) from 0 to 8",
    "own loss": "(T,) or (N, T) from 0 to 8",
}


def make_task_model(architecture, task, precision="fp32") -> tuple[SavedModel, AutogradStack]:
    """Return a network with initial weights as if it were trained, and its engine."""
    engine = AutogradStack([TrialConfig(architecture)], 7, precision, task.spec)
    return SavedModel(architecture, extract(engine), task.save(), precision, METADATA), engine


# ------------------------------------------------------------------ model files

CONTENT = serialize_model(make_model(GATED, BPE, **METADATA))


def assert_refused(content: bytes, message: str) -> None:
    with pytest.raises((UserError), match=message) as refused:
        deserialize_model(content)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def with_header(content: bytes = CONTENT, **metadata: object) -> bytes:
    """Return a file with other metadata in its header; None removes a key."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    found = header["__metadata__"] | metadata
    header["__metadata__"] = {key: value for key, value in found.items() if value is not None}
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


@pytest.mark.parametrize(
    ("architecture", "tokenizer"),
    [(GATED, BYTES), (LSTM, BPE), (OWN, BPE)],
    ids=["gated", "lstm", "own"],
)
def test_model_is_read_as_it_was_written_and_executes_nothing(architecture, tokenizer, monkeypatch):
    model = make_model(architecture, tokenizer, **METADATA)
    content = serialize_model(model)
    for name in ("load_class", "_execute"):
        monkeypatch.setattr(f"rnn.own_code.{name}", lambda *_: pytest.fail("executed"))
    monkeypatch.setattr("rnn.own_code._loaded", {})
    restored = deserialize_model(content)
    assert restored.architecture == architecture
    assert restored.cell_source == (source_of("Everything") if architecture == OWN else None)
    assert (restored.precision, restored.metadata) == ("bf16", METADATA)
    assert restored.tokenizer.size == tokenizer.size
    assert restored.tokenizer.serialized == tokenizer.serialized
    assert restored.weights.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        assert torch.equal(restored.weights[name], weight)


@pytest.mark.parametrize("name", TASKS)
def test_model_of_a_task_is_read_as_it_was_written_and_predicts_no_text(name):
    model, _ = make_task_model(*TASKS[name])
    restored = deserialize_model(serialize_model(model))
    assert restored.task == model.task
    for name, weight in model.weights.items():
        assert torch.equal(restored.weights[name], weight)
    with pytest.raises(TaskError, match=f"networks of task '{model.task.name}' predict no text"):
        generate(restored)


def with_architecture(**fields: object) -> bytes:
    return with_header(architecture=json.dumps(asdict(GATED) | fields))


def with_task(**fields: object) -> bytes:
    return with_header(task=json.dumps(asdict(TASKS["forecast"][1].save()) | fields))


@pytest.mark.parametrize(
    "content",
    [
        with_header(task=None),
        with_task(output_names=3),
        b"",
        CONTENT[:-1],
        b"\x80\x04K\x01.",  # of another program
        with_header(format_version="2"),
        with_header(precision="fp8"),
        with_header(metadata="{"),
        with_header(architecture='{"cell": "tree", "layers": 1, "state_size": 4}'),
        with_header(architecture='{"cell": "lstm", "layers": 1, "state_size": 4, "options": [3]}'),
        with_architecture(options=[]),
    ],
    ids=lambda content: f"{len(content)} bytes",  # the order of metadata varies
)
def test_damaged_model_is_refused_in_one_line(content):
    assert_refused(content, "cannot be read")


@pytest.mark.parametrize("content", [with_architecture(layers=1), with_task()])
def test_weights_of_another_network_are_refused(content):
    build_trained_module(deserialize_model(CONTENT))
    with pytest.raises(CellError, match="does not match the weights of the model") as refused:
        build_trained_module(deserialize_model(content))
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------ generated text


MODEL = make_model(GATED, BYTES, scale=8.0)


def predict(model: SavedModel, tokens: list[int]) -> torch.Tensor:
    """Return the logits after all tokens (V,), read from the start."""
    logits, _ = build_trained_module(model)(torch.tensor(tokens)[:, None])
    return logits[-1, 0].detach()


def encode(tokenizer, text: bytes) -> list[int]:
    return tokenizer.encode(np.frombuffer(text, np.uint8)).tolist()


@pytest.mark.parametrize(
    "model",
    [MODEL, *(make_model(each, BPE, scale=8.0) for each in (GATED, LSTM, OWN))],
    ids=["bytes", "bpe", "lstm", "own cell"],
)
@pytest.mark.parametrize("prompt", [b"the cat", b""])
def test_greedy_generation_takes_the_most_likely_tokens(model, prompt):
    tokens = encode(model.tokenizer, prompt or b"\n")
    prompt_length = len(tokens)
    for _ in range(8):
        tokens.append(int(predict(model, tokens).argmax()))
    expected = model.tokenizer.decode(tokens[prompt_length:])
    assert generate(model, prompt, length=8, temperature=0) == expected
    assert generate(model, prompt, length=8, temperature=1e-320) == expected
    assert generate(model, prompt, length=8, top_k=1) == expected


def test_tokens_are_sampled_with_their_probabilities():
    model = MODEL
    logits = predict(model, encode(BYTES, b"a"))
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        kept = logits if top_k is None else logits.topk(top_k).values
        p = torch.softmax(logits[logits >= kept.min()] / temperature, 0).max().item()
        samples = [generate(model, b"a", 1, temperature, top_k, seed)[0] for seed in range(80)]
        share = samples.count(int(logits.argmax())) / 80
        assert abs(share - p) < 4 * (p * (1 - p) / 80) ** 0.5
        if top_k:
            assert set(samples) == set(logits.topk(top_k).indices.tolist())


def test_generation_repeats_for_a_seed():
    model = make_model(GATED, BPE)
    texts = [generate(model, b"the", length=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(generate(model, b"the", length=10, seed=1))


def test_cell_of_a_saved_model_is_loaded_to_generate(monkeypatch):
    model = make_model(OWN, BYTES)
    expected = generate(model, length=20)
    monkeypatch.setattr("rnn.own_code._loaded", {})
    restored = deserialize_model(serialize_model(model))
    assert generate(restored, length=20) == expected
    weights = restored.weights | {"layers.0.start": torch.zeros(3)}
    with pytest.raises(CellError, match=r"not match the weights.* layers\.0\.start") as refused:
        generate(replace(restored, weights=weights))
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------ standalone folders

NAMED_NETWORK = """
class Network(nn.GRUCell):
    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__(input_size, state_size)

    def forward(self, x, state):
        state = super().forward(x, state)
        return state, state
"""
"""A cell that has the name of the generated class."""

NETWORKS = {
    "gated": (GatedOptions(True, True, True, True, True, "both").network(2, 4), BYTES),
    "candidate": (CANDIDATE, BPE),
    "lstm": (LSTM, BPE, "fp64"),
    "example": (cell_config("LayerNormGRU", 2, 4, norm="gates"), BPE),
    "everything": (OWN, BPE),
    "scan": (cell_config("MinGRU", 2, 4), BPE),
    "same name": (cell_config("Network", 1, 4, text=NAMED_NETWORK), BYTES),
}

USER = """
import contextlib, json, pathlib, runpy, sys

import torch

texts, tasks = (argument.split() for argument in sys.argv[1:])
for folder in texts:
    text = pathlib.Path(folder, "text").read_bytes()
    sys.path.insert(0, folder)
    for prompt in ([], [""], ["the cat"]):
        sys.argv = ["run.py", *prompt]
        runpy.run_path(f"{folder}/run.py", run_name="__main__")
    from bpe import BPE
    from network import Network
    tokenizer = BPE(json.loads(pathlib.Path(folder, "task.json").read_text())["merges"])
    network, tokens = Network(), list(tokenizer.encode(text))
    network.load_state_dict(torch.load(pathlib.Path(folder, "weights.pt"), weights_only=True))
    logits, _ = network(torch.tensor(tokens)[:, None])
    text = tokenizer.decode(tokens).hex()
    result = {"tokens": tokens, "logits": logits[:, 0].tolist(), "text": text}
    pathlib.Path(folder, "result").write_text(json.dumps(result))
    for name in ("network", "bpe", "cell", "rnn_search"):
        sys.modules.pop(name, None)
    sys.path.pop(0)
for folder in tasks:
    sys.path.insert(0, folder)
    for files in (["inputs", "outputs"], ["one", "of one"], ["inputs"], ["wrong"]):
        sys.argv = ["run.py", *(f"{folder}/{file}.npy" for file in files)]
        with open(f"{folder}/printed", "a") as printed, contextlib.redirect_stdout(printed):
            try:
                runpy.run_path(f"{folder}/run.py", run_name="__main__")
            except SystemExit as error:
                print(error)
    for name in ("network", "cell"):
        sys.modules.pop(name, None)
    sys.path.pop(0)
assert not {"rnn", "safetensors", "tokenizers", "pydantic"} & {*sys.modules}
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    """Folder of each export, run by a process that cannot import the project."""
    folders = {
        name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in (*NETWORKS, *TASKS)
    }
    for name, folder in folders.items():
        if name in TASKS:
            files = export_files(make_task_model(*TASKS[name])[0])
            inputs = TASKS[name][1].definition.sample("validation", None, 5)["inputs"]
            arrays = {"inputs": inputs, "one": inputs[2], "wrong": inputs / 0.5 + np.nan}
            for file, array in arrays.items():
                np.save(folder / f"{file}.npy", array)
        else:
            files = export_files(make_model(*NETWORKS[name], study="quick | {x}")) | {"text": TEXT}
        for file, content in files.items():
            (folder / file).write_bytes(content)
    texts = " ".join(str(folders[name]) for name in NETWORKS)
    tasks = " ".join(str(folders[name]) for name in TASKS)
    done = subprocess.run(
        [sys.executable, "-c", USER, texts, tasks],
        cwd=folders["gated"],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"the cat") >= len(NETWORKS)
    return folders


@pytest.mark.parametrize("name", NETWORKS)
def test_export_computes_the_same_logits(exports, name):
    model = make_model(*NETWORKS[name])
    result = json.loads((exports[name] / "result").read_text())
    tokens = model.tokenizer.encode(np.frombuffer(TEXT, np.uint8)).tolist()
    assert result["tokens"] == tokens
    assert bytes.fromhex(result["text"]) == TEXT

    module = build_trained_module(model)
    expected, _ = module(torch.tensor(tokens)[:, None])
    assert expected.dtype == (torch.float64 if model.precision == "fp64" else torch.float32)
    logits = torch.tensor(result["logits"])
    torch.testing.assert_close(logits, expected[:, 0].float(), rtol=1e-5, atol=1e-5)
    assert not module.training


@pytest.mark.parametrize("name", TASKS)
def test_export_of_a_task_predicts_what_the_engine_does_in_units_of_the_data(exports, name):
    _, task, *_ = TASKS[name]
    _, engine = make_task_model(*TASKS[name])
    batch = task.held_out("validation", 5)
    inputs, states, expected = torch.from_numpy(batch.inputs), engine.init_state(5), []
    for x in inputs:
        outputs, states = engine.forward(x[None], states)  # (1, 1, 5, k)
        states = [state.clone() for state in states]
        expected.append(task.to_units(outputs[0, 0].float().numpy()))
    expected = np.stack(expected, 1)
    if name == "labels":
        expected = torch.from_numpy(expected).softmax(2).numpy()
    predicted = np.load(exports[name] / "outputs.npy")
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.load(exports[name] / "of one.npy"), expected[2], 1e-5, 1e-5)
    header, *rows, refused = (exports[name] / "printed").read_text("utf-8").splitlines()
    last = expected[:, -1]
    if name == "forecast":
        assert header.split("\t") == ["wind", "rain"]
        np.testing.assert_allclose([[*map(float, row.split("\t"))] for row in rows], last, 1e-4)
    else:
        assert (header, rows) == ("class", [str(row.argmax()) for row in last])
    readme = (exports[name] / "README.md").read_text("utf-8")
    assert READ[name] in readme
    assert READ[name].partition(" in the")[0] in refused


def test_export_describes_the_network_and_contains_the_source_of_its_cell(exports):
    readme = (exports["candidate"] / "README.md").read_text(encoding="utf-8")
    assert "1×4 forget+state gates, new state" in readme
    assert "- study: quick | {x}\n" in readme
    assert f"`bpe.py`: converts between bytes and the {BPE.size} tokens" in readme
    folder = exports["example"]
    assert (folder / "cell.py").read_text("utf-8") == source_of("LayerNormGRU").text
    readme = (folder / "README.md").read_text("utf-8")
    assert "needs Python, NumPy, PyTorch and what `cell.py` imports" in readme
    assert not (exports["lstm"] / "cell.py").exists()
