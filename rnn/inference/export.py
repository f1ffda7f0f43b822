"""A trained network as a folder of files that needs PyTorch and nothing else."""

import inspect
import io
import json

import torch
from torch import Tensor

from rnn.codegen import generate_module, state_dict_mapping
from rnn.data import bpe
from rnn.data.tokenizer import BPETokenizer
from rnn.inference.saved_model import SavedModel

_BYTES = '''\
"""What the network reads, and writes: bytes. A symbol is a byte's value."""


def encode(text):
    """Return the symbols of a text, which is of bytes."""
    return list(text)


def decode(symbols):
    """Return the text of symbols."""
    return bytes(symbols)
'''

_BYTE_PAIRS = '''\
"""What the network reads, and writes: {size} symbols, made of bytes by merging pairs."""

import json
from pathlib import Path

from bpe import BPE

_PAIRS = BPE(json.loads(Path(__file__).with_name("merges.json").read_text()))


def encode(text):
    """Return the symbols of a text, which is of bytes."""
    return list(_PAIRS.encode(text))


def decode(symbols):
    """Return the text of symbols."""
    return _PAIRS.decode(symbols)
'''

_RUN = '''\
"""Go on with a text, as in ``python run.py "Once upon a time"``."""

import os
import sys
from pathlib import Path

import torch

from network import Network
from tokenizer import decode, encode

network = Network()
network.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
text = encode(os.fsencode("".join(sys.argv[1:2])) or b"\\n")
length, states = len(text) + 500, network.initial_state(1)
with torch.inference_mode():
    for n in range(length - 1):
        logits, states = network(torch.tensor([text[n]]), states)
        if n + 1 == len(text):
            text.append(torch.softmax(logits[0] / 0.8, dim=0).multinomial(1).item())
print(decode(text).decode(errors="replace"))
'''

_README = """\
# A recurrent network: {label}

{details}

`python run.py "Once upon a time"` goes on with a text. Python and PyTorch are all that it needs.

- `network.py`: the network, one time step at a time
- `weights.pt`: its weights, for `load_state_dict`
- `tokenizer.py`: bytes ↔ symbols, of which there are {size:,}{more}
- `run.py`: reads a text, and writes on
"""


def export_files(network: SavedModel, bptt_steps: int = 1) -> dict[str, bytes]:
    """Write a network out.

    Args:
        network: to write out; its details go into the ``README.md``, a line each.
        bptt_steps: the steps that a gradient went back through when it was trained.

    Returns:
        The content of each file by its name: ``network.py``, of
        :func:`rnn.codegen.generate_module`;
        ``weights.pt``, its state as ``torch.load(weights_only=True)`` reads it; ``tokenizer.py``,
        with the functions ``encode`` and ``decode``, and what that needs; ``run.py``, which writes
        text; and ``README.md``.
    """
    tokenizer, architecture = network.tokenizer, network.architecture
    texts = {
        "network.py": generate_module(architecture, tokenizer.size, bptt_steps),
        "run.py": _RUN,
    }
    more = ""
    if isinstance(tokenizer, BPETokenizer):
        more = "; `bpe.py` and `merges.json` are part of it"
        texts["tokenizer.py"] = _BYTE_PAIRS.format(size=tokenizer.size)
        texts["bpe.py"] = inspect.getsource(bpe)
        texts["merges.json"] = json.dumps(tokenizer.bpe.merges)
    else:
        texts["tokenizer.py"] = _BYTES
    texts["README.md"] = _README.format(
        label=architecture.label,
        details="\n".join(f"- {name}: {value}" for name, value in network.metadata.items()),
        size=tokenizer.size,
        more=more,
    )
    files = {name: text.encode() for name, text in texts.items()}
    return files | {"weights.pt": _state(network)}


def _state(network: SavedModel) -> bytes:
    state: dict[str, Tensor] = {}
    for name, (product, part) in state_dict_mapping(network.architecture).items():
        weight, bias = network.weights[product]
        state[name] = (weight.T if part == "weight" else bias).contiguous()
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()
