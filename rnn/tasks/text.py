"""The task text: predict the next token of a corpus, at every step of every stream."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rnn.config import BYTE_VOCAB_SIZE, TaskSpec
from rnn.engines import Engine
from rnn.errors import CorpusError
from rnn.network import Batch
from rnn.tasks.corpus import Corpus
from rnn.tasks.task import SavedTask
from rnn.tasks.tokenizer import TokenArray, Tokenizer
from rnn.training.evaluation import (
    MIN_CONTEXT_LENGTH,
    ContextLosses,
    CurveData,
    compute_eval_losses,
    select_curve_data,
    standard_error,
)

_DIGITS = 5
"""Recorded digits of bits per byte, by window or bin: rounding is a thousandth of their spread."""

_CURVE_LENGTH = 50
"""Tokens of a window that is measured during the training: many short ones cost less."""


def gather_windows(text: TokenArray, starts: npt.NDArray[np.int64], length: int) -> TokenArray:
    """Gather the windows of a text that begin at given positions.

    Args:
        text: tokens (n,).
        starts: positions (B,), each at most n − length.
        length: number of tokens of a window.

    Returns:
        Tokens (length, B), one row per time step.
    """
    windows = np.lib.stride_tricks.sliding_window_view(text, length)[starts]  # (B, length)
    return np.ascontiguousarray(windows.T)


class TextData:
    """Training on a text: at each step, the next token of every stream is predicted.

    A sequence of L tokens gives L − 1 steps. See :class:`rnn.tasks.task.TrainingData`.

    Args:
        train: training split (length,), at least one sequence long.
        vocab_size: V.
    """

    initial_loss = 3.0

    def __init__(self, train: TokenArray, vocab_size: int = BYTE_VOCAB_SIZE) -> None:
        self.train = train
        self.spec = TaskSpec.of_text(vocab_size)

    def steps_per_sequence(self, sequence_length: int) -> int:
        return sequence_length - 1

    def train_batch(
        self, seed: int, index: int, replicate: int, batch_size: int, sequence_length: int
    ) -> Batch:
        rng = np.random.default_rng([seed, index, replicate])
        last_start = len(self.train) - sequence_length
        starts = rng.integers(0, last_start, batch_size, endpoint=True)  # (B,)
        tokens = gather_windows(self.train, starts, sequence_length)
        return Batch(tokens[:-1], tokens[1:])


class Text(TextData):
    """The task text; a split of the corpus is encoded at its first use.

    See :class:`rnn.tasks.task.Task`.

    Args:
        corpus: the corpus as bytes.
        tokenizer: the tokenizer.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.spec = TaskSpec.of_text(tokenizer.size)

    @cached_property
    def train(self) -> TokenArray:  # type: ignore[override]  # encoded when they are needed
        """The tokens of the training split."""
        return self.tokenizer.encode(self.corpus.train)

    @cached_property
    def validation(self) -> TokenArray:
        """The tokens of the validation split."""
        return self.tokenizer.encode(self.corpus.validation)

    @cached_property
    def test(self) -> TokenArray:
        """The tokens of the test split."""
        return self.tokenizer.encode(self.corpus.test)

    def check_min_length(
        self,
        sequence_length: int,
        window_length: int,
        eval_split: Literal["validation", "test"] = "validation",
    ) -> None:
        """Check that the splits have at least one training sequence and one evaluation window.

        Args:
            sequence_length: tokens of a training sequence.
            window_length: tokens of an evaluation window.
            eval_split: ``test`` to check the test split as well.

        Raises:
            CorpusError: if a split is too short.
        """
        window = window_length, "evaluation.window_length"
        needed = {"train": (sequence_length, "training.sequence_length"), "validation": window}
        needed[eval_split] = window
        for split, (length, setting) in needed.items():
            count = len(getattr(self, split))
            if count < length:
                raise CorpusError(
                    f"{split} split of corpus {self.corpus.name} has {count:,} tokens (vocabulary "
                    f"of {self.tokenizer.size:,}): expected {length:,} or more; use a longer text, "
                    f"a smaller vocabulary or a smaller {setting}"
                )

    def evaluate(
        self,
        stack: Engine,
        split: Literal["validation", "test"],
        windows: int,
        window_length: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        chosen = select_eval_windows(getattr(self, split), windows, window_length)
        is_validation = split == "validation"
        context = None
        if is_validation and len(chosen) >= MIN_CONTEXT_LENGTH:
            context = ContextLosses(stack, chosen)
        losses = compute_eval_losses(stack, chosen, on_step, context).double()
        lengths = self.tokenizer.token_byte_lengths
        attributes: list[dict[str, Any]] = []
        for k, bits in enumerate(to_bits_per_byte(losses, chosen, lengths)):
            measured: dict[str, Any] = {
                f"{split}_bits_per_byte": float(bits.mean()),
                f"{split}_windows": _round(bits),
            }
            if len(bits) > 1:
                measured[f"{split}_stderr"] = float(standard_error(bits))
            if is_validation:
                measured["validation_loss"] = float(losses[k].mean())
            if context is not None:
                long = to_bits_per_byte(context.long[k], chosen, lengths)
                excess = to_bits_per_byte(context.excess[:, k], chosen, lengths)
                measured |= _describe_context(context.bins, long, excess)
            attributes.append(measured)
        return attributes

    def select_curve_data(self, windows: int, window_length: int, inputs: int) -> CurveData:
        length = min(window_length, _CURVE_LENGTH)
        chosen = select_eval_windows(self.validation, windows, length).astype(np.int64)
        return select_curve_data(Batch(chosen[:-1], chosen[1:]), {}, inputs, begins_anywhere=True)

    def summarize_held_out(self, count: int) -> list[float]:
        return []

    def save(self) -> SavedTask:
        size = self.tokenizer.size
        return SavedTask("text", size, size, merges=self.tokenizer.bpe.merges)


def _describe_context(bins: list[int], long: Tensor, excess: Tensor) -> dict[str, Any]:
    """Return the attributes of a network's losses with a limited context, in bits per byte.

    Those are (windows,) with the long context; (bins, windows) is the excess with short ones.
    """
    if not (long.isfinite().all() and excess.isfinite().all()):
        return {}
    attributes = {
        "context_bins": bins,
        "context_loss": float(long.mean()),
        "context_excess": _round(excess.mean(1)),
    }
    if len(long) > 1:
        attributes["context_stderr"] = _round(standard_error(excess))
    return attributes


def _round(values: Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in values.tolist()]


def select_eval_windows(text: TokenArray, window_count: int, window_length: int) -> TokenArray:
    """Return evenly spaced, non-overlapping windows of a text, the same for every network.

    Args:
        text: held-out split (length,), at least one window long.
        window_count: maximum number of windows; a short text gives as many as fit.
        window_length: tokens of a window; the first is read but not predicted.

    Returns:
        Tokens (window_length, windows).
    """
    count = min(window_count, len(text) // window_length)
    starts = np.arange(count) * (len(text) - window_length) // max(count - 1, 1)  # (windows,)
    return gather_windows(text, starts, window_length)


def to_bits_per_byte(
    losses: Tensor, windows: TokenArray, token_byte_lengths: npt.NDArray[np.int64]
) -> Tensor:
    """Convert losses to bits per byte, which are comparable between tokenizers.

    All windows are divided by the mean number of bytes per token over all of them: the mean of the
    result is then all nats over all bytes, and windows keep their proportions.

    Args:
        losses: (K, windows), of :func:`compute_eval_losses`.
        windows: tokens (window_length, windows) of those losses.
        token_byte_lengths: number of bytes of each token of the vocabulary (V,).

    Returns:
        (K, windows)
    """
    bytes_per_token = float(token_byte_lengths[windows[1:]].mean())
    return losses / (math.log(2) * bytes_per_token)
