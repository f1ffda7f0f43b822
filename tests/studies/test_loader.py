"""Loading of configs from files, overrides, source studies and stored studies."""

from pathlib import Path

import pytest
from helpers import QUICK
from invocation import refused

from rnn.errors import UserError
from studies.config import StudyConfig
from studies.loader import load_config_file
from studies.records import CellRecord

UNION = """
[[space]]
layers = [1]
state_size = [8]

[[space]]
cell = ["gru"]
layers = [1, 2]
state_size = [8]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Path of a study file with two tables of a space."""
    (tmp_path / "mine.toml").write_text(UNION)
    return tmp_path / "mine.toml"


def test_every_invalid_setting_is_named_with_its_value(path):
    path.write_text(
        "seed = -1\nobjektive = 'training'\n[space]\nlayers = [1, 'two']\nstate_size = [8]\n"
        "exclude = [{layers = []}]\n[pruning]\nkeep = 2\n"
    )
    file = load_config_file(str(path), ["training={steps='many'}"])
    mistakes = (
        f"{path}: seed is -1: input should be greater than or equal to 0; ",
        "unknown key objektive: did you mean 'objective'? expected one of quest",
        "space.layers.2 is 'two': input should be a valid integer; ",
        "space.exclude.1.layers is []: input should be a valid boolean, or input should "
        "be a valid integer, or input should be a valid number, or input should be a valid "
        "string; ",
        "pruning.keep is 2: input should be less than 1; ",
        "training.steps is 'many': input should be a valid integer",
    )
    with refused(UserError, mistakes):
        file.with_overrides({"pruning": {"enabled": True}}).resolve()


def test_invalid_toml_is_refused_with_its_path(path):
    for content in (b"[space", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"mine\.toml is not valid TOML"):
            load_config_file(str(path))


def test_derived_config_inherits_unspecified_settings_but_not_the_test_split():
    overrides = ["seed=5", 'gate_inputs="candidate"', "training.batch_size=7"]
    source = load_config_file("stage-one", overrides).resolve()
    file = load_config_file("stage-two", ["training.sequence_length=10"])
    derived = file.resolve_over(source.model_dump(mode="json"))
    assert (derived.seed, derived.gate_inputs, derived.report_threshold) == (5, "candidate", 1.6)
    training = derived.training
    assert (training.batch_size, training.steps, training.sequence_length) == (7, 50_000, 10)
    assert derived.space is None
    replicates = load_config_file("replicates").resolve()
    assert replicates.eval_split == "test"
    derived = load_config_file("stage-two").resolve_over(replicates.model_dump(mode="json"))
    assert derived.eval_split == "validation"


def test_mistake_in_a_union_names_its_table(path):
    for old, new, message in (
        ("[1, 2]", "[1, 'two']", "space.2.layers.2 is 'two': input should be a valid int"),
        (
            "[1, 2]",
            "[1]\nlayer = 3",
            "space.2.layer is 3: did you mean 'layers'? input should be a valid list",
        ),
        ("[1, 2]", "[1]\ntraining.learning_rate = ['x']", "space.2.training.learning_rate.1 is"),
        ("state_size = [8]\n\n", "\n", "space.1.state_size: field required"),
    ):
        path.write_text(UNION.replace(old, new, 1))
        with refused(UserError, f"{path}: {message}"):
            load_config_file(str(path)).resolve()


def test_override_of_the_space_changes_every_table(path):
    config = load_config_file(str(path), ["space.layers=[3]", "space.exclude=[]"]).resolve()
    assert [table.layers for table in config.space] == [[3], [3]]
    for override, mistake in (
        ("space.layers=[0]", "space.1.layers.1 is 0: "),
        ("space.exclude=[{depth=1}]", "space 1 excludes 'depth': "),
        ("space=3", "space is 3: "),
        ("nuisance=['layers', 'layers']", "nuisance names layers twice: "),
    ):
        with refused(UserError, f"{path}: {mistake}"):
            load_config_file(str(path), [override]).resolve()


def test_cells_of_a_file_are_named_but_never_stated(path):
    path.write_text(UNION.replace('"gru"', '"gru", "a.py:A", "b:B", "a.py:A", "c"'))
    file = load_config_file(str(path))
    assert file.cell_specs == ["a.py:A", "b:B"]
    assert (file.folder, file.name) == (path.parent, "mine")
    with pytest.raises(UserError, match="unknown key cells: expected one of question"):
        load_config_file(QUICK, ["cells={}"]).resolve()


def test_derived_study_inherits_nuisance_parameters_and_cells():
    record = CellRecord(spec="a.py:A", sha256="0" * 64)
    raw = {
        "space": {"cell": ["a.py:A"], "layers": [1, 2], "state_size": [8, 9]},
        "cells": {"A": record},
        "nuisance": ["layers"],
    }
    source = StudyConfig.model_validate(raw).model_dump(mode="json")
    file = load_config_file("stage-two", ["refinement.variants=[{learning_rate=1}]"])
    derived = file.resolve_over(source)
    assert derived.nuisance == ["layers"], "although each of its architectures has one value"
    assert derived.cells == {"A": record}
    assert repr(derived.refinement.variants) == "[{'learning_rate': 1.0}]"
    for override in ("nuisance=['depth']", "refinement.variants=[{norm=1}]"):
        with pytest.raises(UserError, match=r"names '\w+': expected one of input_gate"):
            load_config_file("stage-two", [override]).resolve_over(source)
