"""What a study holds of itself, for whoever works on it or reads it."""

import optuna
from pydantic import ValidationError

from rnn.corpus import Corpus
from rnn.vocabulary import Text, read_vocabulary
from studies.definition import Definition, read_definition
from studies.errors import StudyNotFound
from studies.records import CHECKPOINTS, DEFINITION, VOCABULARY


def stored_definition(study: optuna.Study) -> Definition:
    """Return the definition that a study was made with.

    Raises:
        StudyNotFound: if the study was not made by this program.
    """
    raw = study.user_attrs.get(DEFINITION)
    if raw is None:
        raise StudyNotFound(
            f"study {study.study_name!r} was not made by run_search.py or refine.py; allowed: "
            "studies that were; check the name"
        )
    try:
        return read_definition(raw)
    except ValidationError as error:
        raise StudyNotFound(
            f"study {study.study_name!r} is of another version of this program, which wrote a "
            f"definition with {error.error_count()} settings that this one does not know or allow; "
            "work on it with that version, or begin another under another --name"
        ) from error


def folder_of(study: optuna.Study) -> str:
    """Return the name of the folder that a study's files lie in, and no other's."""
    return str(study.user_attrs.get(CHECKPOINTS, f"study-{study._study_id}"))


def text_of(study: optuna.Study, corpus: Corpus) -> Text:
    """Return a study's text in the symbols that it was made with, whoever reads it now."""
    record = study.user_attrs.get(VOCABULARY, {})  # without one, it was made for bytes alone
    return Text(corpus, read_vocabulary(record.get("written")))
