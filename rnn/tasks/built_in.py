"""Built-in tasks by name, and the synthetic ones.

Each of the synthetic tasks needs one kind of memory.
"""

import difflib
import inspect
import itertools
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from rnn.config import BUILT_IN_TASKS
from rnn.errors import TaskError
from rnn.tasks.datasets import MNIST1D, Digits, Sequences, Series
from rnn.tasks.task import MAX_STEPS, Array, Sample, Split, check_range


class Copy:
    """Recall symbols in their order after a delay.

    The copying problem of Hochreiter & Schmidhuber (1997), in the form of Arjovsky et al. (2016).
    The last step of the delay asks for the recall. Results are also recorded by position. Below
    are 3 items, with a delay of 4::

        input    c a b . . . ? . . .
        target   - - - - - - - c a b
    """

    solved: ClassVar = {"accuracy": 0.99}

    def __init__(self, *, delay: int = 10, items: int = 10, symbols: int = 8) -> None:
        check_range("delay", delay, 1, MAX_STEPS)
        check_range("items", items, 1, MAX_STEPS)
        check_range("symbols", symbols, 2, 1000)
        self.delay = delay
        self.items = items
        self.classes = symbols
        self.vocabulary = symbols + 2

    def sample(self, split: Split, rng: np.random.Generator, count: int) -> Sample:
        blank = self.classes
        recall = self.classes + 1
        inputs = np.full((count, self.items + self.delay + self.items), blank)
        inputs[:, : self.items] = rng.integers(self.classes, size=(count, self.items))
        inputs[:, self.items + self.delay - 1] = recall
        position = np.arange(inputs.shape[1]) - self.items - self.delay
        return {
            "inputs": inputs,
            "targets": np.roll(inputs, self.items + self.delay, axis=1),
            "mask": np.broadcast_to(position >= 0, inputs.shape),
            "slices": {"position": np.broadcast_to(position, inputs.shape)},
        }


