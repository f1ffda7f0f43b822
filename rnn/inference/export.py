"""Export of a trained network as a folder of files that need only PyTorch."""

import inspect
import io
import json

import torch

from rnn.codegen.module_code import generate_module, state_dict_mapping
from rnn.config import CellConfig
from rnn.data import bpe
from rnn.data.tokenizer import BPETokenizer
from rnn.inference.saved_model import SavedModel

_BYTE_TOKENIZER = '''\
"""The network's tokens are bytes."""


def encode(text):
    """Return the tokens of a text, given as bytes."""
    return list(text)


def decode(tokens):
    """Return the text of tokens, as bytes."""
    return bytes(tokens)
'''

_BPE_TOKENIZER = '''\
"""The network's {size} tokens, made of bytes by byte-pair encoding."""

import json
from pathlib import Path

from bpe import BPE

_BPE = BPE(json.loads(Path(__file__).with_name("merges.json").read_text()))


def encode(text):
    """Return the tokens of a text, given as bytes."""
    return list(_BPE.encode(text))


def decode(tokens):
    """Return the text of tokens, as bytes."""
    return _BPE.decode(tokens)
'''

_RUN = '''\
"""Continue a text, as in ``python run.py "Once upon a time"``."""

import os
import sys
from pathlib import Path

import torch

from network import Network
from tokenizer import decode, encode

network = Network()
network.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
tokens = encode(os.fsencode("".join(sys.argv[1:2])) or b"\\n")
length, states = len(tokens) + 500, network.init_state(1)
with torch.inference_mode():
    for n in range(length - 1):
        logits, states = network(torch.tensor([tokens[n]]), states)
        if n + 1 == len(tokens):
            tokens.append(torch.softmax(logits[0] / 0.8, dim=0).multinomial(1).item())
print(decode(tokens).decode(errors="replace"))
'''

_README = """\
# A recurrent network: {label}

{metadata}

`python run.py "Once upon a time"` continues a text. It needs {needs}.

- `network.py`: the network, one time step at a time{cell_file}
- `weights.pt`: its weights, for `load_state_dict`
- `tokenizer.py`: converts between bytes and the {size:,} tokens{tokenizer_files}
- `run.py`: reads a text and continues it
"""


def export_files(model: SavedModel, bptt_steps: int = 1) -> dict[str, bytes]:
    """Return the files of an export: code, weights, tokenizer, script and README.

    Args:
        model: model to export; its metadata is listed in the ``README.md``.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The content of each file by name: ``network.py``, of
        :func:`rnn.codegen.module_code.generate_module`; ``weights.pt``, its state dict for
        ``torch.load(weights_only=True)``; ``tokenizer.py``, with the functions ``encode`` and
        ``decode``, and the files it needs; ``run.py``, which generates text; ``README.md``. For
        a user's own cell also ``cell.py``, its source file as it was written, which is not
        executed here.
    """
    tokenizer, config = model.tokenizer, model.architecture
    texts = {
        "network.py": generate_module(config, tokenizer.size, bptt_steps),
        "run.py": _RUN,
    }
    needs, cell_file = "Python and PyTorch only", ""
    if model.cell_source is not None:
        needs = "Python, PyTorch and what `cell.py` imports"
        cell_file = "\n- `cell.py`: the cell of its layers, the source file as it was written"
        texts["cell.py"] = model.cell_source.text
    tokenizer_files = ""
    if isinstance(tokenizer, BPETokenizer):
        tokenizer_files = ", with `bpe.py` and `merges.json`"
        texts["tokenizer.py"] = _BPE_TOKENIZER.format(size=tokenizer.size)
        texts["bpe.py"] = inspect.getsource(bpe)
        texts["merges.json"] = json.dumps(tokenizer.bpe.merges)
    else:
        texts["tokenizer.py"] = _BYTE_TOKENIZER
    texts["README.md"] = _README.format(
        label=config.label,
        metadata="\n".join(f"- {name}: {value}" for name, value in model.metadata.items()),
        size=tokenizer.size,
        tokenizer_files=tokenizer_files,
        needs=needs,
        cell_file=cell_file,
    )
    files = {name: text.encode() for name, text in texts.items()}
    return files | {"weights.pt": _serialize_state_dict(model)}


def _serialize_state_dict(model: SavedModel) -> bytes:
    if isinstance(model.architecture, CellConfig):
        state_dict = {name: tensor.contiguous() for name, tensor in model.weights.items()}
    else:
        state_dict = {}
        for name, (param, kind) in state_dict_mapping(model.architecture).items():
            tensor = model.weights[f"{param}.{kind}"]
            state_dict[name] = (tensor.T if kind == "weight" else tensor).contiguous()
    content = io.BytesIO()
    torch.save(state_dict, content)
    return content.getvalue()
