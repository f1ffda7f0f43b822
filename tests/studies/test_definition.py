"""Definitions: what is shipped, what is refused and how, what is overridden and inherited."""

from contextlib import closing
from pathlib import Path

import pytest
from helpers import ROOT

from studies.attributes import CorpusRecord
from studies.compatibility import diff_configs
from studies.config import StudyConfig
from studies.errors import ConfigError
from studies.loader import load_config_file
from studies.storage.create import create_study
from studies.storage.open import open_storage

SHIPPED = (
    "quick",
    "quick-refined",
    "stage-one",
    "stage-two",
    "replicates",
    "baselines",
    "bptt-steps",
)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_definitions_are_valid_and_use_the_embedded_text(name):
    config = load_config_file(name).resolve()
    assert config.corpus == "stdlib"
    assert config.question


@pytest.mark.parametrize("path", sorted((ROOT / "docs/findings").glob("*.toml")), ids=str)
def test_the_definitions_behind_the_findings_are_valid(path):
    assert load_config_file(str(path)).resolve().question


def test_stage_one_is_the_exhaustive_search_of_432_points():
    config = load_config_file("stage-one").resolve()
    points = list(config.space.combinations())
    assert len(points) == 432
    assert not any(p["state_size"] == 32 and not p["residual"] for p in points)
    training = config.training
    assert (training.steps, training.batch_size, training.sequence_length) == (10_000, 256, 1000)
    assert (training.log_every, training.learning_rate, training.smoothing) == (50, 0.001, 0.95)


def test_quick_has_all_combinations_of_the_switches():
    config = load_config_file("quick").resolve()
    points = list(config.space.combinations())
    assert len(points) == 96
    assert len({tuple(list(p.values())[:6]) for p in points}) == 96


