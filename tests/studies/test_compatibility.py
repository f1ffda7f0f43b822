"""Config differences that make results incomparable."""

import pytest

from studies.attributes import CorpusRecord
from studies.compatibility import diff_configs
from studies.config import StudyConfig
from studies.loader import load_config_file

CORPUS = CorpusRecord(name="a", sha256="0", length=100, split=(90, 95))


def alter(config: StudyConfig, override: str) -> StudyConfig:
    return load_config_file("stage-one", [override]).resolve()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.steps=60", "training.steps"),
        ("seed=1", "seed"),
        ('gate_inputs="candidate"', "gate_inputs"),
        ("space.layers=[1, 2]", "space.layers"),
        ("evaluation.windows=3", "evaluation.windows"),
        ("evaluation.average=0.0", "evaluation.average"),
        ('objective="validation"', "objective"),
        ('tokenizer="bpe:300"', "tokenizer"),
        ("training.bptt_steps=4", "training.bptt_steps"),
    ],
)
def test_setting_that_changes_results_is_a_difference(override, key):
    stored = load_config_file("stage-one").resolve()
    (line,) = diff_configs(stored, CORPUS, alter(stored, override), CORPUS)
    assert line.startswith(f"{key}: ")


def test_setting_that_does_not_change_results_is_no_difference():
    stored = load_config_file("stage-one").resolve()
    elsewhere = CORPUS.model_copy(update={"name": "b"})
    for override in ("report_threshold=1.0", 'question="?"', 'corpus="b"', "keep_weights=3"):
        assert diff_configs(stored, CORPUS, alter(stored, override), elsewhere) == []
    other_text = CORPUS.model_copy(update={"sha256": "1"})
    assert diff_configs(stored, CORPUS, stored, other_text) == [
        "corpus.sha256: '0' in the study, '1' here"
    ]


def test_precision_auto_matches_any_precision():
    stored = alter(load_config_file("stage-one").resolve(), 'precision="fp32"')
    assert diff_configs(stored, CORPUS, alter(stored, 'precision="auto"'), CORPUS) == []
    (line,) = diff_configs(stored, CORPUS, alter(stored, 'precision="bf16"'), CORPUS)
    assert line == "precision: 'fp32' in the study, 'bf16' here"
