"""The commands of ``make demo`` and ``make install``."""

import shlex
import subprocess

import optuna
import pytest
from helpers import ROOT, TINY
from process_runner import query

from search.demo import build_command

FEW = tuple(
    f"--set=space.{gate}=[false]"
    for gate in ("input_gate", "forget_gate", "output_gate", "state_gate")
)


def test_demo_without_overrides_uses_the_shipped_studies():
    assert build_command("search", "2", []) == ["run_search.py", "quick", "--workers", "2"]
    assert build_command("refine", "2", []) == ["refine.py", "quick-refined", "--workers", "2"]
    assert build_command("report", "2", []) == ["-m", "reports", "quick", "quick-refined"]


def test_overrides_apply_only_to_studies_with_that_section():
    overrides = ["--set", "training.steps=20", "--set=space.layers=[2]", "--device", "space.cpu"]
    overrides += ["--set", "space={state_size=[8]}", "--set", "refinement.top=2"]
    search, refine = (build_command(step, "2", overrides) for step in ("search", "refine"))
    kept = ["--workers", "2", "--set", "training.steps=20"]
    device = ["--device", "space.cpu"]
    assert search[2:-2] == [
        *(*kept, "--set=space.layers=[2]", *device, "--set", "space={state_size=[8]}")
    ]
    assert refine[2:-4] == [*kept, *device, "--set", "refinement.top=2"]


@pytest.mark.extended
def test_demos_with_different_overrides_run_in_any_order(run, sqlite_url, text):
    common = (*TINY, *FEW, "--set", "refinement.top=2", "--corpus", str(text))
    one, other = ((*common, "--set", f"space.layers=[{layers}]") for layers in (1, 2))

    def demo(step: str, overrides: tuple[str, ...]) -> None:
        words = {"OVERRIDES": shlex.join(overrides), "RNN_SEARCH_STORAGE": sqlite_url}
        done = run("-m", "search.demo", step, "1", report=False, **words)
        assert done.returncode == 0, done.stdout + done.stderr

    for overrides in (one, other, one):
        demo("search", overrides)
    for overrides in (other, one):
        demo("refine", overrides)
        study, refined = build_command("report", "1", overrides)[2:]
        derived = optuna.load_study(study_name=refined, storage=sqlite_url)
        assert derived.user_attrs["config"]["refinement"]["source"] == study
    assert len(optuna.get_all_study_names(sqlite_url)) == 4
    assert query(sqlite_url, "SELECT DISTINCT state FROM trials") == [("COMPLETE",)]


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
