"""The commands of ``make demo`` and ``make install``."""

import subprocess

import pytest
from helpers import ROOT

from search.demo import build_command


def test_demo_without_overrides_uses_the_shipped_studies():
    assert build_command("search", "2", []) == ["run_search.py", "quick", "--workers", "2"]
    assert build_command("refine", "2", []) == ["refine.py", "quick-refined", "--workers", "2"]
    assert build_command("report", "2", []) == ["-m", "reports", "quick", "quick-refined"]


def test_overrides_apply_only_to_studies_with_that_section():
    overrides = ["--set", "training.steps=20", "--set=space.layers=[2]", "--device", "space.cpu"]
    overrides += ["--unset", "space.exclude"]
    overrides += ["--set", "space={state_size=[8]}", "--set", "refinement.top=2"]
    search, refine = (build_command(step, "2", overrides) for step in ("search", "refine"))
    kept = ["--workers", "2", "--set", "training.steps=20"]
    device = ["--device", "space.cpu"]
    assert search[2:-2] == [
        *(*kept, "--set=space.layers=[2]", *device, "--unset", "space.exclude"),
        *("--set", "space={state_size=[8]}"),
    ]
    assert refine[2:-4] == [*kept, *device, "--set", "refinement.top=2"]


def test_refinement_of_a_demo_derives_from_the_search_with_the_same_overrides():
    names = []
    for overrides in (["--set=space.layers=[1]"], ["--set=space.layers=[2]"]):
        search, refine = (build_command(step, "1", overrides) for step in ("search", "refine"))
        assert f'refinement.source="{search[-1]}"' in refine
        assert build_command("report", "1", overrides)[2:] == [search[-1], refine[-3]]
        names += [search[-1], refine[-3]]
    assert len(set(names)) == 4


def test_make_passes_overrides_to_the_demo_unchanged(tmp_path):
    typed = """--set "question='a  b'" --set corpus='"$HOME/x"'"""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "got %s\\n" "$OVERRIDES"\n')
    python.chmod(0o755)
    # -o: take the virtual environment as installed
    make = ["make", "-s", "-o", ".venv/.installed", "demo", f"RUN={python}", "WORKERS=1"]
    done = subprocess.run(
        [*make, f"OVERRIDES={typed}"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, "")
    got = [line for line in done.stdout.splitlines() if line.startswith("got ")]
    assert got == [f"got {typed}"] * 3


@pytest.mark.extended
def test_make_install_reports_progress_and_failure(tmp_path):
    """With an interpreter that creates an environment whose pip does nothing."""
    for name, code in (("works", 0), ("fails", 3)):
        python = tmp_path / name
        python.write_text(
            "#!/bin/sh\n"
            f'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi\n'
            f'case "$*" in *editable*) exit {code};; esac\n'
        )
        python.chmod(0o755)
        folder = tmp_path / f"venv-{name}"
        make = ["make", "--no-print-directory", "install", "WORKERS=1"]
        make += [f"PYTHON={python}", f"VENV={folder}"]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.stdout.startswith(f"installing into {folder}, which takes a minute or more\n")
        assert (done.returncode == 0) == (code == 0), done.stderr
        assert (folder / ".installed").exists() == (code == 0)
