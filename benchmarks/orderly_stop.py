"""``python -m benchmarks.orderly_stop``: stop a stack of networks over networks of any speed.

Starts PostgreSQL, and a search that trains 32 networks of the study ``quick`` in lockstep, with a
delay in between; sends SIGTERM, and counts the requeued trials and the seconds to the exit. An
earlier version is measured with ``--checkout FOLDER``, by its command line and by SQL alone.
"""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

ROOT = Path(__file__).parents[1]

ROUND_TRIPS = (0.0, 0.001, 0.01, 0.03)
"""Seconds that are added to each round trip between the search and PostgreSQL."""

NETWORKS = 32
"""Networks in lockstep."""

HANG_SECONDS = 600
"""Seconds after which a search counts as hanging."""

SETTINGS = (
    "--set=training.steps=1000000",
    "--set=training.log_every=10",
    "--threads=1",
    "--device=cpu",
    "--precision=fp32",
)


def measure(checkout: Path = ROOT) -> Iterator[str]:
    """Yield a line for each round trip.

    Args:
        checkout: folder of the project's version to measure.
    """
    sys.path.append(str(ROOT / "tests"))
    services: Any = importlib.import_module("services")
    yield f"orderly stop: SIGTERM to a worker that trains {NETWORKS} networks in lockstep"
    with services.PostgreSQL() as server:
        for round_trip in ROUND_TRIPS:
            url = server.new_database()
            with services.SlowNetwork(server.port, round_trip) as network:
                slow_url = url.replace(f":{server.port}/", f":{network.port}/")
                held, requeued, seconds = _stop(checkout, url, slow_url)
            yield (
                f"  round trip of {1000 * round_trip:2.0f} ms: {requeued} of {held} requeued, exit "
                f"after {seconds:5.1f} s"
            )


def _stop(checkout: Path, url: str, slow_url: str) -> tuple[int, int, float]:
    """Start a search and stop it; return how many trials it held and requeued, and the seconds."""
    engine = sa.create_engine(url)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                sys.executable,
                str(checkout / "run_search.py"),
                "quick",
                f"--storage={slow_url}",
                f"--artifacts={folder}/artifacts",
                f"--lockstep={NETWORKS}",
                *SETTINGS,
            ],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_until_training(process, engine)
            held = _count(engine, "state = 'RUNNING'")
            start = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            process.wait(HANG_SECONDS)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
        left = _count(engine, "state = 'RUNNING'")
    engine.dispose()
    return held, held - left, seconds


def _wait_until_training(process: "subprocess.Popen[Any]", engine: sa.Engine) -> None:
    """Wait until the running trials have reported values at a few log points."""
    deadline = time.monotonic() + HANG_SECONDS
    reported = "trial_id IN (SELECT trial_id FROM trial_intermediate_values WHERE step >= 30)"
    while _count(engine, f"state = 'RUNNING' AND {reported}") < NETWORKS:
        if process.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"the search did not train {NETWORKS} networks in lockstep")
        time.sleep(0.2)


def _count(engine: sa.Engine, condition: str) -> int:
    try:
        with engine.connect() as connection:
            query = sa.text(f"SELECT count(*) FROM trials WHERE {condition}")
            return int(connection.scalar(query) or 0)
    except sa.exc.ProgrammingError:  # the search has not created the tables yet
        return 0


@click.command()
@click.option(
    "--checkout",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=ROOT,
    help="Folder of the version to measure; by default this one.",
)
def main(checkout: Path) -> None:
    """Print the requeued trials and the seconds to the exit, for each round trip."""
    for line in measure(checkout.resolve()):
        click.echo(line)


if __name__ == "__main__":
    main()
