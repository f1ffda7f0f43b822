"""Search: create studies, train their trials, prune and refine them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search import cells_tasks as cells_tasks
    from search import networks as networks


def __getattr__(name: str) -> Any:
    """Import a module that needs PyTorch when it is used first: a loop does without."""
    if name in ("cells_tasks", "networks"):
        return import_module(f"search.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
