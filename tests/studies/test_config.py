"""Validation of study configs, those that the project ships, and how two of them differ."""

import re

import pytest
from helpers import with_text
from invocation import refused
from pydantic import ValidationError

from rnn.config import WHOLE_SEQUENCE
from rnn.errors import UserError
from studies.config import StudyConfig
from studies.loader import diff_configs, load_config_file
from studies.space import observed_search_space
from studies.study_settings import TrainingSettings, round_up_length
from studies.trial_params import to_trial_config

SHIPPED = ("quick", "quick-refined", "stage-one-rates", "cells", "stage-one", "stage-two")
SHIPPED += ("replicates", "baselines", "bptt-steps")


@pytest.mark.parametrize("name", SHIPPED, ids=str)
def test_shipped_configs_are_valid_and_use_the_embedded_corpus(name):
    config = load_config_file(str(name)).resolve()
    assert config.task.corpus == "stdlib"
    assert config.question


def test_stage_one_has_432_grid_trials():
    config = load_config_file("stage-one").resolve()
    combinations = list(config.grid.combinations())
    assert len(combinations) == 432
    assert not any(p["state_size"] == 32 and not p["residual"] for p in combinations)
    training = config.training
    assert (training.steps, training.batch_size, training.sequence_length) == (10_000, 256, 1000)
    assert (training.log_every, training.learning_rate, training.smoothing) == (50, 0.001, 0.95)


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("training.stepz=2", ["training.stepz: did you mean 'steps'? expected one of steps, up"]),
        ("learning_rate=0.1", ["learning_rate: did you mean 'training.learning_rate'? expected"]),
        ("space.replicate=[0, 1]", ["replicates = 3 in [space] or", "another seed for all"]),
        ("seeds=[0, 1]", ["unknown key seeds: several runs of each architecture are replicates"]),
        ("space.replicates=0", ["space.replicates is 0: input should be greater"]),
        ("space.exclude=[{replicate=1}]", ["excludes 'replicate': expected one of"]),
        ("nuisance=['replicate']", ["nuisance names 'replicate': expected one of"]),
        ("training.steps=10", ["log_every is 50 and steps 10", "at most"]),
        ("space.training.warmup_steps=[10001]", ["warmup_steps is 10001 and training.steps 10000"]),
        ("space.layers=[1, 1]", ["space.layers is [1, 1]", "distinct values"]),
        ("space.exclude=[{layer=2}]", ["'layer': did you mean 'layers'? expected one of input"]),
        ("precision='fp8'", ["precision is 'fp8'", "'auto', 'fp32', 'tf32' or 'bf16'"]),
        ("task.tokenizer='bpe'", ["tokenizer is 'bpe'", '"bytes", or "bpe:N"']),
        ("task.tokenizer='bpe:3'", ["tokenizer is 'bpe:3'", "from 257 to 65536"]),
        ("eval_split='test'", ['has eval_split = "test": expected a refinement with repl']),
        (
            "training={steps=10,updates=10}",
            ["has training.steps and training.updates: expected one of them"],
        ),
        ("training={bptt_steps='sequence',update_every=5}", ["update_every is 5", "does not use"]),
        ("space.training={bptt_steps=[1,5],update_every=[10]}", ["exclude = [{ bptt_steps = 5, "]),
        ("refinement.variants=[{bptt_steps=5,update_every=10}]", ["bptt_steps is 5 and update_ev"]),
        ("task.length=3", ["task: the task text has no option length"]),
        ("space.task.length=[3]", ["the option task.length of the task text: it has none"]),
        ("space.cell=['rnn']", ["'rnn'", "elman, gru, lstm, or the class"]),
        ("corpus=text.txt", ["'text.txt'", "not a TOML value", "in quotes, in a shell"]),
    ],
)
def test_invalid_setting_is_named_with_its_value(override, fragments):
    name = "stage-two" if override.startswith("refinement.") else "stage-one"
    with refused(UserError, fragments):
        load_config_file(name, [override]).resolve()


def test_update_every_is_no_parameter_of_trials_with_one_update_for_each_sequence():
    """Windows of 10 steps end at all log points of sequences of 1,000 steps."""
    overrides = [
        "training={sequence_length=1001, steps=2000, log_every=1000}",
        "space.training={bptt_steps=['sequence', 1, 10], update_every=[1, 10, 100]}",
        "space.exclude=[{bptt_steps=10, update_every=100}, {state_size=32, residual=false}]",
        "nuisance=['update_every']",
    ]
    config = load_config_file("stage-one", overrides).resolve()
    trials = [to_trial_config(params, config) for params in config.grid.combinations()]
    windows = {(each.bptt_steps, each.update_every) for each in trials}
    numbers = {(1, 1), (1, 10), (1, 100), (10, 1), (10, 10)}
    assert windows == {*numbers, (WHOLE_SEQUENCE, WHOLE_SEQUENCE)}
    assert len(trials) == 6 * 432
    assert observed_search_space(config.grid.combinations())["bptt_steps"] == [1, 10, "sequence"]
    windows = [(params, None) for params in config.grid.combinations()]
    longer = load_config_file("stage-one", [*overrides, "training.log_every=500"]).resolve()
    assert longer.round_up_length("", windows).log_every == 1000


