"""The plain way to train one network, against which the training step is measured.

One-hot inputs, one ``Linear`` a gate over joined inputs, default Adam, the loss read back at every
step: what one writes first, and right.
"""

import torch
from torch import Tensor, nn

from rnn.config import BYTE_VOCAB_SIZE, GatedConfig
from rnn.data.corpus import Bytes
from rnn.training.loop import EMA_INIT, TrainConfig, sample_batch


class PlainLayer(nn.Module):
    """One layer of one network."""

    def __init__(self, architecture: GatedConfig) -> None:
        super().__init__()
        a, n = architecture, architecture.state_size
        seen = 3 * n if a.gate_inputs == "candidate" else 2 * n
        read = n * (a.reads_new_state + a.reads_previous_state + a.residual)
        self.architecture = architecture
        self.input_gate_x = nn.Linear(2 * n, n) if a.input_gate else None
        self.input_gate_h = nn.Linear(2 * n, n) if a.input_gate else None
        self.candidate = nn.Linear(2 * n, n)
        self.state_gate = nn.Linear(seen, n) if a.state_gate else None
        self.forget_gate = nn.Linear(seen, n) if a.forget_gate else None
        self.read_out = nn.Linear(read, n)
        self.output_gate = nn.Linear(n + read, n) if a.output_gate else None

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Advance x and h, each (B, n), by one step."""
        a = self.architecture
        gated_x, gated_h = x, h
        if self.input_gate_x is not None and self.input_gate_h is not None:
            joined = torch.cat((x, h), dim=1)
            gated_x = torch.sigmoid(self.input_gate_x(joined)) * x
            gated_h = torch.sigmoid(self.input_gate_h(joined)) * h
        u = torch.tanh(self.candidate(torch.cat((gated_x, gated_h), dim=1)))
        if self.state_gate is not None:
            z = torch.sigmoid(self.state_gate(self._seen(gated_x, gated_h, u)))
            u = z * u + (1 - z) * h
        if self.forget_gate is not None:
            u = torch.sigmoid(self.forget_gate(self._seen(gated_x, gated_h, u))) * u
        parts = [u] * a.reads_new_state + [gated_h] * a.reads_previous_state + [x] * a.residual
        r = torch.cat(parts, dim=1)
        o = self.read_out(r)
        gate = o if self.output_gate is None else self.output_gate(torch.cat((o, r), dim=1))
        return torch.sigmoid(gate) * o, u.detach()

    def _seen(self, x: Tensor, h: Tensor, u: Tensor) -> Tensor:
        candidate = self.architecture.gate_inputs == "candidate"
        return torch.cat((x, h, u) if candidate else (x, h), dim=1)


class PlainNetwork(nn.Module):
    """A whole network."""

    def __init__(self, architecture: GatedConfig) -> None:
        super().__init__()
        n = architecture.state_size
        self.embedding = nn.Linear(BYTE_VOCAB_SIZE, n)
        self.layers = nn.ModuleList(PlainLayer(architecture) for _ in range(architecture.layers))
        self.head = nn.Linear(n, BYTE_VOCAB_SIZE)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance one-hot symbols x (B, 256) by one step."""
        x, after = self.embedding(x), []
        for layer, h in zip(self.layers, states, strict=True):
            x, u = layer(x, h)
            after.append(u)
        return self.head(x), after


class PlainTraining:
    """The training of one network.

    Args:
        architecture: of the network.
        text: to learn.
        settings: of the run.
    """

    def __init__(self, architecture: GatedConfig, text: Bytes, settings: TrainConfig) -> None:
        # As torch comes: rnn.training.precision has the process take products of another library.
        if (onednn := getattr(torch.backends.mkldnn, "matmul", None)) is not None:
            onednn.fp32_precision = "none"
        self.network = PlainNetwork(architecture)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self.smoothed = EMA_INIT
        self._text, self._settings = text, settings
        self._shape = (settings.batch_size, architecture.state_size)

    def begin_sequence(self, number: int) -> None:
        """Draw a sequence, make its one-hot inputs, set the states to zero."""
        tokens = torch.from_numpy(sample_batch(self._text, self._settings, number)).long()
        self._symbols, self._hot = tokens, nn.functional.one_hot(tokens, BYTE_VOCAB_SIZE).float()
        self._states = [torch.zeros(self._shape) for _ in self.network.layers]

    def step(self, t: int) -> None:
        """Learn the t-th symbol of the sequence."""
        logits, self._states = self.network(self._hot[t], self._states)
        loss = nn.functional.cross_entropy(logits, self._symbols[t + 1])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        past = self._settings.smoothing
        self.smoothed = past * self.smoothed + (1 - past) * loss.item()


def train_plainly(architecture: GatedConfig, text: Bytes, settings: TrainConfig) -> float:
    """Train one network as one writes it first; return the least smoothed loss at a log point."""
    training = PlainTraining(architecture, text, settings)
    least = float("inf")
    for step in range(settings.steps):
        number, t = divmod(step, settings.sequence_length - 1)
        if t == 0:
            training.begin_sequence(number)
        training.step(t)
        if (step + 1) % settings.log_every == 0:
            least = min(least, training.smoothed)
    return least
