"""Certification of users' own cells, before their first trial."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from rnn.cells.loading import describe_error
from rnn.config import CellConfig, ParamValue, format_value
from rnn.errors import CellError
from rnn.models.shapes import parameter_shapes
from search.cell_checks import CHECKS
from search.cell_processes import check_processes
from studies.cell_record import CellRecord, OptionRecord
from studies.config import StudyConfig
from studies.space import CELL, Params

STATE_SIZE = 16
"""State size of the networks that are checked, where a study does not say."""

MAX_STATE_SIZE = 64
"""State size that is large enough for a check."""

LAYERS = 2

_HINTS = {
    "dtype|scalar type": ": expected operands of one dtype, as in a @ b.to(a.dtype)",
    "through the graph a second time": ": expected nothing that is kept between two calls",
}
"""What to do about an exception of PyTorch, by a part of its message."""

_PROCESSES = "networks and exports are the same in a new process"


def certify_cells(config: StudyConfig, certified: StudyConfig | None = None) -> None:
    """Check the cells of a study on tiny networks, with the values of options that it has.

    A network of one layer is built of each combination of options and sizes.

    Args:
        config: config of the study; the cells that are checked are loaded.
        certified: config of the same study before an extension; cells that have the same values
            and sizes in it are not checked again.

    Raises:
        CellError: if one cannot be built, or breaks the contract of a cell.
    """
    networks: list[CellConfig] = []
    for name, record in config.cells.items():
        values, built = _read_values(config, name, record)
        if certified is not None and (values, built) == _read_values(certified, name, record):
            continue  # it may not even be loaded
        for network in built:
            parameter_shapes(network)
        size = min((each.state_size for each in built), default=STATE_SIZE)
        size = min(size, MAX_STATE_SIZE)
        networks += list_networks(name, record, values, size)
    if networks:
        check_networks(networks)


def _read_values(
    config: StudyConfig, name: str, record: CellRecord
) -> tuple[dict[str, list[ParamValue]], list[CellConfig]]:
    """Return the values that a study has for a cell's options, and its networks of one layer."""
    trials: Iterable[Params] = ()
    if config.grid is not None:
        trials = (params for params in config.grid.combinations() if params[CELL] == name)
    elif config.refinement is not None:  # its other values were checked with its source
        trials = config.refinement.variants
    values: dict[str, dict[ParamValue, None]] = {}
    networks: dict[CellConfig, None] = {}
    for params in trials:
        for option in params.keys() & record.options.keys():
            values.setdefault(option, {})[params[option]] = None
        if isinstance(size := params.get("state_size"), int):
            networks[_to_network(name, record, params, size, layers=1)] = None
    return {option: list(each) for option, each in values.items()}, list(networks)


def list_networks(
    name: str,
    record: CellRecord,
    values: Mapping[str, Sequence[ParamValue]],
    state_size: int = STATE_SIZE,
    base: Mapping[str, ParamValue] | None = None,
) -> list[CellConfig]:
    """Return the networks by which a cell is checked: each value of each option, one at a time.

    Args:
        name: name of the class.
        record: its record.
        values: values of options, besides those of a ``bool`` or a ``Literal``.
        state_size: n.
        base: values of the options that are not varied, in place of their defaults.
    """
    combinations: list[Params] = [dict(base or {})]
    for option, each in record.options.items():
        for value in (*_own_values(each), *values.get(option, ())):
            combinations.append({**combinations[0], option: value})
    networks: dict[str, CellConfig] = {}
    for params in combinations:
        network = _to_network(name, record, params, state_size, LAYERS)
        defaults = {option: each.default for option, each in record.options.items()}
        complete = defaults | dict(network.options)
        # Equal as the constructor sees them, whether the value is given or the default.
        networks.setdefault(repr(complete), network)
    return list(networks.values())


def _own_values(option: OptionRecord) -> list[ParamValue]:
    """Return the values of an option that has only a few."""
    if option.choices is not None:
        return option.choices
    return [False, True] if option.type == "bool" else []


def _to_network(
    name: str, record: CellRecord, params: Mapping[str, ParamValue], size: int, layers: int
) -> CellConfig:
    options = tuple(
        (option, each.convert([params[option]])[0])
        for option, each in record.options.items()
        if option in params
    )
    return CellConfig(name, record.sha256, options, layers, size)


def check_networks(
    networks: Sequence[CellConfig], on_passed: Callable[[str], None] = lambda _: None
) -> None:
    """Run every check on networks of users' cells.

    Args:
        networks: the networks, tiny ones.
        on_passed: called after each check, with what holds.

    Raises:
        CellError: if one fails, naming the cell and what to do.
    """
    for check in CHECKS:
        for network in networks:
            try:
                check.run(network)
            except CellError as error:
                raise CellError(f"{error}{_describe_options(network, str(error))}") from error
            except Exception as error:
                hints = (hint for part, hint in _HINTS.items() if re.search(part, str(error)))
                raise CellError(
                    f"cell {network.cell} raises {describe_error(error)}"
                    f"{_describe_options(network)}, in the check that {check.passed}"
                    f"{next(hints, '')}"
                ) from error
        on_passed(check.passed)
    check_processes(networks)
    on_passed(_PROCESSES)


def _describe_options(network: CellConfig, message: str = "") -> str:
    if not network.options or f", {network.options[0][0]}=" in message:
        return ""
    options = ", ".join(f"{name} = {format_value(value)}" for name, value in network.options)
    return f" (with {options})"
