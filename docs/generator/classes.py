"""Reference of public names, tasks, cells and their examples, from docstrings and signatures."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, fill
from types import FunctionType

import rnn_search
from docs.generator.source_pages import ROOT
from docs.generator.tables import make_table, to_markdown
from rnn.tasks.built_in import BUILT_IN
from studies.records import read_task_options

FIRST = (
    "run", "create_study", "plan", "load", "Study", "Trial", "FrozenTrial", "Effects"
)  # fmt: skip
"""Public names that a reader looks for first."""

EXAMPLES = ROOT / "examples"

_WIDTH = 118


def list_public_names() -> str:
    """Return the public names of ``rnn_search`` with the members of its classes."""
    rows = []
    for name in (*FIRST, *(name for name in rnn_search.__all__ if name not in FIRST)):
        value = getattr(rnn_search, name)
        call = "()" if inspect.isfunction(value) else ""
        members = ", ".join(_list_members(value)) if inspect.isclass(value) else ""
        rows.append((f"`{name}{call}`", _summarize(value), members))
    return make_table(("name", "what it is or does", "has"), rows)


def _list_members(cls: type) -> Iterator[str]:
    """Yield the public methods and properties of a class and of its private bases."""
    bases = [base for base in cls.__bases__ if base.__name__.startswith("_")]
    members = vars(cls) | {name: value for base in bases for name, value in vars(base).items()}
    for name, member in members.items():
        if not name.startswith("_") and isinstance(member, FunctionType | property):
            yield f"`{name}`" if isinstance(member, property) else f"`{name}()`"


def describe_built_in_tasks() -> str:
    """Return a section for each built-in task: its docstring and its options."""
    sections = []
    for form, (cls, _) in BUILT_IN.items():
        parts = _read_paragraphs(cls)
        texts = [part for part in parts if not part.startswith((" ", "- "))]
        text = f"{' '.join(texts).replace('::', '.')} {_describe_options(form)}"
        blocks = [_format_block(part) for part in parts if part.startswith((" ", "- "))]
        sections.append("\n\n".join([_wrap(f"**`{form}`** {text}"), *blocks]))
    return "\n\n".join(sections) + "\n"


def _describe_options(form: str) -> str:
    """Return the options of a built-in task, and where it is solved, in sentences."""
    cls, argument = BUILT_IN[form]
    letter = form.partition(":")[2]
    options, _ = read_task_options(cls)
    shown = []
    for name, option in options.items():
        if name != "file":
            place = f"{letter}, by default " if name == argument else ""
            shown.append(f"`{name}` ({place}{_format_default(option.default)})")
    solved = [
        f"{name} {'≤' if name == 'loss' else '≥'} {bound:g}"
        for name, bound in getattr(cls, "solved", {}).items()
    ]
    parts = [f"Options: {', '.join(shown)}."] if shown else []
    parts += [f"Solved: {' and '.join(solved)}."] if solved else []
    return " ".join(parts)


def _format_default(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def list_cell_examples() -> str:
    """Return the examples of cells with their options."""
    return _list_examples(EXAMPLES / "cells")


def list_task_examples() -> str:
    """Return the examples of tasks with their options."""
    return _list_examples(EXAMPLES / "tasks")


def _list_examples(folder: Path) -> str:
    rows = []
    for path in sorted(folder.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        (cls,) = (node for node in module.body if isinstance(node, ast.ClassDef))
        constructor = next(node for node in cls.body if isinstance(node, ast.FunctionDef))
        options = [argument.arg for argument in constructor.args.kwonlyargs]
        link = f"[`{path.name}`](../../{path.relative_to(ROOT).as_posix()})"
        shown = ", ".join(f"`{name}`" for name in options)
        rows.append(
            (
                link,
                f"`{cls.name}`",
                to_markdown(_first_paragraph(ast.get_docstring(module))),
                shown,
            )
        )
    return make_table(("file", "class", "what it is", "options"), rows)


def _summarize(value: object) -> str:
    """Return the first paragraph of a docstring, in one line."""
    return to_markdown(_first_paragraph(inspect.getdoc(value)))


def _first_paragraph(docstring: str | None) -> str:
    assert docstring
    return docstring.partition("\n\n")[0].removesuffix("::")


def _read_paragraphs(cls: type) -> list[str]:
    """Return the paragraphs of a class's docstring before its arguments."""
    docstring = inspect.getdoc(cls)
    assert docstring
    return docstring.partition("\nArgs:\n")[0].rstrip().split("\n\n")


def _format_block(part: str) -> str:
    """Return a paragraph that is code or a list, as Markdown."""
    if part.startswith(" "):
        return f"```text\n{dedent(part)}\n```"
    return "\n".join(_wrap(item, "  ") for item in re.split(r"\n(?=- )", part))


def _wrap(text: str, indent: str = "") -> str:
    return fill(to_markdown(text), _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
