"""Reference of the command line, from the commands themselves."""

import re
from collections.abc import Iterable
from textwrap import fill

import click

from docs.generator.settings import describe_bounds
from docs.generator.tables import make_table
from rnn_search.commands import rnn_search_command

PROGRAM = "rnn-search"

BASE = "run"
"""Command whose options others share."""

SHARED = ("--storage", "--artifacts", "--debug")
"""Options of many commands, which are described once."""

_CODE = re.compile(
    r"(?<![\w`-])(--[a-z][\w-]*(?: [a-z_.]+=[\w:]+)?|[a-z+]+://[^\s:;,]*[\w/]|[a-z_.]+=[\w:]+)"
)
"""Options, settings and URLs in the text of a command's help."""

_METAVARS = {"INTEGER RANGE": "N", "FLOAT": "X", "INTEGER": "N", "PATH": "FILE"}


def list_commands() -> str:
    """Return the table of the commands."""
    rows = [
        (f"[`{PROGRAM} {name}`](#{PROGRAM}-{name})", _first_sentence(command))
        for name, command in read_commands().items()
    ]
    return make_table(("command", "does"), rows)


def describe_shared_options() -> str:
    """Return the options that many commands have."""
    return _tabulate(BASE, [option for option in _options(BASE) if option.opts[0] in SHARED])


def describe_commands() -> str:
    """Return a section for each command: its usage, help and options."""
    return "\n".join(_describe_command(name) for name in read_commands())


def read_commands() -> dict[str, click.Command]:
    """Return the commands by name."""
    context = click.Context(rnn_search_command)
    group = rnn_search_command
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def _describe_command(name: str) -> str:
    command = read_commands()[name]
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    context = click.Context(command)
    usage = " ".join([PROGRAM, name, *(argument.make_metavar(context) for argument in arguments)])
    paragraphs = _format_help(command.help or "").split("\n\n")
    meaning = "\n\n".join(map(_wrap, paragraphs))
    text = f"### `{PROGRAM} {name}`\n\n```text\n{usage}\n```\n\n{meaning}\n"
    options = _options(name)
    own = [option for option in options if option.opts[0] not in SHARED]
    shared = [option.opts[0] for option in options if option.opts[0] in SHARED]
    base = {option.opts[0]: option.help for option in _options(BASE)} if name != BASE else {}
    inherited = [option for option in own if base.get(option.opts[0]) == option.help]
    if len(inherited) > 10:
        absent = [flag for flag in base if flag not in {option.opts[0] for option in options}]
        but = f" but {_list_code(absent)}" if absent else ""
        sentence = f"It has all options of [`{PROGRAM} {BASE}`](#{PROGRAM}-{BASE}){but}."
        text += f"\n{_wrap(sentence)}\n"
        own = [option for option in own if option not in inherited]
        shared = []
    if own:
        text += f"\n{_tabulate(name, own)}"
    if shared:
        text += f"\n[Shared options](#shared-options): {_list_code(shared)}.\n"
    return text


def _wrap(text: str) -> str:
    return fill(text, 118, break_on_hyphens=False)


def _options(name: str) -> list[click.Option]:
    params = read_commands()[name].params
    options = [param for param in params if isinstance(param, click.Option)]
    return [option for option in options if not option.hidden]


def _tabulate(name: str, options: Iterable[click.Option]) -> str:
    context = click.Context(read_commands()[name])
    rows = [
        (_format_names(option, context), _format_default(option), describe_option(option))
        for option in options
    ]
    return make_table(("option", "default", "meaning"), rows)


def _format_names(option: click.Option, context: click.Context) -> str:
    metavar = "" if option.is_flag else option.make_metavar(context)
    if isinstance(option.type, click.Choice):
        metavar = metavar.removeprefix("[").removesuffix("]")
    names = ", ".join([*option.opts, *option.secondary_opts])
    return f"`{names} {_METAVARS.get(metavar, metavar)}`" if metavar else f"`{names}`"


def _format_default(option: click.Option) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    return f"`{option.default}`" if option.show_default else ""


def describe_option(option: click.Option) -> str:
    """Return what an option means, with its bounds and its environment variable."""
    meaning = _format_help(option.help or "")
    kind = option.type
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds = {
            "exclusiveMinimum" if kind.min_open else "minimum": kind.min,
            "exclusiveMaximum" if kind.max_open else "maximum": kind.max,
        }
        meaning += f" A number{describe_bounds(bounds, isinstance(kind, click.IntRange))}."
    return f"{meaning} Variable: `{option.envvar}`." if option.envvar else meaning


def _format_help(text: str) -> str:
    """Write what a reader could type as code."""
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(_CODE.sub(r"`\1`", paragraph) for paragraph in paragraphs)


def _first_sentence(command: click.Command) -> str:
    (first, *_) = re.split(r"(?<=\.)\s", command.get_short_help_str(limit=1000))
    return _format_help(first)


def _list_code(names: Iterable[str]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last
