"""Plain PyTorch training loop, the baseline of the training benchmarks.

One-hot inputs, one ``Linear`` per gate over concatenated inputs, default Adam, the loss read back
at every step: a correct first implementation. ``python -m benchmarks.baseline_loop STEPS PARAMS``
trains one network for each parameter set of a JSON list, one after another.
"""

import json
import sys

import torch
from torch import Tensor, nn

from rnn.config import BYTE_VOCAB_SIZE, GatedConfig
from rnn.data.corpus import ByteArray, load_corpus
from rnn.training.loop import EMA_INIT, TrainConfig, sample_batch


class PlainLayer(nn.Module):
    """One gated layer."""

    def __init__(self, config: GatedConfig) -> None:
        super().__init__()
        n = config.state_size
        gate_size = 3 * n if config.gate_inputs == "candidate" else 2 * n
        readout_size = n * (config.reads_new_state + config.reads_previous_state + config.residual)
        self.config = config
        self.input_gate_x = nn.Linear(2 * n, n) if config.input_gate else None
        self.input_gate_h = nn.Linear(2 * n, n) if config.input_gate else None
        self.candidate = nn.Linear(2 * n, n)
        self.state_gate = nn.Linear(gate_size, n) if config.state_gate else None
        self.forget_gate = nn.Linear(gate_size, n) if config.forget_gate else None
        self.read_out = nn.Linear(readout_size, n)
        self.output_gate = nn.Linear(n + readout_size, n) if config.output_gate else None

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance x and h, each (B, n), by one step."""
        config = self.config
        gated_x, gated_h = x, h
        if self.input_gate_x is not None and self.input_gate_h is not None:
            c = torch.cat((x, h), dim=1)
            gated_x = torch.sigmoid(self.input_gate_x(c)) * x
            gated_h = torch.sigmoid(self.input_gate_h(c)) * h
        u = torch.tanh(self.candidate(torch.cat((gated_x, gated_h), dim=1)))
        if self.state_gate is not None:
            z = torch.sigmoid(self.state_gate(self._gate_input(gated_x, gated_h, u)))
            u = z * u + (1 - z) * h
        if self.forget_gate is not None:
            u = torch.sigmoid(self.forget_gate(self._gate_input(gated_x, gated_h, u))) * u
        inputs = [u] * config.reads_new_state + [gated_h] * config.reads_previous_state
        r = torch.cat(inputs + [x] * config.residual, dim=1)
        o = self.read_out(r)
        gate = o if self.output_gate is None else self.output_gate(torch.cat((o, r), dim=1))
        return torch.sigmoid(gate) * o, u.detach()

    def _gate_input(self, x: Tensor, h: Tensor, u: Tensor) -> Tensor:
        candidate = self.config.gate_inputs == "candidate"
        return torch.cat((x, h, u) if candidate else (x, h), dim=1)


class PlainNetwork(nn.Module):
    """Embedding, gated layers and head."""

    def __init__(self, config: GatedConfig) -> None:
        super().__init__()
        n = config.state_size
        self.embedding = nn.Linear(BYTE_VOCAB_SIZE, n)
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.layers))
        self.head = nn.Linear(n, BYTE_VOCAB_SIZE)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance by one step with one-hot tokens x, (B, 256)."""
        x, next_states = self.embedding(x), []
        for layer, h in zip(self.layers, states, strict=True):
            x, u = layer(x, h)
            next_states.append(u)
        return self.head(x), next_states


class PlainTraining:
    """Training of one network.

    Args:
        config: network config.
        text: training text.
        settings: train config.
    """

    def __init__(self, config: GatedConfig, text: ByteArray, settings: TrainConfig) -> None:
        # PyTorch's default: rnn.training.precision may have selected another library.
        if (onednn := getattr(torch.backends.mkldnn, "matmul", None)) is not None:
            onednn.fp32_precision = "none"
        self.network = PlainNetwork(config)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self.smoothed = EMA_INIT
        self._text, self._settings = text, settings
        self._shape = (settings.batch_size, config.state_size)

    def begin_sequence(self, number: int) -> None:
        """Sample a sequence, make its one-hot inputs and reset the states to zero."""
        tokens = torch.from_numpy(sample_batch(self._text, self._settings, number)).long()
        self._tokens, self._one_hot = tokens, nn.functional.one_hot(tokens, BYTE_VOCAB_SIZE).float()
        self._states = [torch.zeros(self._shape) for _ in self.network.layers]

    def step(self, t: int) -> None:
        """Train on the t-th token of the sequence."""
        logits, self._states = self.network(self._one_hot[t], self._states)
        loss = nn.functional.cross_entropy(logits, self._tokens[t + 1])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        decay = self._settings.smoothing
        self.smoothed = decay * self.smoothed + (1 - decay) * loss.item()


def train_plain(config: GatedConfig, text: ByteArray, settings: TrainConfig) -> float:
    """Train one network; return the minimum of the smoothed loss over the log points."""
    training = PlainTraining(config, text, settings)
    best = float("inf")
    for step in range(settings.steps):
        number, t = divmod(step, settings.sequence_length - 1)
        if t == 0:
            training.begin_sequence(number)
        training.step(t)
        if (step + 1) % settings.log_every == 0:
            best = min(best, training.smoothed)
    return best


def main() -> None:
    """Train the networks of the command line on one thread."""
    steps, params = int(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    text = load_corpus("stdlib").train
    for each in params:
        settings = TrainConfig(steps, 256, steps + 1, 50, 0.001, 0.95, 0)
        train_plain(GatedConfig.of(each, "state"), text, settings)


if __name__ == "__main__":
    main()
