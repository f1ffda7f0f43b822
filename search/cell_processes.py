"""Checks of users' own cells in other processes: another hash seed, and nothing but an export."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rnn.cells.loading import load_cell, loaded_source
from rnn.cells.source import CellSource
from rnn.config import CellConfig, TrialConfig
from rnn.data.tokenizer import ByteTokenizer
from rnn.errors import CellError
from rnn.inference.export import export_files
from rnn.inference.saved_model import SavedModel
from rnn.models.cell_network import CellNetwork
from rnn.stacked.network import initialization_seed
from search.cell_checks import build, digest_network, draw_tokens, read_tokens

TIMEOUT = 600.0
"""Seconds after which a process counts as hanging; it takes a few."""

_STEPS = 5

_PROGRAM = Path(__file__).with_name("cell_check_program.py")


def digest_networks(request: dict[str, Any]) -> list[tuple[str, str]]:
    """Load the cells of a request, and return the digests of its networks."""
    for fields in request["sources"]:
        load_cell(CellSource(**fields))
    configs = []
    for fields in request["configs"]:
        options = tuple((name, value) for name, value in fields.pop("options"))
        configs.append(CellConfig(options=options, **fields))
    return list(map(digest_network, configs))


def check_processes(configs: Sequence[CellConfig]) -> None:
    """Require networks to be the same in other processes, and their exports to run alone.

    Raises:
        CellError: if a network differs with the hash seed, or an export does not run.
    """
    for fault in find_faults(configs):
        raise fault


def find_faults(configs: Sequence[CellConfig]) -> Iterator[CellError]:
    """Yield what is wrong with networks in other processes, at most one error for each.

    Two processes are started at the same moment; the hash seeds of Python are 1 and 2.

    Raises:
        CellError: if a process fails.
    """
    sources = {config.sha256 + config.cell: loaded_source(config) for config in configs}
    tokens = draw_tokens(_STEPS, 1)
    with tempfile.TemporaryDirectory(prefix="rnn-search-check-") as name:
        folder = Path(name)
        request = {
            "parent": os.getpid(),
            "path": [str(Path(path).resolve()) for path in sys.path],
            "sources": [asdict(source) for source in sources.values()],
            "configs": [asdict(config) for config in configs],
            "tokens": tokens[:, 0].tolist(),
        }
        (folder / "request.json").write_text(json.dumps(request))
        for number, config in enumerate(configs):
            _write_export(config, folder / str(number))
        first, second = _run(folder, len(configs), configs[0].cell)
    for number, config in enumerate(configs):
        fault = _compare(config, str(number), first, second, tokens)
        if fault:
            yield CellError(f"cell {config.cell}{fault}")


def _write_export(config: CellConfig, folder: Path) -> None:
    parameters = CellNetwork([TrialConfig(config)], 0).parameters
    weights = parameters.extract(0, parameters.values)
    folder.mkdir()
    for name, content in export_files(
        SavedModel(config, weights, ByteTokenizer(), "fp32", {})
    ).items():
        (folder / name).write_bytes(content)


def _run(folder: Path, exports: int, cell: str) -> list[dict[str, Any]]:
    """Run the program in two processes, and return their answers."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    answers, end = [], time.monotonic() + TIMEOUT
    with ExitStack() as on_exit:
        processes = []
        for seed, count in (("1", exports), ("2", 0)):
            # Neither the current folder nor that of the user is searched for modules.
            arguments = [sys.executable, "-s", "-P", _PROGRAM, folder, f"{seed}.json", count]
            # Not a pipe, which a process that the cell starts would keep open.
            errors = on_exit.enter_context((folder / f"{seed}.err").open("wb"))
            process = subprocess.Popen(
                list(map(str, arguments)),
                cwd=folder,
                env=clean | {"PYTHONHASHSEED": seed, "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            on_exit.callback(process.wait)
            on_exit.callback(process.kill)
            processes.append((seed, process))
        for seed, process in processes:
            try:
                process.wait(max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise CellError(
                    f"cell {cell}: a new process did not build it in {TIMEOUT:.0f} s: expected a "
                    "cell that waits for nothing"
                ) from error
            path = folder / f"{seed}.json"
            if not path.exists():
                printed = path.with_suffix(".err").read_text(errors="replace").strip()
                reason = printed.splitlines()[-1:] or [f"exit code {process.returncode}"]
                raise CellError(
                    f"cell {cell}: a new process cannot build it ({reason[0][:200]}): expected a "
                    "file that needs nothing but installed packages"
                )
            answers.append(json.loads(path.read_text()))
    return answers


def _compare(
    config: CellConfig,
    key: str,
    first: dict[str, Any],
    second: dict[str, Any],
    tokens: torch.Tensor,
) -> str:
    """Return what is wrong with a network, as the end of a message; "" if nothing is.

    Args:
        config: the network.
        key: its key in the answers.
        first: answer of the process that ran the export, too.
        second: answer of the other process.
        tokens: what the export read.
    """
    one, other = first["digests"][int(key)], second["digests"][int(key)]
    here = digest_network(config)[0]
    if one != other or one[0] != here:
        what = "outputs" if one[0] == other[0] == here else "initial weights"
        return (
            f" has other {what} in another process, with another hash seed of Python: expected "
            "nothing that depends on hash(), the order of a set, or the process"
        )
    if key in first["errors"]:
        return (
            f": its export does not run without this program: {first['errors'][key]}: expected a "
            "file that needs nothing but installed packages"
        )
    module = build(config, initialization_seed(TrialConfig(config), 0))
    logits = read_tokens(module, tokens)[0][0]
    if not torch.allclose(torch.tensor(first["logits"][key]), logits, rtol=1e-3, atol=1e-4):
        return (
            ": its export computes other numbers: expected a cell that depends on nothing but its "
            "options and its state dict"
        )
    return ""
