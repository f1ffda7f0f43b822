"""Program of the processes in which :mod:`search.cell_processes` checks users' cells.

It is run as a file, with a folder, the name of the answer in it, and the number of exports.
"""

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Run exports with nothing else to import, then build networks in this process."""
    folder, answer_name, exports = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    request = json.loads((folder / "request.json").read_text())
    threading.Thread(target=_end_with_parent, args=(request["parent"],), daemon=True).start()
    torch.set_num_threads(1)
    answer: dict[str, Any] = {"errors": {}, "logits": {}}
    own = ("reports", "rnn", "search", "studies")
    for name in own:
        sys.modules[name] = None  # type: ignore[assignment]  # its import raises an exception
    for number in range(exports):
        try:
            answer["logits"][number] = _run_export(folder / str(number), request["tokens"])
        except (Exception, SystemExit) as error:
            message = " ".join(str(error).split())[:200]
            answer["errors"][number] = f"{type(error).__name__} ({message})"
    for name in own:
        del sys.modules[name]
    sys.path[:] = request["path"]
    digest_networks = importlib.import_module("search.cell_processes").digest_networks
    answer["digests"] = digest_networks(request)
    (folder / answer_name).write_text(json.dumps(answer))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # a cell may hang


def _run_export(folder: Path, tokens: list[int]) -> list[float]:
    """Return the logits of an exported network after some tokens."""
    sys.path.insert(0, str(folder))
    try:
        network = importlib.import_module("network").Network()
        network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        states = network.init_state(1)
        with torch.inference_mode():
            for token in tokens:
                logits, states = network(torch.tensor([token]), states)
        result: list[float] = logits[0].tolist()
        return result
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(folder)):
                del sys.modules[name]


if __name__ == "__main__":
    main()
