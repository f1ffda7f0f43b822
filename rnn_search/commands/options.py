"""Options and arguments that several commands share, and options made of a model's fields."""

from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click

from studies.locations import ARTIFACTS_VARIABLE, DEFAULT_STORAGE, STORAGE_VARIABLE
from studies.messages import study_name
from studies.option_models import Options, flag_of

_F = TypeVar("_F", bound=Callable[..., Any])

debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show the traceback of an error instead of one line.",
)


def storage_options(command: _F) -> _F:
    """Add the options ``--storage`` and ``--debug`` to a command."""
    command = debug_option(command)
    return click.option(
        "--storage",
        metavar="URL",
        default=DEFAULT_STORAGE,
        envvar=STORAGE_VARIABLE,
        show_default=True,
        show_envvar=True,
        help="Storage of the studies: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE.",
    )(command)


study_argument = click.argument("study", type=study_name)

studies_argument = click.argument(
    "studies", metavar="STUDY...", nargs=-1, required=True, type=study_name
)

artifacts_option = click.option(
    "--artifacts",
    metavar="FOLDER",
    envvar=ARTIFACTS_VARIABLE,
    show_envvar=True,
    help="Folder for checkpoints, weights and files of the dashboard; by default next to "
    "the SQLite file, or in studies/ if the storage is a server.",
)

task_option = click.option(
    "--task",
    metavar="NAME",
    default="",
    help="Task whose best network to take, in a study of several tasks.",
)

dashboard_port_option = click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="Port of optuna-dashboard.",
)


def options_of(model: type[Options], names: Iterable[str] | None = None) -> Callable[[_F], _F]:
    """Add an option to a command for each of these fields of a model, or for all."""
    if names is None:
        names = [name for name in model.model_fields if name not in Options.model_fields]

    def decorate(command: _F) -> _F:
        for name in reversed([*names]):
            command = _create_option(model, name)(command)
        return command

    return decorate


def _create_option(model: type[Options], name: str) -> Callable[[_F], _F]:
    field = model.model_fields[name]
    extra: Any = field.json_schema_extra or {}
    settings: dict[str, Any] = {key: value for key, value in extra.items() if key != "flag"}
    kinds = _list_types(field.annotation)
    if bool in kinds and field.default is None:
        settings["default"] = None
    elif bool in kinds:
        settings |= {"is_flag": True, "flag_value": not field.default, "default": field.default}
    elif tuple in kinds:
        settings.setdefault("multiple", True)
    else:
        settings["default"] = field.default
        settings.setdefault("show_default", field.default not in (None, ""))
        choices = [
            value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)
        ]
        if choices:
            settings["type"] = click.Choice(choices)
        elif int in kinds and name != "lockstep":
            settings["type"] = int
    return click.option(flag_of(model, name), name, help=field.description, **settings)


def _list_types(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows, without their bounds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _list_types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for inner in get_args(annotation) for kind in _list_types(inner)]
    return [tuple if origin is tuple else annotation]
