"""Tokenizers are lossless and reproducible; splits of a corpus in their tokens."""

import json
import random
import re

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invocation import refused
from tokenizers import Regex, models, pre_tokenizers

from rnn.errors import CorpusError, UserError
from rnn.tasks.bpe import BPE, PRETOKENIZE_PATTERN
from rnn.tasks.corpus import Corpus
from rnn.tasks.text import Text
from rnn.tasks.tokenizer import load_tokenizer, train_tokenizer

WORDS = [b"the", b"cat", b"\xc3\xa4pfel", b"12", b"1234", b"==", b"\n    ", b",", b"catalogue"]
LETTERS = [bytes(random.Random(seed).choices(b"abc", k=6)) for seed in range(40)]
PROSE = b" ".join(random.Random(0).choices(WORDS + LETTERS, k=4000))
TOKENIZER = train_tokenizer("bpe:300", np.frombuffer(PROSE, np.uint8))

# Each merge doubles a token's length; the last one exceeds the maximum.
DOUBLING = [[97, 97], *([n, n] for n in range(256, 263))]

# No deadline on slow machines, no example database.
without_deadline = settings(
    deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
any_text = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(b"abc ")).map(bytes),
    st.lists(st.sampled_from([*WORDS, b" ", b"a" * 70, b"\x00", b"\xff"])).map(b"".join),
)


def to_array(text: bytes):
    return np.frombuffer(text, np.uint8)


@without_deadline
@given(any_text)
def test_every_text_is_decoded_to_the_same_bytes(text):
    for tokenizer in (TOKENIZER, train_tokenizer("bytes", to_array(text))):
        tokens = tokenizer.encode(to_array(text))
        assert tokenizer.decode(tokens.tolist()) == text
        assert tokenizer.token_byte_lengths[tokens].sum() == len(text)
        assert tokens.max(initial=0) < tokenizer.size


@without_deadline
@given(any_text)
def test_tokens_and_pieces_equal_those_of_the_tokenizers_library(text):
    names = [token.decode("latin-1") for token in TOKENIZER.bpe.tokens]
    merges = [(names[left], names[right]) for left, right in TOKENIZER.bpe.merges]
    library = tokenizers.Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, merges))
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_PATTERN.decode("latin-1")), "isolated")
    library.pre_tokenizer = split
    characters = text.decode("latin-1")
    assert TOKENIZER.encode(to_array(text)).tolist() == library.encode(characters).ids
    pieces = [piece.encode("latin-1") for piece, _ in split.pre_tokenize_str(characters)]
    assert re.findall(PRETOKENIZE_PATTERN, text) == pieces
    assert b"".join(pieces) == text


def test_pretokenization_splits_words_numbers_and_punctuation():
    pieces = re.findall(PRETOKENIZE_PATTERN, b"if x == 'na\xc3\xafve10':\n\n    return")
    expected = [b"if", b" x", b" ==", b" '", b"na\xc3\xafve", b"10", b"':", b"\n\n    ", b"return"]
    assert pieces == expected
    for longest, characters in ((64, b" \n"), (63, b"a\xff"), (63, b"0"), (63, b"{~")):
        pieces = re.findall(PRETOKENIZE_PATTERN, characters * 63 * 64)
        assert {len(piece) for piece in pieces} == {longest}


def test_trained_tokenizer_is_deterministic_and_merges_frequent_pairs_first():
    repeated = train_tokenizer("bpe:300", to_array(PROSE))
    assert repeated.serialized == TOKENIZER.serialized
    assert TOKENIZER.size == 300
    few = train_tokenizer("bpe:258", to_array(b"ab,ab,ab,cd,cd,e"))
    assert few.bpe.tokens[256:] == [b"ab", b"cd"]


@pytest.mark.parametrize("text", [b"", b"abcabc"])
def test_small_text_gives_a_smaller_vocabulary(text):
    tokenizer = train_tokenizer("bpe:1000", to_array(text))
    assert 256 <= tokenizer.size < 300
    assert tokenizer.decode(tokenizer.encode(to_array(text * 2)).tolist()) == text * 2


def test_serialized_tokenizer_is_loaded_unchanged():
    serialized = TOKENIZER.serialized
    loaded = load_tokenizer(serialized)
    assert loaded.encode(to_array(PROSE)).tolist() == TOKENIZER.encode(to_array(PROSE)).tolist()
    assert loaded.serialized == serialized
    assert loaded.token_byte_lengths.tolist() == TOKENIZER.token_byte_lengths.tolist()
    assert load_tokenizer(None).size == 256


def test_merge_to_an_existing_token_adds_none():
    bpe = BPE([(97, 98), (98, 99), (256, 99), (97, 257)])  # ab, bc, ab+c, a+bc
    assert bpe.tokens[256:] == [b"ab", b"bc", b"abc"]
    assert list(bpe.encode(b"abc")) == [258]


@pytest.mark.parametrize(
    "serialized",
    [
        TOKENIZER.serialized[:-3],
        json.dumps({"format_version": "another", "merges": []}),
        json.dumps({"format_version": "bpe-1"}),
        json.dumps({"format_version": "bpe-1", "merges": [[97, 256]]}),
        json.dumps({"format_version": "bpe-1", "merges": DOUBLING}),
    ],
)
def test_damaged_tokenizer_is_refused_in_one_line(serialized):
    with refused(UserError, "cannot be read"):
        load_tokenizer(serialized)


# ------------------------------------------------------------------ splits of a corpus


def test_each_split_is_encoded_separately_and_once():
    corpus = Corpus("prose", to_array(PROSE))
    text = Text(corpus, TOKENIZER)
    for split in ("train", "validation", "test"):
        tokens = getattr(text, split)
        assert TOKENIZER.decode(tokens.tolist()) == getattr(corpus, split).tobytes()
        assert getattr(text, split) is tokens


def test_splits_shorter_than_a_sequence_or_a_window_are_refused():
    text = Text(Corpus("prose", to_array(PROSE)), TOKENIZER)
    train, validation, test = len(text.train), len(text.validation), len(text.test)
    text.check_min_length(train, min(validation, test), "test")
    with pytest.raises(CorpusError, match=rf"train split.*{train:,} tokens.*sequence_length"):
        text.check_min_length(train + 1, 2)
    with pytest.raises(CorpusError, match=rf"validation .*{validation:,} tokens.*window_length"):
        text.check_min_length(2, validation + 1)
    with pytest.raises(CorpusError, match="window_length"):
        text.check_min_length(2, test + 1, "test")