def test_stage_two_and_replicates_derive_from_each_other():
    two = load_config_file("stage-two").resolve()
    assert two.refinement.source == "stage-one"
    assert (two.refinement.top, two.training.steps) == (0.1, 50_000)
    assert len(two.refinement.variants) == 4
    replicates = load_config_file("replicates").resolve().refinement
    assert (replicates.source, replicates.top, replicates.replicates) == ("stage-two", 10, 10)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stepz=2", ["--set", "training.stepz", "steps, batch_size"]),
        ("trainin.steps=2", ["--set", "trainin", "question, report_threshold"]),
        ("training.steps='a'", ["--set", "training.steps is 'a'", "integer"]),
        ("training.steps=2.5", ["training.steps is 2.5", "integer"]),
        ("training.steps=10", ["--set", "log_every is 50 and steps 10", "at most"]),
        ("training=3", ["training is 3"]),
        ("space.layers=[]", ["space.layers is []", "one value or more"]),
        ("space.layers=[1, 1]", ["space.layers is [1, 1]", "each value once"]),
        ("space.layers=[true]", ["space.layers.0 is True", "integer"]),
        ("space.layers=[0]", ["space.layers.0 is 0", "greater than or equal to 1"]),
        ("space.state_size=[99999999999]", ["state_size.0 is 99999999999", "65536"]),
        ("training.learning_rate=inf", ["learning_rate is inf", "finite"]),
        ("seed=4294967296", ["seed is 4294967296", "4294967296"]),
        ("space.state_source=['x']", ["'x'", "'new', 'old' or 'both'"]),
        ("space.exclude=[{layer=2}]", ["'layer'", "input_gate, forget_gate"]),
        ("space.exclude=[{layers=9}]", ["layers = 9", "1, 2, 3"]),
        ("space.exclude=[{residual=1}]", ["residual = 1", "False, True"]),
        ("space.exclude=[{}]", ["every point"]),
        ("space.exclude=[{layers=1},{layers=2},{layers=3}]", ["no point", "at least one"]),
        ("precision='fp8'", ["precision is 'fp8'", "'auto', 'fp32', 'tf32' or 'bf16'"]),
        ("refinement.source='quick'", ["both of [space] and [refinement]", "one of them"]),
        ("seed=-1", ["seed is -1", "greater than or equal to 0"]),
        ("training.steps", ["'training.steps'", "KEY=VALUE"]),
        ("tokenizer='bpe'", ["tokenizer is 'bpe'", '"bytes", or "bpe:N"', "correct it"]),
        ("tokenizer='bpe:٣٠٠'", ["tokenizer is 'bpe:٣٠٠'", "from 257 to 65536"]),
        ("tokenizer='bpe:256'", ["tokenizer is 'bpe:256'", "from 257 to 65536"]),
        ("tokenizer='bpe:65537'", ["tokenizer is 'bpe:65537'", "from 257 to 65536"]),
        ("tokenizer='words:300'", ["tokenizer is 'words:300'"]),
        ("objective='test'", ["objective is 'test'", "'training' or 'validation'"]),
        ("eval_split='test'", ['eval_split = "test" and no replicates', "refinement.replicates"]),
        ("evaluation.average=1.0", ["evaluation.average is 1.0", "less than 1"]),
        ("keep_weights=-1", ["keep_weights is -1", "greater than or equal to 0"]),
        ("training.bptt_steps=0", ["training.bptt_steps is 0"]),
        ("space.bptt_steps=[1, 1]", ["space.bptt_steps is [1, 1]", "each value once"]),
        ("space.cell=['rnn']", ["'rnn'", "'elman', 'gru' or 'lstm'"]),
        ("corpus=text.txt", ["'text.txt'", "no TOML value", "with its quotes"]),
    ],
)
def test_what_is_wrong_is_refused_by_name(override, words):
    with pytest.raises(ConfigError) as refused:
        load_config_file("stage-one", [override]).resolve()
    line = str(refused.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_every_mistake_of_a_definition_is_named_with_its_origin(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "seed = -1\nobjektive = 'training'\n[space]\nlayers = [1, 'two']\nstate_size = [8]\n"
        "exclude = [{layers = 1.5}]\n[training]\nlog_every = 0\n[pruning]\nkeep = 2\n"
    )
    file = load_config_file(str(path), ["training={steps='many'}", "int=3"])
    file = file.with_overrides({"pruning": {"enabled": True}})
    with pytest.raises(ConfigError) as refused:
        file.resolve()
    line = str(refused.value)
    for mistake in (
        f"{path}: seed is -1; input should be greater than or equal to 0; ",
        f"{path}: objektive is no known key; allowed here: question, report_threshold, ",
        f"{path}: space.layers.1 is 'two'; input should be a valid integer; ",
        f"{path}: space.exclude.0.layers is 1.5; input should be a valid boolean, or input should "
        "be a valid integer, or input should be a valid string; ",
        f"{path}: training.log_every is 0; input should be greater than 0; ",
        f"{path}: pruning.keep is 2; input should be less than 1; ",
        "--set: training.steps is 'many'; input should be a valid integer; ",
        "--set: int is no known key; allowed here: question, report_threshold, ",
    ):
        assert line.count(mistake) == 1
    assert line.endswith("; correct them")
    assert line.count(str(path)) == 6
    assert line.count("--set") == 2
    assert "\n" not in line


def test_known_cells_have_no_switches_to_search_or_to_exclude():
    overrides = ["space.forget_gate=[true]"]
    with pytest.raises(ConfigError, match="has cell and forget_gate; allowed: one of them"):
        load_config_file("baselines", overrides).resolve()
    overrides = ["space.exclude=[{residual=true}]"]
    with pytest.raises(ConfigError, match="'residual'; allowed: cell, layers, state_size"):
        load_config_file("baselines", overrides).resolve()
    stored = load_config_file("baselines").resolve()
    assert StudyConfig.model_validate(stored.model_dump(mode="json")) == stored


def test_the_test_split_is_for_replicates_and_is_not_handed_down():
    replicates = load_config_file("replicates").resolve()
    assert replicates.eval_split == "test"
    derived = load_config_file("stage-two").resolve_over(replicates.model_dump(mode="json"))
    assert derived.eval_split == "validation"
    assert load_config_file("baselines").resolve().eval_split == "validation"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("refinement.top=0", ["refinement.top is 0"]),
        ("refinement.top=1.5", ["refinement.top is 1.5"]),
        ("refinement.variants=[]", ["one variant or more"]),
        ("refinement.variants=[{depth=3}]", ["'depth'", "layers, state_size"]),
        ("refinement.variants=[{layers='a'}]", ["layers", "'a'", "integer"]),
        ("refinement.replicates=0", ["refinement.replicates is 0"]),
    ],
)
def test_what_is_wrong_in_a_refinement_is_refused_by_name(override, words):
    with pytest.raises(ConfigError) as refused:
        load_config_file("stage-two", [override]).resolve()
    for word in words:
        assert word in str(refused.value)


