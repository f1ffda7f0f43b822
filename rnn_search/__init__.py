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
    from rnn_search.study import Effects, Study, Trial, load

__version__ = "0.1.0"

__all__ = ["Effects", "Study", "Trial", "load", "run"]


def __getattr__(name: str) -> Any:
    """Import a name when it is used first: PyTorch and pandas take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'api' if name == 'run' else 'study'}"), name)