@pytest.mark.parametrize(
    ("training", "steps", "expected"),
    [
        ({"steps": 2000, "log_every": 500}, [30], (2010, 510)),
        ({"steps": 2010, "log_every": 510}, [30], (2010, 510)),
        ({"steps": 10, "log_every": 1}, [30], (30, 30)),
        ({"steps": 2000, "log_every": 50}, [10, 13], (2080, 130)),
        ({"updates": 2000}, [30], (60_000, 60)),
        ({"updates": 3, "log_every": 50}, [10], (30, 30)),
        ({"updates": 7, "log_every": 16, "bptt_steps": 16, "update_every": 16}, [50], (98, 50)),
        ({"steps": 48, "log_every": 15, "bptt_steps": 16, "update_every": 16}, [50], (48, 16)),
        ({"steps": 90, "log_every": 40, "bptt_steps": 16, "update_every": 16}, [50], (100, 50)),
        ({"steps": 100, "log_every": 50}, [97, 101], "expected multiples of 9797, because"),
        ({"updates": 2000}, [30, 40], "which are 60000 to 80000 steps in trials of one task"),
        ({"updates": 10, "warmup_steps": 11}, [30], "which have 10 updates: expected warmup"),
    ],
)
def test_training_is_rounded_up_to_updates_at_all_log_points(training, steps, expected):
    settings = TrainingSettings(**{"bptt_steps": "sequence", **training})
    trials = [(settings, length) for length in steps]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            round_up_length(settings.length, trials)
        return
    found = round_up_length(settings.length, trials)
    assert (found.steps, found.log_every) == expected
    assert round_up_length(found, trials) == found


HYPOTHESIS = {"statement": "c", "parameter": "layers", "before": 1, "after": 2, "expect": "lower"}

NO_MARGIN = "has no margin: expected the largest difference that counts as none"


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("own", {"refinement": {"replicates": 3}}, f"refinement {NO_MARGIN}"),
        ("squared error", {"refinement": {"replicates": 2}}, f"refinement {NO_MARGIN}"),
        ("own", {"refinement": {"replicates": 3, "margin": 500.0}}, ""),
        ("own", {"refinement": {"top": 1}}, ""),
        ("cross-entropy", {"refinement": {"replicates": 3}}, ""),
        ("own", {"hypothesis": [HYPOTHESIS]}, f"hypothesis 1 {NO_MARGIN}"),
        ("standardized squared error", {"hypothesis": [HYPOTHESIS]}, ""),
        ("own", {"report_threshold": -2.5}, ""),
        ("", {"report_threshold": -2.5}, "report_threshold is -2.5: expected a number above 0"),
    ],
)
def test_margins_and_thresholds_suit_the_loss(loss, settings, message):
    raw = settings | {"refinement": {"source": "a"} | settings.get("refinement", {})}
    if loss:
        task = {"source": "made:5", "loss": loss, "predicts_classes": True, "reads_tokens": True}
        sizes = {"steps": 5, "inputs": 2, "outputs": 3}
        raw |= {"task": {"source": "made:5"}, "task_record": task | sizes}
    if message:
        with pytest.raises(ValidationError, match=re.escape(message)):
            StudyConfig.model_validate(raw)
    else:
        config = StudyConfig.model_validate(raw)
        assert StudyConfig.model_validate_json(config.model_dump_json()) == config


# ------------------------------------------------------------------ differences to a study

STORED = with_text(load_config_file("stage-one").resolve())


def alter(override: str) -> StudyConfig:
    return with_text(load_config_file("stage-one", [override]).resolve())


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
        'task.tokenizer="bpe:300"',
        "training.bptt_steps=4",
    ],
)
def test_setting_that_changes_results_is_a_difference(override):
    (line,) = diff_configs(STORED, alter(override))
    assert line.startswith(f"{override.partition('=')[0]}: ")


def test_setting_that_does_not_change_results_is_no_difference():
    same = ("report_threshold=1.0", 'question="?"', 'task.corpus="b"', "keep_weights=3")
    for override in (*same, "told='include'"):
        assert diff_configs(STORED, alter(override)) == []
    other_text = with_text(load_config_file("stage-one").resolve(), "1")
    assert diff_configs(STORED, other_text) == ["task.corpus.sha256: 'ab' in the study, '1' here"]


def test_precision_auto_matches_any_precision():
    stored = alter('precision="fp32"')
    assert diff_configs(stored, alter('precision="auto"')) == []
    (line,) = diff_configs(stored, alter('precision="bf16"'))
    assert line == "precision: 'fp32' in the study, 'bf16' here"


def test_difference_of_a_union_names_its_table():
    one, two, three = ({"layers": [layers], "state_size": [8]} for layers in (1, 2, 3))
    stored, other = (StudyConfig.model_validate({"space": [one, each]}) for each in (two, three))
    lines = diff_configs(stored, other)
    assert lines == ["space.2.layers: [2] in the study, [3] here"]