def test_an_unknown_study_is_answered_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"'stage-three'.*quick.*stage-one"):
        load_config_file("stage-three")


def test_a_file_is_found_by_its_path_and_named_after_it(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[space]\nlayers = [1]\nstate_size = [8]\n")
    file = load_config_file(str(path), ["training.steps=99"])
    assert file.name == "mine"
    assert file.resolve().training.steps == 99


@pytest.mark.parametrize("content", [b"[space", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_refused_with_its_name(tmp_path: Path, content: bytes):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot be read as TOML"):
        load_config_file(str(path))


def test_a_derived_definition_inherits_what_it_does_not_state():
    overrides = ["seed=5", 'gate_inputs="candidate"', "training.batch_size=7"]
    source = load_config_file("stage-one", overrides).resolve()
    file = load_config_file("stage-two", ["training.sequence_length=10"])
    derived = file.resolve_over(source.model_dump(mode="json"))
    assert (derived.seed, derived.gate_inputs) == (5, "candidate")
    assert derived.training.batch_size == 7
    assert derived.training.steps == 50_000
    assert derived.training.sequence_length == 10
    assert derived.report_threshold == 1.6
    assert derived.space is None


CORPUS = CorpusRecord(name="a", sha256="0", length=100, split=(90, 95))


def alter(config: StudyConfig, override: str) -> StudyConfig:
    return load_config_file("stage-one", [override]).resolve()


def test_stored_study_is_found_by_its_name_and_nothing_is_created_for_it(url, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"stage-two, or the path of a TOML file; check"):
        load_config_file("mine", storage=url)
    assert sorted(tmp_path.iterdir()) == before
    with closing(open_storage(url)) as storage:
        config = load_config_file("stage-one", ["seed=7"]).resolve()
        attributes = {"config": config.model_dump(mode="json")}
        create_study(storage, "mine", "loss", attributes, {}, [])
    found = load_config_file("mine", storage=url)
    assert found.resolve() == config
    changed = load_config_file("mine", ["training.steps=60"], url).resolve()
    assert (changed.training.steps, changed.seed) == (60, 7)
    with pytest.raises(ConfigError, match=r"or a study in .* \(mine\); check the name"):
        load_config_file("yours", storage=url)
    with pytest.raises(ConfigError, match=r"or the path of a TOML file; check the name"):
        load_config_file("./mine.toml", storage=url)


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
def test_identity_holds_what_makes_results_comparable(override, key):
    stored = load_config_file("stage-one").resolve()
    (line,) = diff_configs(stored, CORPUS, alter(stored, override), CORPUS)
    assert line.startswith(f"{key}: ")


def test_identity_leaves_out_how_results_are_read_and_where_the_text_lies():
    stored = load_config_file("stage-one").resolve()
    elsewhere = CORPUS.model_copy(update={"name": "b"})
    for override in ("report_threshold=1.0", 'question="?"', 'corpus="b"', "keep_weights=3"):
        assert diff_configs(stored, CORPUS, alter(stored, override), elsewhere) == []
    other_text = CORPUS.model_copy(update={"sha256": "1"})
    assert diff_configs(stored, CORPUS, stored, other_text) == [
        "corpus.sha256: '0' in the study, '1' here"
    ]


def test_a_precision_of_auto_agrees_with_the_studys_and_a_stated_one_must_be_it():
    stored = alter(load_config_file("stage-one").resolve(), 'precision="fp32"')
    assert diff_configs(stored, CORPUS, alter(stored, 'precision="auto"'), CORPUS) == []
    (line,) = diff_configs(stored, CORPUS, alter(stored, 'precision="bf16"'), CORPUS)
    assert line == "precision: 'fp32' in the study, 'bf16' here"
