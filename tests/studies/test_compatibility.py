"""Config differences that make results incomparable."""

import pytest

from studies.attributes import CorpusRecord
from studies.compatibility import diff_configs
from studies.config import StudyConfig
from studies.loader import load_config_file
from studies.training import OPTIMIZER_PARAMS

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
        ('objective="training"', "objective"),
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


@pytest.mark.parametrize("bptt_steps", [None, [1, 16]])
@pytest.mark.parametrize("cell", [None, ["gru"]])
def test_config_stored_before_unions_is_compatible_with_the_same_file(cell, bptt_steps):
    """It has one table, with null for the parameters that the study lacks."""
    table = {"layers": [1], "state_size": [8]}
    given = {"cell": cell, "bptt_steps": bptt_steps}
    file = StudyConfig.model_validate(
        {"space": table | {name: value for name, value in given.items() if value is not None}}
    )
    raw = file.model_dump(mode="json")
    (stored,) = raw.pop("space")
    del stored["training"], stored["task"]
    del raw["nuisance"], raw["cells"], raw["task"], raw["task_record"]
    for name in {*OPTIMIZER_PARAMS, "update_every"} - {"learning_rate"}:
        del raw["training"][name]
    old = StudyConfig.model_validate(raw | {"space": stored | given})
    assert diff_configs(old, CORPUS, file, CORPUS) == []
    assert old == file
    other = StudyConfig.model_validate({"space": table | {"bptt_steps": [4]}})
    lines = diff_configs(old, CORPUS, other, CORPUS)
    assert any(line.startswith("space.training.bptt_steps: ") for line in lines)


def test_difference_of_a_union_names_its_table():
    one = {"layers": [1], "state_size": [8]}
    stored = StudyConfig.model_validate({"space": [one, one | {"layers": [2]}]})
    other = StudyConfig.model_validate({"space": [one, one | {"layers": [3]}]})
    assert diff_configs(stored, CORPUS, other, CORPUS) == [
        "space.2.layers: [2] in the study, [3] here"
    ]
