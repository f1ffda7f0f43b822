"""Trials derived from the best of a source study."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from factories import MIN_GRU, NO_GATES
from optuna.trial import TrialState

from rnn.errors import UserError
from search.derive import derive_trials, find_repeats
from studies.best import top_count
from studies.config import StudyConfig
from studies.storage.trials import StoredTrial

SOURCE = StudyConfig(space={"layers": [1, 2, 3], "state_size": [32, 256]})
SPACE = SOURCE.grid
VARIANTS = [
    {},
    {"state_size": 512},
    {"layers": 3, "state_size": 256},
    {"layers": 3, "state_size": 512},
]


def complete(number: int, value: float, params: dict | None = None) -> StoredTrial:
    return StoredTrial(params or {}, state=TrialState.COMPLETE, value=value, number=number)


def source(count: int = 40, failed: int = 0) -> list[StoredTrial]:
    """Return trials that get worse with their number; the last ones failed."""
    combinations = list(SPACE.combinations())[:count]
    return [
        complete(i, float(i), params)
        if i < count - failed
        else StoredTrial(params, state=TrialState.FAIL, number=i)
        for i, params in enumerate(combinations)
    ]


def config(nuisance: Sequence[str] = (), **refinement) -> StudyConfig:
    refinement = {"source": "s"} | refinement
    return StudyConfig.model_validate({"refinement": refinement, "nuisance": list(nuisance)})


def refine(
    trials: list[StoredTrial], derived: StudyConfig, keep: float = 0.1, **options
) -> list[StoredTrial]:
    pruning = SOURCE.pruning.model_copy(update={"keep": keep})
    source = SOURCE.model_copy(update={"pruning": pruning})
    return derive_trials(trials, derived, source, **options)


@pytest.mark.parametrize(
    ("best", "planned", "expected"),
    [(0.1, 96, 9), (0.1, 9, 1), (10, 130, 10), (0.29, 100, 29)],
)
def test_top_count_is_a_fraction_rounded_down_but_at_least_one(best, planned, expected):
    assert top_count(best, planned) == expected


def test_variants_are_applied_to_the_best_and_equal_trials_merged():
    trials = refine(source(), config(top=2, variants=VARIANTS))
    # The first two source trials differ only in their state size (32 and 256, one layer).
    seen = [(trial.params["layers"], trial.params["state_size"]) for trial in trials]
    assert seen == [(1, 32), (1, 512), (3, 256), (3, 512), (1, 256)]
    sources = [trial.attributes["source_trials"] for trial in trials]
    assert sources == [[0], [0, 1], [0, 1], [0, 1], [1]]


def test_source_with_replicates_is_ranked_by_mean_and_run_with_new_replicates():
    """The first architecture has the best run, the second the best mean."""
    combinations = list(SPACE.combinations())[:3]
    values = ([0.1, 0.9], [0.3, 0.4], [0.8, 0.8])
    runs = [
        (value, params | {"replicate": replicate})
        for params, pair in zip(combinations, values, strict=True)
        for replicate, value in enumerate(pair, 1)
    ]
    trials = [complete(number, *run) for number, run in enumerate(runs)]
    derived = refine(trials, config(top=2, replicates=2))
    assert [trial.params for trial in derived] == [
        combinations[i] | {"replicate": replicate} for i in (1, 0) for replicate in (3, 4)
    ]
    assert [sorted(trial.attributes["source_trials"]) for trial in derived[::2]] == [[2, 3], [0, 1]]
    (tenth,) = refine(trials, config(top=0.4))
    assert tenth.params == combinations[1], "a fraction of the architectures"
    for trial in trials:  # the loss on unseen text counts, whatever the values are
        trial.attributes["validation_bits_per_byte"] = -trial.value
    assert refine(trials, config(top=1))[0].params == combinations[2]


def test_too_few_complete_trials_are_rejected():
    study = source(count=10, failed=8)
    with pytest.raises(UserError, match=r"2 complete trials, but refinement.top = 0.5 needs 5"):
        refine(study, config(top=0.5))


def test_many_derived_trials_need_confirmation_before_they_are_listed():
    many = config(top=2, replicates=10_001)
    with pytest.raises(UserError, match=r"20,002 new trials: .* confirm with --yes"):
        refine(source(), many)
    with pytest.raises(UserError, match="20,000,000,000 new trials are too many"):
        refine(source(), config(top=2, replicates=10**10), confirmed=True)


# ------------------------------------------------------------------ nuisance parameters and unions

RATES = (0.1, 0.2, 0.4)


def at_rates(*values: list[float], **more) -> list[StoredTrial]:
    """Return GRU trials of 1, 2, … layers at each rate, in the order of the numbers."""
    runs = [
        (value, {"cell": "gru", "layers": layers, "state_size": 8, "learning_rate": rate} | more)
        for layers, row in enumerate(values, 1)
        for rate, value in zip(RATES, row, strict=True)
    ]
    return [complete(number, *run) for number, run in enumerate(runs)]


def test_architecture_is_judged_at_its_best_nuisance_value_which_is_carried_on():
    # The second is the best on average, the third at its best rate.
    trials = at_rates([9, 9, 2], [3, 3, 3], [1, 9, 9])
    rates = config(top=2, nuisance=["learning_rate"], variants=[{}, {"layers": 4}])
    derived = refine(trials, rates)
    shapes = [(trial.params["layers"], trial.params["learning_rate"]) for trial in derived]
    assert shapes == [(3, 0.1), (4, 0.1), (1, 0.4), (4, 0.4)]
    assert [trial.attributes["source_trials"] for trial in derived] == [[6], [6], [2], [2]]
    # Of all three architectures, not of nine trials.
    third = config(top=0.4, nuisance=["learning_rate"])
    assert [trial.params["layers"] for trial in refine(trials, third)] == [3]


def test_pruned_source_keeps_enough_trials_for_its_top_architectures():
    """Worst case: all trials of the better architectures come before the first of the next."""
    trials = at_rates([1, 2, 3], [4, 5, 6], [7, 8, 9])
    kept, pruned = trials[:4], trials[4:]
    pruned = [replace(row, state=TrialState.PRUNED, value=None) for row in pruned]
    two = config(top=2, nuisance=["learning_rate"])
    derived = refine(kept + pruned, two, keep=0.45)
    assert [trial.params["layers"] for trial in derived] == [1, 2]
    with pytest.raises(
        UserError,
        match=r"pruned to its top 3 of 9, but refinement.top = 2 needs the top 4: expected "
        "at most 1",
    ):
        refine(kept + pruned, two, keep=0.34)


UNION_SPACE = NO_GATES | {
    "cell": ["gated", "lstm", MIN_GRU["spec"]],
    "layers": [1],
    "state_size": [8],
    "residual": [True],
}
UNION = StudyConfig.model_validate({"cells": {"MinGRU": MIN_GRU}, "space": UNION_SPACE})


def refine_union(*variants: dict, **training) -> list[dict]:
    refinement = {"source": "s", "top": 3, "variants": list(variants)}
    derived = StudyConfig.model_validate(
        {"refinement": refinement, "cells": UNION.cells, "training": training}
    )
    trials = [complete(n, float(n), params) for n, params in enumerate(UNION.grid.combinations())]
    return [trial.params for trial in refine(trials, derived)]


def test_variant_is_applied_to_the_trials_that_have_its_parameters():
    gated, lstm, _ = refine_union({})
    changed = refine_union({}, {"forget_gate": True}, {"expansion": 2})
    assert changed[:3] == [gated, gated | {"forget_gate": True}, lstm]
    # The option is a parameter of all trials of the cell: 1.0 is its default.
    assert changed[3:] == [
        {"cell": "MinGRU", "expansion": size, "layers": 1, "state_size": 8} for size in (1.0, 2.0)
    ]
    assert isinstance(changed[4]["expansion"], float)
    assert list(changed[4]) == ["cell", "expansion", "layers", "state_size"]


def test_variant_of_the_block_is_applied_to_every_cell():
    plain, residual = {"block": "plain"}, {"block": "residual"}
    changed = refine_union({}, residual, plain)
    unchanged = refine_union({})
    assert changed == [params | block for params in unchanged for block in (plain, residual)]
    with pytest.raises(ValueError, match=r"a variant has block = 'deep': .*'plain' or 'residual'"):
        refine_union({"block": "deep"})


def test_variant_of_a_training_setting_is_applied_where_the_optimizer_uses_it():
    variants = {"learning_rate": 1}, {"optimizer": "sgd", "momentum": 0.5}
    changed = [params for params in refine_union(*variants) if params["cell"] == "lstm"]
    lstm = {"cell": "lstm", "layers": 1, "state_size": 8}
    assert changed == [
        lstm | {"optimizer": "adam", "learning_rate": 1.0},
        lstm | {"optimizer": "sgd", "learning_rate": 0.001, "momentum": 0.5},
    ]


def test_variant_that_applies_to_no_trial_is_refused():
    with pytest.raises(
        UserError, match="momentum; none of the best 3 of 's' has it: they have cell, "
    ):
        refine_union({}, {"momentum": 0.5})
    assert refine_union({"momentum": 0.5}, optimizer="sgd")[0]["momentum"] == 0.5
    with pytest.raises(UserError, match=r"unknown parameter in .*: forget_gate, expansion"):
        refine_union({"forget_gate": True, "expansion": 0.1})
    with pytest.raises(ValueError, match="a variant has expansion = 'x': expected a number"):
        refine_union({"expansion": "x"})


@pytest.mark.parametrize(
    ("optimizers", "setting", "values", "default"),
    [(["adam", "sgd"], "momentum", [0.0, 0.9], 0.9), (["sgd", "adam"], "beta1", [0.8, 0.9], 0.9)],
)
def test_run_that_a_change_of_the_optimizer_repeats_is_one(optimizers, setting, values, default):
    """The trial whose optimizer lacks the setting becomes the one at the study's value."""
    table = {"cell": ["gru"], "layers": [1], "state_size": [8]}
    training = {"optimizer": optimizers, "learning_rate": [0.01], setting: values}
    grid = StudyConfig(space=table | {"training": training}).grid
    trials = [complete(n, float(n), params) for n, params in enumerate(grid.combinations())]
    assert setting not in trials[0].params
    before, after = optimizers

    def derive(**refinement):
        changed = config(variants=[{}, {"optimizer": after}], **refinement)
        derived = refine(trials, changed)
        params = [trial.params for trial in derived]
        return derived, [(each["optimizer"], each.get(setting)) for each in params]

    derived, found = derive(top=3)
    assert found == [(before, None), (after, default), (after, values[0])]
    assert [trial.attributes["source_trials"] for trial in derived] == [[0], [0, 2], [1]]
    # The parameters of a trial do not depend on how many are derived.
    assert derive(top=1)[1] == [(before, None), (after, default)]


