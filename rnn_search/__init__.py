"""Search recurrent networks from Python, in a script or a notebook.

::

    from rnn_search import run, load

    study = run("studies/quick.toml", workers=2, overrides={"training.steps": 500})
    study.results                           # a pandas.DataFrame, one row per trial
    study.effects().plot()                  # a Plotly figure
    study.best.network()                    # an nn.Module with the trained weights
    study.best.sample("The ", length=200)

or by a training loop of your own::

    for trial in create_study("ablation.toml", load_if_exists=True).claim():
        with trial:
            trial.finish(train(**trial.params, seed=trial.seed))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnn.errors import UserError
    from rnn.scan import linear_scan
    from rnn_search.api import create_study, plan, run
    from rnn_search.printed_results import Effects
    from rnn_search.stored_studies import (
        delete_study,
        export_study,
        import_results,
        import_study,
        list_studies,
        rename_study,
        retry_trials,
    )
    from rnn_search.study import FrozenTrial, Study, load
    from search.worker.loop_trial import Trial, TrialStoppedError

__version__ = "0.1.0"

_MODULES = {
    "create_study": "rnn_search.api",
    "plan": "rnn_search.api",
    "run": "rnn_search.api",
    "Effects": "rnn_search.printed_results",
    "FrozenTrial": "rnn_search.study",
    "Study": "rnn_search.study",
    "Trial": "search.worker.loop_trial",
    "TrialStoppedError": "search.worker.loop_trial",
    "load": "rnn_search.study",
    "linear_scan": "rnn.scan",
}
"""Modules of the names of ``__all__`` that are not errors and not in ``stored_studies``."""

__all__ = [
    "Effects",
    "FrozenTrial",
    "Study",
    "Trial",
    "TrialStoppedError",
    "UserError",
    "create_study",
    "delete_study",
    "export_study",
    "import_results",
    "import_study",
    "linear_scan",
    "list_studies",
    "load",
    "plan",
    "rename_study",
    "retry_trials",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is used first: PyTorch and pandas take seconds."""
    if name in __all__:
        module = _MODULES.get(name, "rnn_search.stored_studies")
        if name == "UserError":
            module = "rnn_search.errors"
        return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names that are imported when they are used, too."""
    return sorted({*globals(), *__all__})
