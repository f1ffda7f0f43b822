"""The built-in tasks by their names."""

import difflib
from pathlib import Path
from typing import Any

from rnn.errors import TaskError
from rnn.tasks.datasets import MNIST1D, Digits
from rnn.tasks.files import Sequences, Series
from rnn.tasks.synthetic import Adding, AssociativeRecall, Copy, Parity

BUILT_IN: dict[str, tuple[type[Any], str | None]] = {
    "copy:D": (Copy, "delay"),
    "adding:T": (Adding, "length"),
    "parity": (Parity, None),
    "mqar": (AssociativeRecall, None),
    "digits": (Digits, None),
    "mnist1d": (MNIST1D, None),
    "series:FILE.csv": (Series, "file"),
    "sequences:FILE.npz": (Sequences, "file"),
}
"""Class of each task, and the option that the text after the colon sets."""

BUILT_IN_NAMES = {form.partition(":")[0]: form for form in BUILT_IN}


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
    if option is None or not (argument.isascii() and argument.isdecimal() and len(argument) < 10):
        after = "a whole number" if option else "nothing"
        raise TaskError(f"task {source[:80]!r}: expected {after} after the colon")
    return cls, {option: int(argument)}
