"""What a study stores about itself, validated: its definition, its corpus, its vocabulary."""

from typing import Any, TypeVar

import optuna
from pydantic import BaseModel, ValidationError

from studies.definition import Definition
from studies.errors import StudyNotFound
from studies.records import CORPUS, DEFINITION, VOCABULARY, CorpusRecord, VocabularyRecord

_Model = TypeVar("_Model", bound=BaseModel)


def stored_definition(study: optuna.Study) -> Definition:
    """Return the definition that a study was created with.

    Raises:
        StudyNotFound: if another program, or another version of this one, wrote it.
    """
    raw = _attribute(study, DEFINITION)
    if isinstance(raw, dict) and isinstance(raw.get("evaluation", {}), dict):
        # Studies from before this setting existed evaluated the last weights.
        raw = raw | {"evaluation": {"average": 0.0} | raw.get("evaluation", {})}
    return _validate(study, DEFINITION, Definition, raw)


def stored_corpus(study: optuna.Study) -> CorpusRecord:
    """Return the corpus that a study is trained on; raises like :func:`stored_definition`."""
    return _validate(study, CORPUS, CorpusRecord, _attribute(study, CORPUS))


def stored_vocabulary(study: optuna.Study) -> VocabularyRecord | None:
    """Return a study's vocabulary, None for bytes; raises like :func:`stored_definition`."""
    raw = study.user_attrs.get(VOCABULARY)
    return None if raw is None else _validate(study, VOCABULARY, VocabularyRecord, raw)


def _attribute(study: optuna.Study, key: str) -> Any:
    raw = study.user_attrs.get(key)
    if raw is None:
        raise StudyNotFound(
            f"study {study.study_name!r} was not made by run_search.py or refine.py; allowed: "
            "studies that were; check the name"
        )
    return raw


def _validate(study: optuna.Study, key: str, model: type[_Model], raw: Any) -> _Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        location = ".".join(map(str, (key, *error.errors()[0]["loc"])))
        raise StudyNotFound(
            f"study {study.study_name!r} was written by another version of this program: "
            f"{location} is not valid here; use that version, or start a new study under another "
            "name"
        ) from error