# ------------------------------------------------------------------ loops of one's own

LOOP = {"metric": "accuracy", "direction": "maximize", "steps": 10}
LOOP_SPACE = {
    "optimizer": ["adamw", "own"],
    "momentum": [0.0, 0.9],
    "bptt_steps": [2, 1],
    "cell": [7],
}


def configure_loop(**settings) -> StudyConfig:
    return StudyConfig.model_validate({"loop": LOOP} | settings)


def loop_trials(replicates: int = 1) -> tuple[StudyConfig, list[StoredTrial]]:
    """Return a source whose values get better with the number; one table lacks a parameter."""
    tables = [LOOP_SPACE, {"optimizer": ["plain"], "cell": [1]}]
    tables = [table | {"replicates": replicates} for table in tables]
    source = configure_loop(space=tables)
    rows = enumerate(source.grid.combinations())
    return source, [complete(number, float(number), params) for number, params in rows]


def test_best_trials_of_a_loop_are_those_of_the_highest_values_with_parameters_as_they_are():
    """Names of switches and training settings are the user's own."""
    source, trials = loop_trials()
    assert "momentum" not in trials[-1].params
    variants = [{}, {"momentum": 0.5}, {"optimizer": "new"}]
    refinement = {"source": "s", "top": 2, "variants": variants}
    names = ["optimizer", "momentum", "bptt_steps", "cell"]
    derived = configure_loop(refinement=refinement, loop_parameters=names)
    found = derive_trials(trials, derived, source)
    plain = trials[-1].params
    second = {"optimizer": "own", "momentum": 0.9, "bptt_steps": 1, "cell": 7}
    new = {"optimizer": "new"}
    expected = [plain, plain | new, second, second | {"momentum": 0.5}, second | new]
    assert [trial.params for trial in found] == expected
    # Unchanged trials would repeat runs of the source, which none of the others do.
    repeats = find_repeats(found, trials, source, derived)
    assert {place: run.number for place, run in repeats.items()} == {0: 8, 2: 7}


def test_replicates_of_a_loop_are_new_runs_of_the_configurations_of_the_best_means():
    source, trials = loop_trials(replicates=2)
    refinement = {"source": "s", "top": 1, "replicates": 2, "margin": 0.1}
    derived = configure_loop(refinement=refinement, loop_parameters=list(LOOP_SPACE))
    found = derive_trials(trials, derived, source)
    best = {"optimizer": "plain", "cell": 1}
    assert [trial.params for trial in found] == [best | {"replicate": number} for number in (2, 3)]
    assert find_repeats(found, trials, source, derived) == {}
    again = configure_loop(refinement={"source": "s", "top": 1}, loop_parameters=list(LOOP_SPACE))
    (first,) = derive_trials(trials, again, source)
    (run,) = find_repeats([first], trials, source, again).values()
    assert run.params == best | {"replicate": 0}
