"""A Transformer on recall of pairs, in a training loop of its own.

    python examples/loops/transformer.py

in several terminals shares the trials of one study among them. Ctrl-C stops a process between two
steps; the same command resumes its trial.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import rnn_search
from rnn.tasks.built_in import AssociativeRecall

PAIRS = 4
LENGTH = 32
VOCABULARY = 32
BATCH_SIZE = 64
STEPS = 300

SETTINGS = {
    "question": "Which parts of a Transformer does recall of pairs need?",
    "loop": {
        "metric": "loss",
        "unit": "nats per target",
        "steps": STEPS,
        "log_every": 50,
        "function": f"{Path(__file__).absolute()}:train",
    },
    "space": {
        "layers": [1, 2],
        "positions": [False, True],
        "replicates": 2,
    },
}


class Block(nn.Module):
    """Causal self-attention and an MLP, each on the normalised residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        hidden = [nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU()]
        self.mlp = nn.Sequential(*hidden, nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream (B, T, n) with what both parts add."""
        parts = self.attention(self.norm(x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, h, n/h)
        query, key, value = parts.transpose(1, 3).unbind(2)  # (B, h, T, n/h) each
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Embedding, blocks, and a linear head."""

    def __init__(self, layers: int, positions: bool, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width)) if positions else None
        self.blocks = nn.Sequential(*(Block(width, heads=2) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) of tokens (B, T)."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions[: tokens.shape[1]]
        return self.head(self.blocks(x))


def draw_batch(split: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Draw tokens and targets, (B, T) each; a target is -100 where nothing is asked."""
    task = AssociativeRecall(pairs=PAIRS, length=LENGTH, vocabulary=VOCABULARY)
    batch = task.sample(split, np.random.default_rng(seed), count)
    targets = np.where(batch["mask"], batch["targets"], -100)
    return torch.from_numpy(batch["inputs"]).long(), torch.from_numpy(targets).long()


def measure(model: nn.Module, tokens: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Return the loss in nats per target, and the share of the targets that are predicted."""
    logits = model(tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    is_right = logits.argmax(-1) == targets
    return loss, float(is_right[targets >= 0].float().mean())


def train(trial: rnn_search.Trial) -> float:
    """Train one Transformer; return its loss on held-out sequences."""
    torch.manual_seed(trial.seed)
    model = Transformer(**trial.params)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.set_user_attr("parameter_count", sum(p.numel() for p in model.parameters()))
    step, state = trial.resume(default=(0, None))
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    while step < STEPS:
        # Every configuration of a replicate reads the same batches, also after a resumption.
        loss, accuracy = measure(model, *draw_batch("train", trial.seed + step, BATCH_SIZE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        trial.log(step, loss=loss.item(), accuracy=accuracy)
        trial.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    with torch.no_grad():
        loss, accuracy = measure(model, *draw_batch("validation", 0, 512))
    trial.log(step, accuracy=accuracy)
    return loss.item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    study = rnn_search.create_study(SETTINGS, name="transformer", load_if_exists=True)
    for trial in study.claim():
        with trial:
            trial.finish(train(trial))
