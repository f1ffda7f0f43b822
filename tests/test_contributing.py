"""The recipes of CONTRIBUTING.md."""

import re

from helpers import ROOT

PACKAGES = ("reports", "rnn", "search", "studies")


def test_recipe_for_a_switch_covers_every_module_that_names_one():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipe = text.partition("## How to add a switch to the cell")[2].partition("\n## ")[0]
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "forget_gate" in path.read_text(encoding="utf-8")
    }
    assert len(modules) > 5
    assert modules <= set(re.findall(r"`([\w/]+\.py)`", recipe))
