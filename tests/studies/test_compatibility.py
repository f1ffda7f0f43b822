"""Config differences that make results incomparable."""

import pytest

from studies.attributes import CorpusRecord
from studies.compatibility import diff_configs
from studies.config import StudyConfig
from studies.loader import load_config_file
from studies.training import OPTIMIZER_PARAMS

CORPUS = CorpusRecord(name="a", sha256="0", length=100, split=(90, 95))


STORED = load_config_file("stage-one").resolve()


def alter(override: str) -> StudyConfig:
    return load_config_file("stage-one", [override]).resolve()


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=60",
        "seed=1",
        'gate_inputs="candidate"',
        "space.layers=[1, 2]",
        "evaluation.windows=3",
        "evaluation.average=0.0",
        'objective="training"',
        'tokenizer="bpe:300"',
        "training.bptt_steps=4",
    ],
)
def test_setting_that_changes_results_is_a_difference(override):
    (line,) = diff_configs(STORED, CORPUS, alter(override), CORPUS)
    assert line.startswith(f"{override.partition('=')[0]}: ")


def test_setting_that_does_not_change_results_is_no_difference():
    elsewhere = CORPUS.model_copy(update={"name": "b"})
    for override in ("report_threshold=1.0", 'question="?"', 'corpus="b"', "keep_weights=3"):
        assert diff_configs(STORED, CORPUS, alter(override), elsewhere) == []
    other_text = CORPUS.model_copy(update={"sha256": "1"})
    assert diff_configs(STORED, CORPUS, STORED, other_text) == [
        "corpus.sha256: '0' in the study, '1' here"
    ]


def test_precision_auto_matches_any_precision():
    stored = alter('precision="fp32"')
    assert diff_configs(stored, CORPUS, alter('precision="auto"'), CORPUS) == []
    (line,) = diff_configs(stored, CORPUS, alter('precision="bf16"'), CORPUS)
    assert line == "precision: 'fp32' in the study, 'bf16' here"


@pytest.mark.parametrize("given", [{}, {"bptt_steps": [1, 16]}, {"cell": ["gru"]}])
def test_config_stored_before_unions_is_compatible_with_the_same_file(given):
    """It has one table, with null for the parameters that the study lacks."""
    table = {"layers": [1], "state_size": [8]}
    file = StudyConfig.model_validate({"space": table | given})
    raw = file.model_dump(mode="json")
    (stored,) = raw.pop("space")
    del stored["training"], stored["task"]
    del raw["nuisance"], raw["cells"], raw["task"], raw["task_record"]
    for name in {*OPTIMIZER_PARAMS, "update_every"} - {"learning_rate"}:
        del raw["training"][name]
    stored |= {"cell": None, "bptt_steps": None} | given
    old = StudyConfig.model_validate(raw | {"space": stored})
    assert diff_configs(old, CORPUS, file, CORPUS) == []
    assert old == file


def test_difference_of_a_union_names_its_table():
    one, two, three = ({"layers": [layers], "state_size": [8]} for layers in (1, 2, 3))
    stored, other = (StudyConfig.model_validate({"space": [one, each]}) for each in (two, three))
    lines = diff_configs(stored, CORPUS, other, CORPUS)
    assert lines == ["space.2.layers: [2] in the study, [3] here"]
