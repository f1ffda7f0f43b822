"""What a network writes: drawn from what it foretells, and the same for a seed."""

import numpy as np
import pytest
import torch

from rnn.architecture import Architecture
from rnn.generation import generate, to_text
from rnn.known_cell import KnownCell
from rnn.member import Member
from rnn.network import initial_weights
from rnn.networks import network_of
from rnn.vocabulary import read_vocabulary, train_vocabulary
from rnn.weights import TrainedNetwork

ARCHITECTURE = Architecture(False, True, False, True, True, "both", 2, 8)
KNOWN = KnownCell("lstm", 2, 8)
BYTES = read_vocabulary(None)
TOKENS = train_vocabulary("bpe:270", np.frombuffer(b"the cat, the hat, that cat" * 9, np.uint8))


def made(vocabulary=BYTES, scale=4.0, architecture=ARCHITECTURE) -> TrainedNetwork:
    """Weights that are large enough for a network to prefer some symbols."""
    drawn = initial_weights(Member(architecture), 7, vocabulary.size)
    weights = {n: (scale * weight.float(), bias.float()) for n, (weight, bias) in drawn.items()}
    return TrainedNetwork(architecture, weights, vocabulary, "bf16", {})


def foretold(network: TrainedNetwork, symbols: list[int]) -> torch.Tensor:
    """The logits after symbols, which are all read again."""
    member, size = Member(network.architecture), network.vocabulary.size
    model = network_of([member], 0, "fp32", size, weights={member: network.weights})
    states = model.initial_states(1)
    for symbol in symbols:
        logits, after = model.forward(model.symbols(torch.tensor([symbol])), states)
        states = [state.clone() for state in after]
    return logits[0, 0]


def symbols_of(vocabulary, text: bytes) -> list[int]:
    return vocabulary.encode(np.frombuffer(text, np.uint8)).tolist()


@pytest.mark.parametrize("network", [made(), made(TOKENS), made(architecture=KNOWN)])
@pytest.mark.parametrize("prompt", [b"the cat", b""])
def test_it_writes_the_likeliest_symbols_that_it_foretells(network, prompt):
    vocabulary = network.vocabulary
    symbols = symbols_of(vocabulary, prompt or b"\n")
    read = len(symbols)
    for _ in range(8):
        symbols.append(int(foretold(network, symbols).argmax()))
    expected = vocabulary.decode(symbols[read:])
    assert generate(network, prompt, length=8, temperature=0) == expected
    assert generate(network, prompt, length=8, temperature=1e-320) == expected
    assert generate(network, prompt, length=8, top_k=1) == expected


def test_symbols_are_drawn_as_often_as_they_are_foretold():
    network = made()
    logits = foretold(network, symbols_of(BYTES, b"a"))
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        kept = logits if top_k is None else logits.topk(top_k).values
        p = torch.softmax(logits[logits >= kept.min()] / temperature, 0).max().item()
        drawn = [generate(network, b"a", 1, temperature, top_k, seed)[0] for seed in range(200)]
        share = drawn.count(int(logits.argmax())) / 200
        assert abs(share - p) < 4 * (p * (1 - p) / 200) ** 0.5
        if top_k:
            assert set(drawn) == set(logits.topk(top_k).indices.tolist())


def test_a_seed_says_what_is_drawn():
    network = made(TOKENS, scale=1.0)
    texts = [generate(network, b"the", length=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(generate(network, b"the", length=10, seed=1))


@pytest.mark.parametrize(
    "bad", [{"length": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}]
)
def test_numbers_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        generate(made(), **bad)


def test_any_bytes_are_text_that_can_be_shown():
    assert to_text("„ä\t1\n".encode()) == "„ä\t1\n"
    assert to_text(b"a\xffb\xc3") == "a\ufffdb\ufffd"
    assert to_text(b"\x1b[31m\x00\r\x7f\xc2\x9b") == "\ufffd[31m" + "\ufffd" * 4
