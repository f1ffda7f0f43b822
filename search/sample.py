"""``python -m search.sample STUDY``: what a trial's network writes."""

import math
import os
import sys

import click

from rnn.inference.generation import generate
from search.errors import USER_ERRORS
from search.load_model import load_trial_model, network_options
from studies.cli import run_command, study_argument
from studies.text import to_printable


@click.command(help="Print a text that a network of a study writes, after the prompt.")
@study_argument
@click.option("--prompt", metavar="TEXT", default="", help="What it is to go on with.")
@click.option(
    "--length",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Of what it writes, in symbols.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.8,
    show_default=True,
    help="The lower, the more it prefers what is likely; 0: the likeliest alone.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Draw among so many of the likeliest symbols."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of what is drawn.",
)
@network_options
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
    """Print a text."""
    if math.isnan(temperature):  # which is in every range
        raise click.BadParameter("--temperature nan is no number; allowed: 0 or more; correct it")
    network = load_trial_model(study, trial, storage, artifacts).network
    start = os.fsencode(prompt)  # as it was typed, whatever bytes those are
    written = generate(network, start, length, temperature, top_k, seed)
    text = to_printable(start + written)
    click.echo(text.encode(sys.stdout.encoding or "utf-8", "replace"))  # as it can be shown
    return 0


if __name__ == "__main__":
    run_command(sample, USER_ERRORS)
