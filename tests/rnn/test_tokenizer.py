"""Symbols: no text is lost in any vocabulary, and whoever learns one learns the same."""

import json
import random
import re

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers

from rnn.data.bpe import BPE, PRETOKENIZE_PATTERN
from rnn.data.corpus import Corpus
from rnn.data.tokenizer import TokenCorpus, load_tokenizer, train_tokenizer
from rnn.errors import CorpusError, TokenizerError

WORDS = [b"the", b"cat", b"\xc3\xa4pfel", b"12", b"1234", b"==", b"\n    ", b",", b"catalogue"]
TANGLE = [bytes(random.Random(seed).choices(b"abc", k=6)) for seed in range(40)]
PROSE = b" ".join(random.Random(0).choices(WORDS + TANGLE, k=4000))
LEARNT = train_tokenizer("bpe:300", np.frombuffer(PROSE, np.uint8))

# Each as long as two of the last: forty of them would fill any memory, and few are enough.
DOUBLING = [[97, 97], *([n, n] for n in range(256, 263))]

# However slow the machine is, and without a file of examples.
unhurried = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
any_text = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(b"abc ")).map(bytes),
    st.lists(st.sampled_from([*WORDS, b" ", b"a" * 70, b"\x00", b"\xff"])).map(b"".join),
)


def array(text: bytes):
    return np.frombuffer(text, np.uint8)


@unhurried
@given(any_text)
def test_every_text_is_read_back_byte_for_byte(text):
    for tokenizer in (LEARNT, train_tokenizer("bytes", array(text))):
        tokens = tokenizer.encode(array(text))
        assert tokenizer.decode(tokens.tolist()) == text
        assert tokenizer.token_byte_lengths[tokens].sum() == len(text)
        assert tokens.max(initial=0) < tokenizer.size


def test_bytes_are_not_copied_and_tokens_are_fewer():
    text = array(PROSE)
    assert train_tokenizer("bytes", text).encode(text) is text
    tokens = LEARNT.encode(text)
    assert tokens.dtype == np.uint16
    assert len(tokens) < 0.5 * len(text)


@unhurried
@given(any_text)
def test_symbols_are_what_the_library_that_learnt_them_makes_of_a_text(text):
    """Which is also what a text's pieces are."""
    names = [token.decode("latin-1") for token in LEARNT.bpe.tokens]
    merges = [(names[left], names[right]) for left, right in LEARNT.bpe.merges]
    library = tokenizers.Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, merges))
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_PATTERN.decode("latin-1")), "isolated")
    library.pre_tokenizer = split
    characters = text.decode("latin-1")
    assert LEARNT.encode(array(text)).tolist() == library.encode(characters).ids
    pieces = [piece.encode("latin-1") for piece, _ in split.pre_tokenize_str(characters)]
    assert re.findall(PRETOKENIZE_PATTERN, text) == pieces
    assert b"".join(pieces) == text


def test_no_symbol_reaches_over_two_pieces():
    pieces = re.findall(PRETOKENIZE_PATTERN, b"if x == 'na\xc3\xafve10':\n\n    return")
    expected = [b"if", b" x", b" ==", b" '", b"na\xc3\xafve", b"10", b"':", b"\n\n    ", b"return"]
    assert pieces == expected
    for longest, characters in ((64, b" \n"), (63, b"a\xff"), (63, b"0"), (63, b"{~")):
        pieces = re.findall(PRETOKENIZE_PATTERN, characters * 63 * 64)
        assert {len(piece) for piece in pieces} == {longest}


def test_a_vocabulary_is_the_same_whoever_learns_it():
    again = train_tokenizer("bpe:300", array(PROSE))
    assert again.serialized == LEARNT.serialized
    assert LEARNT.size == 300
    few = train_tokenizer("bpe:258", array(b"ab,ab,ab,cd,cd,e"))
    assert few.bpe.tokens[256:] == [b"ab", b"cd"]  # the most frequent first


