"""Removal of names from what a study stores: of machines, and of folders, which hold users' names.

A file of a study may be published. Machines become ``machine-1``, ``machine-2``, … in the order of
their trials, so that machines can still be distinguished; paths become their last part.
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from studies.attributes import ERROR, StudyRecord

_HOST, _WORKER = "host", "worker"

_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://[^\s'\"]*")

_QUOTED_PATH = re.compile(r"""(['"])[^'"=\[\]{}]*/([^/'"=\[\]{}]+)\1""")

_PATH = re.compile(r"""[^\s'"=,;:()\[\]{}]*/(?=[^\s/])""")


def shorten_paths(text: str) -> str:
    """Replace each path in a text by its last part, and each URL by its scheme."""
    text = _URL.sub(r"\1:", text)
    text = _QUOTED_PATH.sub(r"\1\2\1", text)
    return _PATH.sub("", text)


def anonymize_record(record: StudyRecord) -> StudyRecord:
    """Return what a study stores about itself without the folders of its files."""
    config = record.config
    corpus = PurePath(record.corpus.name).name
    cells = {
        name: cell.model_copy(update={"spec": shorten_paths(cell.spec)})
        for name, cell in config.cells.items()
    }
    space = config.space and tuple(
        each.model_copy(update={"cell": each.cell and [shorten_paths(cell) for cell in each.cell]})
        for each in config.space
    )
    changes = {"corpus": PurePath(config.corpus).name, "cells": cells, "space": space}
    ends = [
        end.model_copy(update={"command": shorten_paths(end.command)})
        for end in record.earlier_ends
    ]
    return record.model_copy(
        update={
            "config": config.model_copy(update=changes),
            "corpus": record.corpus.model_copy(update={"name": corpus}),
            "commands": [shorten_paths(command) for command in record.commands],
            "earlier_ends": ends,
        }
    )


class MachineNames:
    """Names of machines and workers without what they are called, in the order of their trials."""

    def __init__(self) -> None:
        self._hosts: dict[str, str] = {}
        self._workers: dict[str, str] = {}

    def add(self, value: Any) -> None:
        """Add the machine and the worker that attributes name, and records in them."""
        if isinstance(value, list):
            for item in value:
                self.add(item)
        if not isinstance(value, Mapping):
            return
        if isinstance(host := value.get(_HOST), str):
            self._hosts.setdefault(host, f"machine-{len(self._hosts) + 1}")
        if isinstance(worker := value.get(_WORKER), str) and worker not in self._workers:
            host = worker.partition("/")[0]
            machine = self._hosts.setdefault(host, f"machine-{len(self._hosts) + 1}")
            count = sum(each.startswith(f"{machine}/") for each in self._workers.values())
            self._workers[worker] = f"{machine}/{count + 1}"
        for item in value.values():
            self.add(item)

    def replace(self, value: Any) -> Any:
        """Return attributes with other names of machines and workers, and without paths."""
        if isinstance(value, list):
            return [self.replace(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        replaced = {key: self.replace(item) for key, item in value.items()}
        for key, names in ((_HOST, self._hosts), (_WORKER, self._workers)):
            if key in replaced:
                replaced[key] = names.get(replaced[key], replaced[key])
        if isinstance(error := replaced.get(ERROR), str):
            for host, name in self._hosts.items():
                error = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", name, error)
            replaced[ERROR] = shorten_paths(error)
        return replaced
