"""Where workers run: the options ``--launch`` and ``--launch-set``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from studies.text import shorten

EXPECTED = "expected local, slurm, ray or ray://HOST:PORT"


@dataclass(frozen=True)
class LaunchTarget:
    """Where the workers of a run are started.

    Attributes:
        kind: this machine, or the kind of cluster.
        address: address of a Ray cluster, as ``ray://HOST:PORT``; "" for none.
        settings: options of the cluster's jobs, as given by ``--launch-set``.
    """

    kind: Literal["local", "slurm", "ray"] = "local"
    address: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether the workers are processes of this machine, without a cluster."""
        return self.kind == "local"


LOCAL = LaunchTarget()
"""The target without ``--launch``."""


def parse_target(text: str, settings: Sequence[str] = ()) -> LaunchTarget:
    """Parse the values of ``--launch`` and ``--launch-set``.

    Args:
        text: ``local``, ``slurm``, ``ray`` or ``ray://HOST:PORT``.
        settings: ``KEY=VALUE``; the last of a key counts.

    Raises:
        ValueError: if one is invalid.
    """
    pairs = [_parse_setting(setting) for setting in settings]
    if pairs and text == "local":
        raise ValueError("--launch-set requires --launch slurm or ray")
    if text == "local":
        return LOCAL
    if text == "slurm":
        return LaunchTarget("slurm", settings=dict(pairs))
    if text == "ray":
        return LaunchTarget("ray", settings=dict(pairs))
    if _is_ray_address(text):
        return LaunchTarget("ray", text, dict(pairs))
    raise ValueError(f"--launch has the value {shorten(text)!r}: {EXPECTED}")


def _is_ray_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme == "ray" and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is not a number
        return False


def _parse_setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(
            f"--launch-set has the value {shorten(text)!r}: expected KEY=VALUE, as in time=04:00:00"
        )
    return key, value