@pytest.mark.parametrize("text", [b"", b"abcabc", bytes(range(256))])
def test_a_small_text_gives_fewer_symbols(text):
    tokenizer = train_tokenizer("bpe:1000", array(text))
    assert 256 <= tokenizer.size < 600
    assert tokenizer.decode(tokenizer.encode(array(text * 2)).tolist()) == text * 2


def test_what_is_written_is_read_as_it_was():
    written = LEARNT.serialized
    again = load_tokenizer(written)
    assert again.encode(array(PROSE)).tolist() == LEARNT.encode(array(PROSE)).tolist()
    assert again.serialized == written
    assert again.token_byte_lengths.tolist() == LEARNT.token_byte_lengths.tolist()
    assert len(written) < 12 * LEARNT.size
    assert load_tokenizer(None).size == 256


def test_a_merge_may_make_a_symbol_that_is_there():
    pairs = BPE([(97, 98), (98, 99), (256, 99), (97, 257)])  # ab, bc, ab+c, a+bc
    assert pairs.tokens[256:] == [b"ab", b"bc", b"abc"]
    assert list(pairs.encode(b"abc")) == [258]


@pytest.mark.parametrize(
    "written",
    [
        "",
        "[]",
        "null",
        LEARNT.serialized[:-3],
        json.dumps({"format_version": "another", "merges": []}),
        json.dumps({"format_version": "bpe-1"}),
        json.dumps({"format_version": "bpe-1", "merges": [[97]]}),
        json.dumps({"format_version": "bpe-1", "merges": [["a", "b"]]}),
        json.dumps({"format_version": "bpe-1", "merges": [[97, 256]]}),
        json.dumps({"format_version": "bpe-1", "merges": [[-1, 97]]}),
        json.dumps({"format_version": "bpe-1", "merges": DOUBLING}),
    ],
)
def test_a_damaged_vocabulary_is_one_line(written):
    with pytest.raises(TokenizerError, match="cannot be read") as refused:
        load_tokenizer(written)
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------ the splits of a corpus


def test_the_splits_are_those_of_the_corpus_each_by_itself():
    corpus = Corpus("prose", array(PROSE))
    text = TokenCorpus(corpus, LEARNT)
    for split in ("train", "validation", "test"):
        tokens = getattr(text, split)
        assert LEARNT.decode(tokens.tolist()) == getattr(corpus, split).tobytes()
        assert getattr(text, split) is tokens


def test_bytes_stay_in_the_file(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(PROSE)
    corpus = Corpus("file", np.memmap(path, np.uint8, "r"))
    text = TokenCorpus(corpus, load_tokenizer(None))
    assert np.shares_memory(text.train, corpus.text)
    assert isinstance(text.train, np.memmap)


def test_the_test_split_is_not_read_before_it_is_asked_for():
    class Counted:
        size, lengths, written, read = 256, np.ones(256, np.int64), None, 0

        def encode(self, text):
            self.read += len(text)
            return text

    tokenizer = Counted()
    text = TokenCorpus(Corpus("zeros", np.zeros(200, np.uint8)), tokenizer)
    text.check_min_length(50, 10)
    assert tokenizer.read == 190
    text.check_min_length(50, 10, "test")
    assert tokenizer.read == 200


def test_a_text_must_be_long_enough_in_symbols():
    text = TokenCorpus(Corpus("prose", array(PROSE)), LEARNT)
    train, validation, test = len(text.train), len(text.validation), len(text.test)
    text.check_min_length(train, min(validation, test), "test")
    with pytest.raises(CorpusError, match=rf"train split.*{train:,} tokens.*sequence_length"):
        text.check_min_length(train + 1, 2)
    with pytest.raises(CorpusError, match=rf"validation .*{validation:,} tokens.*window_length"):
        text.check_min_length(2, validation + 1)
    with pytest.raises(CorpusError, match="window_length"):
        text.check_min_length(2, test + 1, "test")
