"""What a training loop saves of a trial: bytes, a file, or what ``torch.save`` writes."""

import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rnn.errors import CheckpointError, UserError

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
        return _load(self.payload)


def pack(state: Any, is_checked: bool) -> Mapping[str, Any]:
    """Return the fields ``kind``, ``name`` and ``payload`` of a state that a loop saves.

    That PyTorch reads what it writes is tried unless it ``is_checked``.

    Raises:
        UserError: if it is a folder, a file that cannot be read, or nothing that ``torch.save``
            writes and ``torch.load`` reads with ``weights_only``.
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
    return {"kind": "torch", "payload": _dump(state, is_checked)}


def _dump(state: Any, is_checked: bool) -> bytes:
    import torch  # slow, and a loop may do without it

    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        if not is_checked:
            _load(buffer.getvalue())
    except Exception as error:  # of any kind: pickle calls the state's own code
        reason = str(error).splitlines()[0]
        raise UserError(
            f"save: torch.load cannot read this {type(state).__name__} with weights_only "
            f"({reason}): expected bytes, a path, or tensors, numbers and texts in dicts and lists"
        ) from error
    return buffer.getvalue()


def _load(payload: bytes) -> Any:
    import torch  # as above

    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"torch.load cannot read the state ({reason})") from error


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
        file = getattr(module, "__file__", None)
        if file is None:
            continue
        path = Path(file)
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
    return "site-packages" not in path.parts and packages.isdisjoint(path.parents)
