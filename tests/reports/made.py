"""Studies that are made, not trained: what must come of them is known."""

import tempfile
from functools import cache
from pathlib import Path

from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from studies.definition import PARAMETERS, Definition
from studies.opening import open_storage
from studies.planning import PlannedPoint, create_study
from studies.records import METRICS
from studies.storage import Storage

RECORDED = {"host": "h", "device": "cpu", "threads": 1, "precision": "fp32", "seed": 0,
            "replicate": 0, "python": "3", "torch": "2", "code": "ab", "steps_per_second": 10.0,
            "validation_bits_per_character": 2.5}  # fmt: skip
"""Of every finished trial."""


@cache
def empty_database() -> bytes:
    """An SQLite file of no study: it takes longer to make than the studies here."""
    with tempfile.TemporaryDirectory() as folder:
        open_storage(f"sqlite:///{folder}/studies.db").close()
        return Path(folder, "studies.db").read_bytes()


def open_new(url: str) -> Storage:
    """Open a storage that may not be there yet."""
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:") and not path.exists():
        path.write_bytes(empty_database())
    return open_storage(url)


def make_study(
    url: str,
    name: str = "made",
    threshold: float | None = 2.0,
    finished: int = 8,
    exclude=(),
    diverged: int | None = 3,
    worker: str = "w",
    question: str = "",
):
    """A study of eight points: 1.5, 1.6, …, the fourth diverged, the rest waiting."""
    space = {"layers": [1, 2], "state_size": [4, 8], "residual": [False, True]}
    space |= {p: [False] for p in PARAMETERS[:4]} | {"state_source": ["new"]}
    space |= {"exclude": list(exclude)}
    definition = Definition.model_validate(
        {"space": space, "threshold": threshold, "question": question}
    )
    finished = min(finished, len(list(definition.space.points())))
    storage = open_new(url)
    create_study(
        storage,
        name,
        METRICS["training"],
        {
            "definition": definition.model_dump(mode="json"),
            "corpus": {"name": "text", "sha256": "ab", "length": 100, "split": [90, 95]},
        },
        {n: CategoricalDistribution(tuple(definition.space.values(n))) for n in PARAMETERS},
        [PlannedPoint(point) for point in definition.space.points()],
    )
    study_id = storage.get_study_id_from_name(name)
    for i in range(finished):
        trial_id = storage.claim(study_id, "me")
        value = 1.5 + i / 10
        storage.report(trial_id, "me", {50: value + 1, 100: value})
        if i == diverged:
            storage.finish(
                trial_id, "me", TrialState.FAIL, None, {"failure": "diverged", **RECORDED}
            )
        else:
            attributes = RECORDED | {"seconds": 2.0, "parameter_count": 10 + i, "worker": worker}
            storage.finish(trial_id, "me", TrialState.COMPLETE, value, attributes)
    storage.engine.dispose()


def make_derived(sqlite_url: str) -> None:
    """A study whose points come from two of another's: as they were, and with 16 states."""
    make_study(sqlite_url, diverged=None)
    definition = Definition.model_validate(
        {"refinement": {"source": "made", "variants": [{}, {"state_size": 16}]}}
    )
    point = dict.fromkeys(PARAMETERS[:5], False) | {"state_source": "new", "layers": 1}
    points = [
        (point | {"state_size": 4}, [0], 1.4),
        (point | {"state_size": 8}, [1], 1.3),
        (point | {"state_size": 16}, [0, 1], 1.2),  # of both: the variants coincide
    ]
    storage = open_storage(sqlite_url)
    create_study(
        storage,
        "derived",
        METRICS["training"],
        {
            "definition": definition.model_dump(mode="json"),
            "corpus": {"name": "text", "sha256": "ab", "length": 100, "split": [90, 95]},
            "commands": ["python refine.py derived --set 'refinement.best=2'"],
        },
        distributions_of([params for params, _, _ in points]),
        [PlannedPoint(params, {"source_trials": origin}) for params, origin, _ in points],
    )
    study_id = storage.get_study_id_from_name("derived")
    for _, _, value in points:
        curve = {50: value + 1, 100: value}
        trial_id = storage.claim(study_id, "me")
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {}, curve)
    storage.close()


def distributions_of(points: list[dict]) -> dict[str, CategoricalDistribution]:
    values = {name: dict.fromkeys(point[name] for point in points) for name in points[0]}
    return {name: CategoricalDistribution(tuple(found)) for name, found in values.items()}