class Adding:
    """Add the two numbers that are marked.

    The adding problem of Hochreiter & Schmidhuber (1997), in the form of Arjovsky et al. (2016). A
    step is a number from 0 to 1 and a mark; each half of the sequence has one marked number.
    Predicting 1, the mean, has a squared error of 0.167::

        numbers   0.3  0.8  0.1  0.5  0.9  0.2
        marks     0    1    0    0    0    1
        target    -    -    -    -    -    1.0
    """

    input_size = 2
    output_size = 1
    # A standard deviation of a tenth, where the mean's is 0.41.
    solved: ClassVar = {"loss": 0.01}

    def __init__(self, *, length: int = 50) -> None:
        check_range("length", length, 2, MAX_STEPS)
        self.length = length

    def sample(self, split: Split, rng: np.random.Generator, count: int) -> Sample:
        numbers = rng.random((count, self.length))
        marks = np.zeros((count, self.length))
        for start, end in ((0, self.length // 2), (self.length // 2, self.length)):
            marks[np.arange(count), rng.integers(start, end, count)] = 1
        return {"inputs": np.stack((numbers, marks), 2), "targets": (numbers * marks).sum(1)}


class Parity:
    """Tell whether the number of ones in a string of bits is odd.

    Strings for training have 1 to ``length`` bits. Networks are also evaluated on strings of two
    and four times that length, as in Delétang et al. (2023). The target is at the last bit of the
    string; random bits fill up the sequence. Below is a string of 4 bits::

        input    1 0 1 1 0 1
        target   - - - 1 - -
    """

    vocabulary = 2
    classes = 2
    needs_input = True  # the last bit, at whose step the target is
    solved: ClassVar = {"accuracy": 0.99}

    def __init__(self, *, length: int = 40) -> None:
        check_range("length", length, 1, MAX_STEPS)
        self.length = length
        self.eval_lengths = (2 * length, 4 * length)

    def sample(
        self, split: Split, rng: np.random.Generator, count: int, length: int | None = None
    ) -> Sample:
        steps = length or self.length
        bits = rng.integers(2, size=(count, steps))
        last = rng.integers(0 if length is None else steps - 1, steps, count)
        is_last = np.arange(steps) == last[:, None]
        return {"inputs": bits, "targets": bits.cumsum(1) % 2, "mask": is_last}


class SelectiveCopy:
    """Recall symbols in their order that stood at random places, between blanks.

    Selective copying of Gu & Dao, *Mamba* (2023), where ``length`` is 4096, ``items`` 16 and
    ``symbols`` 14. Each of the last steps asks for the next symbol. Results are also recorded by
    position. Below are 3 items::

        input    . c . . a . b . ? ? ?
        target   - - - - - - - - c a b
    """

    solved: ClassVar = {"accuracy": 0.99}

    def __init__(self, *, length: int = 48, items: int = 6, symbols: int = 8) -> None:
        check_range("items", items, 1, MAX_STEPS // 2)
        check_range("length", length, 2 * items, MAX_STEPS)
        check_range("symbols", symbols, 2, 1000)
        self.length = length
        self.items = items
        self.classes = symbols
        self.vocabulary = symbols + 2

    def sample(self, split: Split, rng: np.random.Generator, count: int) -> Sample:
        symbols = rng.integers(self.classes, size=(count, self.items))
        places = np.sort(_draw_distinct(rng, count, self.length - self.items, self.items), 1)
        inputs = np.full((count, self.length), self.classes)  # blanks
        np.put_along_axis(inputs, places, symbols, 1)
        inputs[:, -self.items :] = self.classes + 1
        targets = np.zeros_like(inputs)
        targets[:, -self.items :] = symbols
        position = np.broadcast_to(np.arange(self.length) - self.length + self.items, inputs.shape)
        slices = {"position": position}
        return {"inputs": inputs, "targets": targets, "mask": position >= 0, "slices": slices}


class Induction:
    """Recall the token that followed a special one, when the special one comes again.

    Induction heads of Olsson et al. (2022), in the form of Dao et al., *H3* (2023), and Gu & Dao,
    *Mamba* (2023), where ``length`` is 256 and ``vocabulary`` 16. The special token, the last of
    the vocabulary, stands once among random tokens and once at the end. Networks are also evaluated
    at two and four times ``length``. Results are also recorded by the distance of the special
    tokens, rounded down to a power of two::

        input    c a ! b d a c d !
        target   - - - - - - - - b
    """

    solved: ClassVar = {"accuracy": 0.99}

    def __init__(self, *, length: int = 32, vocabulary: int = 16) -> None:
        check_range("length", length, 3, MAX_STEPS)
        check_range("vocabulary", vocabulary, 3, 65536)
        self.length = length
        self.eval_lengths = (2 * length, 4 * length)
        self.vocabulary = vocabulary
        self.classes = vocabulary - 1

    def sample(
        self, split: Split, rng: np.random.Generator, count: int, length: int | None = None
    ) -> Sample:
        last = (length or self.length) - 1
        sequences = np.arange(count)
        inputs = rng.integers(self.classes, size=(count, last + 1))
        places = rng.integers(last - 1, size=count)
        targets = inputs[sequences, places + 1]
        inputs[sequences, places] = inputs[:, last] = self.classes
        slices = {"distance": 2 ** np.log2(last - places).astype(int)}
        return {"inputs": inputs, "targets": targets, "slices": slices}


class AssociativeRecall:
    """Recall the value that belongs to a key (multi-query associative recall).

    From Arora et al., *Zoology* (2023), where ``vocabulary`` is 8192, and ``length`` and ``pairs``
    are 64 and 4, 128 and 8, or 256 and 16. Pairs of a key and a value come first. Then each key
    comes once more, between blanks or, with ``noise``, random tokens, and asks for its value. Most
    keys return soon: distances follow a power law, of Zoology's exponent -0.99. Results are also
    recorded by distance, rounded down to a power of two::

        input    A 4 B 7 C 1 . . B . . . C . A .
        target   - - - - - - - - 7 - - - 1 - 4 -
    """

    needs_input = True  # the key, which asks for its value
    solved: ClassVar = {"accuracy": 0.99}

    def __init__(
        self, *, pairs: int = 8, length: int = 64, vocabulary: int = 64, noise: bool = False
    ) -> None:
        check_range("pairs", pairs, 1, MAX_STEPS)
        check_range("length", length, 4 * pairs, MAX_STEPS)
        check_range("vocabulary", vocabulary, 2 * pairs + 2, 65536)
        self.pairs = pairs
        self.length = length
        self.vocabulary = self.classes = vocabulary
        self.noise = noise

    def sample(self, split: Split, rng: np.random.Generator, count: int) -> Sample:
        half = self.vocabulary // 2  # token 0 is the blank
        keys = 1 + _draw_distinct(rng, count, half - 1, self.pairs)
        values = half + _draw_distinct(rng, count, self.vocabulary - half, self.pairs)
        gaps = np.arange(1, (self.length - 2 * self.pairs) // 2 + 1)
        queries = 2 * self.pairs + 2 * _choose(rng, count, gaps**-0.99, self.pairs)
        inputs = np.zeros((count, self.length), np.int64)
        targets = np.zeros_like(inputs)
        distances = np.zeros_like(inputs)
        inputs[:, : 2 * self.pairs : 2] = keys
        inputs[:, 1 : 2 * self.pairs : 2] = values
        np.put_along_axis(inputs, queries, keys, 1)
        np.put_along_axis(targets, queries, values, 1)
        distance = queries - 2 * np.arange(self.pairs)
        np.put_along_axis(distances, queries, 2 ** np.log2(distance).astype(int), 1)
        if self.noise:
            blanks = inputs == 0
            inputs[blanks] = rng.integers(self.vocabulary, size=blanks.sum())
        slices = {"distance": distances}
        return {"inputs": inputs, "targets": targets, "mask": distances > 0, "slices": slices}


def _choose(rng: np.random.Generator, count: int, weights: Array, size: int) -> Array:
    """Draw numbers (count, size) below len(weights), by their weights and without repetition."""
    return np.argsort(rng.exponential(size=(count, len(weights))) / weights, 1)[:, :size]


def _draw_distinct(rng: np.random.Generator, count: int, bound: int, size: int) -> Array:
    """Draw numbers (count, size) below a bound, equally often and without repetition in a row."""
    # Of few numbers, or of most of them, a row would rarely be without a repetition.
    if bound < 1000 or size**2 > 2 * bound:
        return _choose(rng, count, np.ones(bound), size)
    drawn = rng.integers(bound, size=(count, size))
    while True:
        has_repetition = (np.diff(np.sort(drawn, 1), axis=1) == 0).any(1)
        if not has_repetition.any():
            return drawn
        drawn[has_repetition] = rng.integers(bound, size=(has_repetition.sum(), size))


class Words:
    """Follow the order of objects that are permuted again and again (word problem of a group).

    From Merrill et al. (2024). A step reads one of the permutations of a group and predicts the
    product of all so far. ``S3`` has the 6 permutations of three objects, ``A5`` the 60 even ones
    of five, which linear diagonal recurrences of a fixed depth are believed to be unable to follow.
    Networks are also evaluated at two and four times ``length``. Below three objects start as abc,
    and 213 takes the second, the first, then the third::

        input    213   132   321   213
        target   bac   bca   acb   cab
    """

    solved: ClassVar = {"accuracy": 0.99}

    def __init__(self, *, group: Literal["S3", "A5"] = "S3", length: int = 20) -> None:
        check_range("length", length, 12, MAX_STEPS)  # fewer steps repeat in the other splits
        self.length = length
        self.eval_lengths = (2 * length, 4 * length)
        self._products = _multiply(group)
        self.vocabulary = self.classes = len(self._products)

    def sample(
        self, split: Split, rng: np.random.Generator, count: int, length: int | None = None
    ) -> Sample:
        inputs = rng.integers(self.vocabulary, size=(count, length or self.length))
        targets = inputs.copy()
        for step in range(1, inputs.shape[1]):
            targets[:, step] = self._products[targets[:, step - 1], inputs[:, step]]
        return {"inputs": inputs, "targets": targets}


def _multiply(group: str) -> Array:
    """Return the number of the product of each two elements of a group, the first one first."""
    size = int(group[1])
    orders = list(itertools.permutations(range(size)))
    if group[0] == "A":
        orders = [order for order in orders if _count_inversions(order) % 2 == 0]
    numbers = {order: number for number, order in enumerate(orders)}
    products = [[numbers[tuple(first[i] for i in then)] for then in orders] for first in orders]
    return np.array(products)


def _count_inversions(order: tuple[int, ...]) -> int:
    return sum(first > second for first, second in itertools.combinations(order, 2))


# ------------------------------------------------------------------ names

BUILT_IN: dict[str, tuple[type[Any], str | None]] = {
    "copy:D": (Copy, "delay"),
    "adding:T": (Adding, "length"),
    "parity": (Parity, None),
    "selective_copy": (SelectiveCopy, None),
    "induction": (Induction, None),
    "mqar": (AssociativeRecall, None),
    "words:G": (Words, "group"),
    "digits": (Digits, None),
    "mnist1d": (MNIST1D, None),
    "series:FILE.csv": (Series, "file"),
    "sequences:FILE.npz": (Sequences, "file"),
}
"""Class of each task, and the option that the text after the colon sets."""

BUILT_IN_NAMES = {form.partition(":")[0]: form for form in BUILT_IN}
assert tuple(BUILT_IN_NAMES) == BUILT_IN_TASKS


def find_built_in(source: str, folder: Path) -> tuple[type[Any], dict[str, int | str]] | None:
    """Return the class of a built-in task and the option that its source sets.

    Args:
        source: a task as study files state it, such as ``copy:10`` or ``series:weather.csv``.
        folder: folder that the path of a file is relative to.

    Returns:
        None if the source is the class of a user's own task.

    Raises:
        TaskError: if the source is neither, or what follows the colon is invalid.
    """
    name, colon, argument = source.partition(":")
    if name not in BUILT_IN_NAMES:
        place, _, own_class = source.rpartition(":")
        is_module = all(map(str.isidentifier, place.split(".")))
        if own_class.isidentifier() and (is_module or place.endswith(".py")):
            return None
        similar = difflib.get_close_matches(name, BUILT_IN_NAMES, 1)
        question = f"did you mean {BUILT_IN_NAMES[similar[0]]}? " if similar else ""
        raise TaskError(
            f"task {source[:80]!r} not found: {question}expected text, {', '.join(BUILT_IN)}, or "
            "the class of a task of your own, as in my_task.py:Adding"
        )
    cls, option = BUILT_IN[BUILT_IN_NAMES[name]]
    if option == "file":
        path = folder.absolute() / argument
        if not path.is_file():  # a pipe would block
            raise TaskError(f"task {source[:80]!r} not found: expected a file {path}")
        return cls, {option: str(path)}
    if not colon:
        return cls, {}
    if option is None:
        names = list(inspect.signature(cls).parameters)
        form = f', as in {{ source = "{name}", {names[0]} = … }}' if names else ""
        raise TaskError(f"task {source[:80]!r}: expected options by their names{form}")
    if option == "group":
        if argument not in ("S3", "A5"):
            raise TaskError(f"task {source[:80]!r}: expected S3 or A5 after the colon")
        return cls, {option: argument}
    if not (argument.isascii() and argument.isdecimal() and len(argument) < 10):
        raise TaskError(f"task {source[:80]!r}: expected a whole number after the colon")
    return cls, {option: int(argument)}
