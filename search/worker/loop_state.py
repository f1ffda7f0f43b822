"""What a training loop saves of a trial: bytes, a file, or what ``torch.save`` writes."""

import hashlib
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rnn.errors import CheckpointError, UserError
from search.errors import format_error

_MAGIC = b"rnn-search loop 1\n"
"""Start of a checkpoint: its format and version."""

_DIGEST = hashlib.sha256().digest_size

PayloadKind = Literal["bytes", "file", "torch"]


class LoopState(BaseModel):
    """The checkpoint of a trial of a user's loop.

    Attributes:
        step: step at which it was saved.
        curve: values of the metric by step, up to this step.
        metrics: values of the other logged names by step, up to this step.
        seconds: time that the trial has run.
        user_attrs: user attributes that the loop has set.
        source_hashes: hashes of the code that has run the trial.
        torch_versions: versions of PyTorch that it has run with.
        kind: what ``payload`` is.
        name: name of the file, if it is one.
        payload: what the loop has saved.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    step: int
    curve: dict[int, float]
    metrics: dict[str, dict[int, float]]
    seconds: float
    user_attrs: dict[str, Any]
    source_hashes: list[str]
    torch_versions: list[str]
    kind: PayloadKind
    name: str = ""
    payload: bytes = b""

    def serialize(self) -> bytes:
        """Return the checkpoint as bytes that :meth:`deserialize` reads."""
        header = self.model_dump_json(exclude={"payload"}).encode()
        content = len(header).to_bytes(8, "big") + header + self.payload
        return _MAGIC + hashlib.sha256(content).digest() + content

    @classmethod
    def deserialize(cls, data: bytes) -> "LoopState":
        """Read a checkpoint.

        Raises:
            CheckpointError: if it is damaged, or of another format.
        """
        content = data[len(_MAGIC) + _DIGEST :]
        expected = _MAGIC + hashlib.sha256(content).digest()
        if not data.startswith(expected):
            raise CheckpointError("the checkpoint is damaged or of another version")
        end = 8 + int.from_bytes(content[:8], "big")
        try:
            state = cls.model_validate_json(content[8:end])
        except ValidationError as error:
            raise CheckpointError("the checkpoint is of another version") from error
        return state.model_copy(update={"payload": content[end:]})

    def unpack(self, folder: Path) -> Any:
        """Return what the loop has saved; a file is written to a folder.

        Raises:
            CheckpointError: if PyTorch cannot read it.
        """
        if self.kind == "bytes":
            return self.payload
        if self.kind == "file":
            path = folder / self.name
            path.write_bytes(self.payload)
            return path
        try:
            return _load(self.payload)
        except Exception as error:  # of any kind: pickle calls the state's own code
            reason = _find_reason(error)
            raise CheckpointError(f"torch.load cannot read the checkpoint ({reason})") from error


def pack(state: Any) -> Mapping[str, Any]:
    """Return the fields ``kind``, ``name`` and ``payload`` of a state that a loop saves.

    Raises:
        UserError: if it is a folder, a file that cannot be read, or nothing that ``torch.save``
            writes.
    """
    if isinstance(state, bytes | bytearray | memoryview):
        return {"kind": "bytes", "payload": bytes(state)}
    if isinstance(state, Path | str):
        path = Path(state)
        try:
            return {"kind": "file", "name": path.name, "payload": path.read_bytes()}
        except OSError as error:
            raise UserError(
                f"save: {path} cannot be read ({error.strerror}): expected the path of a file, "
                "bytes, or what torch.save writes"
            ) from error
    import torch  # slow, and a loop may do without it

    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
    except Exception as error:  # of any kind, as above
        raise _refuse(state, error) from error
    return {"kind": "torch", "payload": buffer.getvalue()}


def check(state: Any) -> None:
    """Require that a state that a loop saves can be written, and read again.

    Raises:
        UserError: if not.
    """
    fields = pack(state)
    if fields["kind"] != "torch":
        return
    try:
        _load(fields["payload"])
    except Exception as error:  # of any kind, as above
        raise _refuse(state, error) from error


def _refuse(state: Any, error: Exception) -> UserError:
    return UserError(
        f"save: torch.load with weights_only cannot read this {type(state).__name__} "
        f"({_find_reason(error)}): expected bytes, a path, or tensors, numbers and texts in dicts "
        "and lists"
    )


def _find_reason(error: Exception) -> str:
    """Return what is wrong with a state: the class that PyTorch refuses, or the first line."""
    refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    return f"it has {refused[1]}" if refused else format_error(error)


def _load(payload: bytes) -> Any:
    import torch  # as above

    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def find_torch_version() -> str:
    """Return the version of PyTorch if the loop has imported it, else ""."""
    torch = sys.modules.get("torch")
    return str(torch.__version__) if torch is not None else ""


def hash_code(source: Path | None) -> str:
    """Return twelve hexadecimal digits of a loop's file and the modules next to it; "" without one.

    They are the imported modules in the file's folder and below it. Installed packages do not
    count.
    """
    if source is None:
        return ""
    folder = source.parent
    paths = {source}
    for module in list(sys.modules.values()):
        path = Path(getattr(module, "__file__", None) or "")
        if path.suffix == ".py" and path.is_relative_to(folder) and _is_own(path):
            paths.add(path)
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _is_own(path: Path) -> bool:
    """Return whether a module is neither installed nor of this program."""
    project = Path(__file__).parents[2]
    packages = {project / name for name in ("rnn", "search", "studies", "reports", "rnn_search")}
    is_installed = "site-packages" in path.parts or not packages.isdisjoint(path.parents)
    return path.is_file() and not is_installed
