"""The connection to a Ray cluster that is already running."""

import logging
import os
import socket
import warnings
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import ray
from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

from search.errors import LaunchError
from search.launch.launcher import PROJECT
from studies.text import shorten, to_line

ANSWER_SECONDS = 60.0
"""How long the cluster may take for a list of its tasks; the first one starts a process."""

CLIENT_PORT = 10001
"""Port of ``ray://`` addresses without one."""

_PACKAGES = ("reports", "rnn", "rnn_search", "search", "studies")

_EXCLUDED = (
    "?*.*",
    "!*.py",
    "!*.toml",
    "!*.c",
    "!*.h",
    "__pycache__",
    "artifacts",
    "checkpoints",
    "jobs",
    "weights",
)
"""Files that are not shipped to the nodes, such as the databases in ``studies/``."""

_retry = Retrying(
    retry=retry_if_exception_message(
        match=r"(?s)(?!.*Failed to create runtime_env)"
        r".*(Starting Ray client server failed|in start_specific_server\b)"
    ),
    stop=stop_after_attempt(4),
    reraise=True,
)
"""Calls again where the process that Ray starts for each client dies at once, as it may."""

_T = TypeVar("_T")


def join_cluster(address: str) -> str:
    """Connect this process to a cluster, whose nodes get the project's packages.

    Args:
        address: ``ray://HOST:PORT``; "" for ``$RAY_ADDRESS``, or a cluster on this machine.

    Returns:
        The URL of the cluster's dashboard.

    Raises:
        LaunchError: if no cluster answers, or its versions of Ray or Python are others.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = address or os.environ.get("RAY_ADDRESS", "")
    if where not in ("", "auto"):
        _require_answer(where)
    environment = {
        "py_modules": [str(PROJECT / package) for package in _PACKAGES],
        "excludes": [*_EXCLUDED],
        # A task that Ray ends must leave its worker the time to stop.
        "env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"},
    }
    try:
        with warnings.catch_warnings(action="ignore"):  # an error follows
            context = _retry(
                ray.init,
                address or "auto",
                runtime_env=environment,
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        raise LaunchError(_explain(where, error)) from error
    return f"http://{context.dashboard_url}"


def call_on_head(function: Callable[..., _T], *arguments: object) -> _T:
    """Call a function on the head node, from where the dashboard can always be reached.

    Raises:
        LaunchError: if it fails or does not answer.
    """
    # Without a core, so that it does not wait for the workers.
    call = ray.remote(function).options(num_cpus=0, resources={"node:__internal_head__": 0.001})
    try:
        result: _T = ray.get(call.remote(*arguments), timeout=ANSWER_SECONDS)
    except Exception as error:
        reason = to_line(shorten(str(getattr(error, "cause", None) or error), 300))
        raise LaunchError(f"Ray cannot list its tasks ({reason})") from error
    return result


def _require_answer(address: str) -> None:
    """Check that a port answers: Ray itself would try for two minutes.

    Raises:
        LaunchError: if it does not.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or CLIENT_PORT), 10).close()
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"no Ray cluster answers at {shorten(address)} ({error}): expected a running one, as "
            "in --launch ray://HOST:10001, or HOST:6379 in RAY_ADDRESS on one of its machines"
        ) from error


def _explain(address: str, error: Exception) -> str:
    """Return why a cluster cannot be joined, such as other versions of Ray or Python."""
    if not address and isinstance(error, ConnectionError):
        return (
            "no Ray cluster is running on this machine: start one with ray start --head, or name "
            "one, as in --launch ray://HOST:10001"
        )
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # of the server: its last line says why
        text = text.splitlines()[-1]
    reason = " ".join(text.split())
    return f"cannot join the Ray cluster at {shorten(address)}: {to_line(shorten(reason, 300))}"
