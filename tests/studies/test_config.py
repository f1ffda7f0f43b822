"""Validation of study configs, and the configs that ship with the project."""

import pytest
from helpers import ROOT

from studies.errors import ConfigError
from studies.loader import load_config_file

SHIPPED = ("quick", "quick-refined", "stage-one-rates", "cells", "stage-one", "stage-two")
SHIPPED += ("replicates", "baselines", "bptt-steps")


@pytest.mark.parametrize("name", [*SHIPPED, *map(str, (ROOT / "docs/findings").glob("*.toml"))])
def test_shipped_configs_are_valid_and_use_the_embedded_corpus(name):
    config = load_config_file(name).resolve()
    assert config.corpus == "stdlib"
    assert config.question


def test_stage_one_has_432_grid_trials():
    config = load_config_file("stage-one").resolve()
    combinations = list(config.grid.combinations())
    assert len(combinations) == 432
    assert not any(p["state_size"] == 32 and not p["residual"] for p in combinations)
    training = config.training
    assert (training.steps, training.batch_size, training.sequence_length) == (10_000, 256, 1000)
    assert (training.log_every, training.learning_rate, training.smoothing) == (50, 0.001, 0.95)


def test_quick_has_all_combinations_of_the_switches_at_three_learning_rates():
    config = load_config_file("quick").resolve()
    combinations = list(config.grid.combinations())
    assert len(combinations) == 288
    assert config.nuisance == ["learning_rate"]
    assert len({tuple(list(p.values())[:6]) for p in combinations}) == 96
    pinned = load_config_file("quick", ["space.training.learning_rate=[0.01]"]).resolve()
    assert (pinned.grid.count(), pinned.nuisance) == (96, ["learning_rate"])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("training.stepz=2", ["training.stepz: did you mean 'steps'? expected one of steps, ba"]),
        ("learning_rate=0.1", ["learning_rate: did you mean 'training.learning_rate'? expected"]),
        ("space.replicate=[0, 1]", ["rnn-search refine replicates --set", "seed = 1"]),
        ("training.steps=10", ["--set", "log_every is 50 and steps 10", "at most"]),
        ("space.training.warmup_steps=[10001]", ["warmup_steps is 10001 and training.steps 10000"]),
        ("space.layers=[]", ["space.layers is []", "at least one value"]),
        ("space.layers=[1, 1]", ["space.layers is [1, 1]", "distinct values"]),
        ("space.state_size=[99999999999]", ["state_size.0 is 99999999999", "65536"]),
        ("training.learning_rate=inf", ["learning_rate is inf", "finite"]),
        ("seed=4294967296", ["seed is 4294967296", "4294967296"]),
        ("space.state_source=['x']", ["'x'", "'new', 'old' or 'both'"]),
        ("space.exclude=[{layer=2}]", ["'layer': did you mean 'layers'? expected one of input"]),
        ("space.exclude=[{layers=9}]", ["layers = 9", "1, 2, 3"]),
        ("space.exclude=[{residual=1}]", ["residual = 1", "False, True"]),
        ("precision='fp8'", ["precision is 'fp8'", "'auto', 'fp32', 'tf32' or 'bf16'"]),
        ("refinement.top=0", ["refinement.top is 0"]),
        ("refinement.variants=[]", ["at least one variant"]),
        ("refinement.variants=[{warmup_steps=10000001}]", ["warmup_steps is 10000001"]),
        ("refinement.variants=[{layer=3}]", ["'layer': did you mean 'layers'?", "layers, sta"]),
        ("refinement.variants=[{layers='a'}]", ["layers", "'a'", "integer"]),
        ("tokenizer='bpe'", ["tokenizer is 'bpe'", '"bytes", or "bpe:N"']),
        ("tokenizer='bpe:٣٠٠'", ["tokenizer is 'bpe:٣٠٠'", "from 257 to 65536"]),
        ("objective='test'", ["objective is 'test'", "'training' or 'training-mean'"]),
        ("eval_split='test'", ['eval_split = "test" without replicates', "refinement.replicates"]),
        ("evaluation.average=1.0", ["evaluation.average is 1.0", "less than 1"]),
        ("space.bptt_steps=[1, 1]", ["space.training.bptt_steps is [1, 1]", "distinct values"]),
        ("space.cell=['rnn']", ["'rnn'", "elman, gru, lstm, or the class"]),
        ("corpus=text.txt", ["'text.txt'", "not a TOML value", "in quotes, in a shell"]),
    ],
)
def test_invalid_setting_is_named_with_its_value(override, fragments):
    name = "stage-two" if override.startswith("refinement.") else "stage-one"
    with pytest.raises(ConfigError) as caught:
        load_config_file(name, [override]).resolve()
    line = str(caught.value)
    assert "\n" not in line
    for fragment in fragments:
        assert fragment in line
