"""Each mutant can be applied to the code as it is, and its tests exist."""

from collections import Counter

from mutants import load_mutants


def test_every_mutant_changes_one_place_and_names_tests_that_exist():
    mutants = load_mutants()
    mistakes = [f"{each.name}: {mistake}" for each in mutants if (mistake := each.find_mistake())]
    assert not mistakes, "\n".join(mistakes)
    assert len(mutants) >= 40
    assert max(Counter(each.name for each in mutants).values()) == 1
