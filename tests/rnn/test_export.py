"""A trained network as a module, and exported: it computes the same with PyTorch alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import (
    PlainNetwork,
    baseline_configs,
    gated_configs,
    label,
    make_model,
    representatives,
)
from user_cells import cell_config, source_of

from rnn.config import BaselineConfig, GatedConfig, TrialConfig
from rnn.data.tokenizer import load_tokenizer, train_tokenizer
from rnn.inference.export import export_files
from rnn.inference.saved_model import build_trained_module
from rnn.models.factory import build_network

TEXT = b"the cat, the h\xc3\xa4t; that\n    cat and that hat 123 == 12"
TOKENS = train_tokenizer("bpe:280", np.frombuffer(TEXT * 9, np.uint8))
NAMED_NETWORK = """
class Network(nn.GRUCell):
    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__(input_size, state_size)

    def forward(self, x, state):
        state = super().forward(x, state)
        return state, state
"""
"""A cell that has the name of the generated class."""

BYTES = load_tokenizer(None)
NETWORKS = {
    "gated": (GatedConfig(True, True, True, True, True, "both", 2, 4), BYTES),
    "candidate": (GatedConfig(False, True, False, True, False, "new", 1, 4, "candidate"), TOKENS),
    "lstm": (BaselineConfig("lstm", 2, 4), TOKENS),
    "example": (cell_config("LayerNormGRU", 2, 4, norm="gates"), TOKENS),
    "same name": (cell_config("Network", 1, 4, text=NAMED_NETWORK), BYTES),
}

USER = """
import json, pathlib, runpy, sys

import torch

for folder in sys.argv[1:]:
    text = pathlib.Path(folder, "text").read_bytes()
    sys.path.insert(0, folder)
    for prompt in ([], [""], ["the cat"]):
        sys.argv = ["run.py", *prompt]
        run = runpy.run_path(f"{folder}/run.py")
    network, tokens = run["network"], run["encode"](text)
    states, all_logits = network.init_state(1), []
    for token in tokens:
        logits, states = network(torch.tensor([token]), states)
        all_logits.append(logits[0].tolist())
    result = {"tokens": tokens, "logits": all_logits, "text": run["decode"](tokens).hex()}
    pathlib.Path(folder, "result").write_text(json.dumps(result))
    for name in ("network", "tokenizer", "bpe", "cell"):
        sys.modules.pop(name, None)
    sys.path.pop(0)
assert not {"rnn", "safetensors", "tokenizers"} & {*sys.modules}
"""


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize(
    "config",
    [
        *representatives(gated_configs(2, 4))[:4],
        *baseline_configs(2, 4),
        cell_config("MinGRU", 2, 4, candidate_tanh=True),
        cell_config("Everything", 2, 4, scale=0.25),
    ],
    ids=label,
)
def test_trained_module_computes_the_exported_network_in_any_number_of_calls(config, precision):
    model = make_model(config, BYTES, precision)
    plain, module = PlainNetwork(TrialConfig(config), BYTES.size), build_trained_module(model)
    plain.load(model.weights)
    tokens = torch.randint(BYTES.size, (5, 4), generator=torch.Generator().manual_seed(0))
    expected, _ = plain.read(tokens, plain.initial_states(4))
    with torch.inference_mode():
        _, states = module(tokens[:2])
        logits, _ = module(tokens[2:], states)
    assert not module.training
    assert all(parameter.is_contiguous() for parameter in module.parameters())
    torch.testing.assert_close(logits.double(), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    """Folder of each export, run by a process that cannot import the project."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NETWORKS}
    for name, folder in folders.items():
        files = export_files(make_model(*NETWORKS[name], study="quick | {x}"))
        for file, content in (files | {"text": TEXT}).items():
            (folder / file).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", USER, *map(str, folders.values())],
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

    config = TrialConfig(model.architecture)
    weights = {config: model.weights}
    network = build_network([config], 0, "fp32", model.tokenizer.size, None, weights)
    states = network.init_state(1)
    for token, logits in zip(tokens, result["logits"], strict=True):
        expected, next_states = network.forward(torch.tensor([token]), states)
        states = [state.clone() for state in next_states]
        torch.testing.assert_close(torch.tensor(logits), expected[0, 0], rtol=1e-5, atol=1e-5)


def test_export_describes_the_network_and_contains_the_source_of_its_cell(exports):
    readme = (exports["candidate"] / "README.md").read_text(encoding="utf-8")
    assert "1×4 forget+state gates, new state" in readme
    assert "- study: quick | {x}\n" in readme
    assert f"the {TOKENS.size} tokens, with `bpe.py`" in readme
    folder = exports["example"]
    assert (folder / "cell.py").read_text("utf-8") == source_of("LayerNormGRU").text
    readme = (folder / "README.md").read_text("utf-8")
    assert "needs Python, PyTorch and what `cell.py` imports" in readme
    assert not (exports["lstm"] / "cell.py").exists()
