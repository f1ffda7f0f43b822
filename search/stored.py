"""What the workers and readers of a study take from its attributes."""

import optuna

from rnn.corpus import Corpus
from rnn.vocabulary import Text, read_vocabulary
from studies.records import CHECKPOINTS
from studies.stored import stored_vocabulary


def folder_of(study: optuna.Study) -> str:
    """Return the name of the folder that a study's files lie in, and no other's."""
    return str(study.user_attrs.get(CHECKPOINTS, f"study-{study._study_id}"))


def text_of(study: optuna.Study, corpus: Corpus) -> Text:
    """Return a study's text in the symbols that it was made with, whoever reads it now."""
    record = stored_vocabulary(study)  # without one, it was made for bytes alone
    return Text(corpus, read_vocabulary(record.written if record else None))
