"""The corpus recall:D: what is informative, and where."""

import hashlib
import itertools

import numpy as np
import pytest

from rnn.data.corpus import load_corpus
from rnn.data.recall import ANSWERS, CHANCE, LETTERS, find_recall_positions, generate_recall
from rnn.data.tokenizer import ByteTokenizer, TokenCorpus
from rnn.errors import CorpusError


def mutual_information(first, second):
    """Estimate the mutual information of two arrays of small integers from their counts, in bits.

    Without any, the expectation is about (m − 1)(n − 1) / (2 N ln 2) for m and n distinct values
    and N pairs.
    """
    counts = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(counts, (first, second), 1)
    joint = counts / counts.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum())


def codes(tokens):
    """Return 0 to 7 for the letters, 8 to 15 for the answers."""
    return np.searchsorted(np.concatenate([ANSWERS, LETTERS]), tokens)


@pytest.mark.parametrize("distance", [1, pytest.param(8, marks=pytest.mark.extended)])
def test_only_the_token_at_the_distance_informs_about_answers(distance):
    text = codes(generate_recall(distance))
    reach = distance + 4
    answers = np.flatnonzero(text[reach:] < 8) + reach
    information = {
        d: mutual_information(text[answers - d], text[answers]) for d in range(1, reach + 1)
    }
    # Half of the tokens before are letters, with all 3 bits; the others have none.
    assert information.pop(distance) == pytest.approx(1.5, abs=0.02)
    assert max(information.values()) < 0.001
    # Nor do two other tokens together, as a sum or a difference of them would.
    for d, e in itertools.combinations(information, 2):
        pair = 16 * text[answers - d] + text[answers - e]
        assert mutual_information(pair, text[answers]) < 0.005


def test_answers_at_recall_positions_are_the_letters_of_the_distance_before():
    text = generate_recall(5)
    found = find_recall_positions(text, 5)
    places = np.flatnonzero(found)
    assert found.mean() == pytest.approx(0.25, abs=0.01)
    assert places[0] >= 5
    assert (text[places] == text[places - 5] - 32).all(), "capitals"
    others = np.flatnonzero(np.isin(text, ANSWERS) & ~found)
    agree = np.char.upper(text[others[5:] - 5].view("S1")) == text[others[5:]].view("S1")
    assert agree.mean() == pytest.approx(CHANCE, abs=0.01)


def test_text_is_the_same_on_every_machine():
    corpus = load_corpus("recall:08")
    assert (corpus.name, corpus.recall_distance, len(corpus.text)) == ("recall:8", 8, 1_000_000)
    assert corpus.sha256 == hashlib.sha256(generate_recall(8).tobytes()).hexdigest()
    assert corpus.sha256 == "77b0a9446350fdc84b5c31750b6ab636d39cf823278ca8565c3a8a5e5df06661"
    assert corpus.text[:24].tobytes() == b"ABecChHhdBEhcdeeDabHgeEf"


@pytest.mark.parametrize("name", ["recall:", "recall:0", "recall:x", "recall:-1", "recall:1001",
                                  "recall:٣", "recall:1.5", "recall:" + "9" * 5000])  # fmt: skip
def test_invalid_distance_is_refused_in_one_line(name):
    with pytest.raises(CorpusError, match=r"expected a number from 1 to 1000, as in recall:8") as e:
        load_corpus(name)
    assert "\n" not in str(e.value)


def test_sequences_and_windows_must_exceed_the_distance():
    text = TokenCorpus(load_corpus("recall:32"), ByteTokenizer())
    text.check_min_length(33, 33)
    with pytest.raises(CorpusError, match=r"sequence_length is 32: expected more than 32"):
        text.check_min_length(32, 33)
    with pytest.raises(CorpusError, match=r"window_length is 20: expected more than 32"):
        text.check_min_length(33, 20)
