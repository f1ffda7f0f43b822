"""A network that is handed over computes what it computed here, with PyTorch and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rnn.config import BaselineConfig, GatedConfig, TrialConfig
from rnn.data.tokenizer import load_tokenizer, train_tokenizer
from rnn.inference.export import export_files
from rnn.inference.saved_model import SavedModel
from rnn.models.factory import build_network
from rnn.stacked.network import draw_initial_weights

TEXT = b"the cat, the h\xc3\xa4t; that\n    cat and that hat 123 == 12"
TOKENS = train_tokenizer("bpe:280", np.frombuffer(TEXT * 9, np.uint8))
NETWORKS = {
    "gated": (GatedConfig(True, True, True, True, True, "both", 2, 4), load_tokenizer(None)),
    "candidate": (
        GatedConfig(False, True, False, True, False, "new", 1, 4, "candidate"),
        TOKENS,
    ),
    "lstm": (BaselineConfig("lstm", 2, 4), TOKENS),
}

USER = """
import json, pathlib, runpy, sys

import torch

for folder in sys.argv[1:]:
    text = pathlib.Path(folder, "text").read_bytes()
    sys.path.insert(0, folder)
    for words in ([], [""], ["the cat"]):
        sys.argv = ["run.py", *words]
        run = runpy.run_path(f"{folder}/run.py")
    network, symbols = run["network"], run["encode"](text)
    states, logits = network.initial_state(1), []
    for symbol in symbols:
        found, states = network(torch.tensor([symbol]), states)
        logits.append(found[0].tolist())
    answer = {"symbols": symbols, "logits": logits, "text": run["decode"](symbols).hex()}
    pathlib.Path(folder, "answer").write_text(json.dumps(answer))
    for name in ("network", "tokenizer", "bpe"):
        sys.modules.pop(name, None)
    sys.path.pop(0)
assert not {"rnn", "safetensors", "tokenizers"} & {*sys.modules}
"""


def made(name: str) -> SavedModel:
    architecture, tokenizer = NETWORKS[name]
    drawn = draw_initial_weights(TrialConfig(architecture), 7, tokenizer.size)
    weights = {n: (2 * weight.float(), bias.float()) for n, (weight, bias) in drawn.items()}
    return SavedModel(architecture, weights, tokenizer, "bf16", {"study": "quick | {x}"})


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """What somebody who has the folders alone finds in them."""
    folders: dict[str, Path] = {name: tmp_path_factory.mktemp(name) for name in NETWORKS}
    for name, folder in folders.items():
        for file, content in (export_files(made(name)) | {"text": TEXT}).items():
            (folder / file).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", USER, *map(str, folders.values())],
        cwd=folders["gated"],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"the cat") >= len(NETWORKS)
    return {
        name: json.loads((folder / "answer").read_text()) | {"readme": (folder / "README.md")}
        for name, folder in folders.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_handed_over_is_the_network(answers, name):
    network, answer = made(name), answers[name]
    tokens = network.tokenizer.encode(np.frombuffer(TEXT, np.uint8)).tolist()
    assert answer["symbols"] == tokens
    assert bytes.fromhex(answer["text"]) == TEXT

    config = TrialConfig(network.architecture)
    own = build_network(
        [config], 0, "fp32", network.tokenizer.size, None, {config: network.weights}
    )
    states = own.init_state(1)
    for token, found in zip(tokens, answer["logits"], strict=True):
        logits, after = own.forward(own.prepare_inputs(torch.tensor([token])), states)
        states = [state.clone() for state in after]
        torch.testing.assert_close(torch.tensor(found), logits[0, 0], rtol=1e-5, atol=1e-5)


def test_it_says_what_it_is(answers):
    readme = answers["candidate"]["readme"].read_text(encoding="utf-8")
    assert "1×4 forget+state gates, new state" in readme
    assert "- study: quick | {x}\n" in readme
    assert f"there are {TOKENS.size}; `bpe.py`" in readme
