"""Search recurrent networks from Python, in a script or a notebook.

::

    from rnn_search import run, load

    study = run("studies/quick.toml", workers=2, overrides={"training.steps": 500})
    study.results                           # a pandas.DataFrame, one row per trial
    study.effects().plot()                  # a Plotly figure
    study.best.network()                    # an nn.Module with the trained weights
    study.best.sample("The ", length=200)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnn_search.api import run
    from rnn_search.errors import ReportError, RNNError, SearchError, StudiesError
    from rnn_search.findings import Effects, Pareto
    from rnn_search.study import (
        Study,
        Trial,
        copy_study,
        delete_study,
        export_study,
        import_results,
        import_study,
        list_studies,
        load,
        rename_study,
        retry_trials,
    )

__version__ = "0.1.0"

_MODULES = {
    "api": ("run",),
    "errors": ("RNNError", "ReportError", "SearchError", "StudiesError"),
    "findings": ("Effects", "Pareto"),
    "study": (
        "Study",
        "Trial",
        "copy_study",
        "delete_study",
        "export_study",
        "import_results",
        "import_study",
        "list_studies",
        "load",
        "rename_study",
        "retry_trials",
    ),
}
"""Names of each module that the package exports."""

__all__ = [
    "Effects",
    "Pareto",
    "RNNError",
    "ReportError",
    "SearchError",
    "StudiesError",
    "Study",
    "Trial",
    "copy_study",
    "delete_study",
    "export_study",
    "import_results",
    "import_study",
    "list_studies",
    "load",
    "rename_study",
    "retry_trials",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is used first: PyTorch and pandas take seconds."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names that are imported when they are used, too."""
    return sorted({*globals(), *__all__})
