"""Generated parts of pages, committed so that GitHub shows them: the reference and the module map.

``python -m docs.generator.reference`` writes them again; a test compares them with the code.
"""

import re
from collections.abc import Callable

from docs.generator import classes, commands, modules, settings
from docs.generator.source_pages import ROOT
from studies.attributes import StudyRecord, TrialRecord

PAGES = (*sorted((ROOT / "docs" / "reference").glob("*.md")), ROOT / "docs" / "design.md")
"""Pages with generated parts."""

PARTS: dict[str, Callable[[], str]] = {
    "commands": commands.list_commands,
    "modules": modules.list_modules,
    "options of each command": commands.describe_commands,
    "shared options": commands.describe_shared_options,
    "other settings": lambda: settings.describe_settings(*settings.SMALL_TABLES),
    "public names": classes.list_public_names,
    "examples of cells": classes.list_cell_examples,
    "built-in tasks": classes.describe_built_in_tasks,
    "examples of tasks": classes.list_task_examples,
    "attributes of a trial": lambda: settings.describe_attributes(TrialRecord),
    "attributes of a study": lambda: settings.describe_attributes(StudyRecord),
} | {
    f"settings of {table}": lambda table=table: settings.describe_settings(table)
    for table in settings.STUDY_TABLES
    if table not in settings.SMALL_TABLES
}
"""What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``, by name."""

_PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def generate_parts(page: str) -> str:
    """Return the text of a page with its generated parts as the code is now.

    Raises:
        KeyError: if a part is unknown.
    """
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}", page)


def main() -> None:
    """Write the generated parts of all pages."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        path.write_text(generate_parts(text), encoding="utf-8")


if __name__ == "__main__":
    main()
