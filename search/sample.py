"""``python -m search.sample STUDY``: generate text with the model of a trial."""

from studies.interrupts import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # the imports take seconds

import math
import os
import sys

import click

from rnn.export import SavedModel, generate
from search.errors import USER_ERRORS
from search.load_model import load_trial_model, model_options
from studies.cli import run_command, study_argument
from studies.text import to_printable


@click.command(help="Generate text with the model of a trial, if the study's task is text.")
@study_argument
@click.option("--prompt", metavar="TEXT", default="", help="Text to continue.")
@click.option(
    "--length",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Number of tokens to generate.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.8,
    show_default=True,
    help="Sampling temperature; 0 always takes the most likely token.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Sample from the K most likely tokens only."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of the sampling.",
)
@model_options
def sample(
    study: str,
    prompt: str,
    length: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    trial: int | None,
    storage: str,
    artifacts: str | None,
    debug: bool,
) -> int:
    """Print the prompt and its continuation."""
    if math.isnan(temperature):  # click accepts NaN in any range
        raise click.BadParameter("--temperature is nan: expected 0 or more")
    model = load_trial_model(study, trial, storage, artifacts).model
    start = os.fsencode(prompt)  # the bytes as typed, even if they are not valid UTF-8
    text = sample_text(model, start, length, temperature, top_k, seed)
    click.echo(text.encode(sys.stdout.encoding or "utf-8", "replace"))
    return 0


def sample_text(
    model: SavedModel,
    prompt: bytes,
    length: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> str:
    """Return a prompt and its continuation as printable text; see :func:`generate`.

    Raises:
        TaskError: if the model was trained on another task than text.
    """
    return to_printable(prompt + generate(model, prompt, length, temperature, top_k, seed))


if __name__ == "__main__":
    run_command(sample, USER_ERRORS, binary=("prompt",))
