"""Plain PyTorch training loop, the baseline of the training benchmarks.

The generated module of the network, with one ``Linear`` per gate over concatenated inputs; one-hot
inputs, default Adam, the loss read back at every step: a correct first implementation.
"""

from typing import Any

import torch
from torch import nn

from rnn.codegen import generate_module
from rnn.config import BYTE_VOCAB_SIZE, NetworkConfig, OptimizerConfig
from rnn.tasks.text import TextData
from rnn.tasks.tokenizer import TokenArray
from rnn.training.loop import TrainConfig


class PlainTraining:
    """Training of one network.

    Args:
        config: network config.
        text: training text.
        settings: train config.
        device: device to compute on; the CPU by default.
    """

    def __init__(
        self,
        config: NetworkConfig,
        text: TokenArray,
        settings: TrainConfig,
        device: torch.device | None = None,
    ) -> None:
        # PyTorch's default: rnn.training.devices may have selected another library.
        onednn = getattr(torch.backends.mkldnn, "matmul", None)
        if onednn is not None:
            onednn.fp32_precision = "none"
        names: dict[str, Any] = {"__name__": "network"}
        exec(generate_module(config), names)
        self._device = device or torch.device("cpu")
        self.network = names["Network"]().to(self._device)
        learning_rate = OptimizerConfig().learning_rate
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        self.smoothed = TextData.initial_loss
        self._data = TextData(text)
        self._settings = settings
        self._shape = (settings.batch_size, config.state_size)

    def begin_sequence(self, number: int) -> None:
        """Sample a sequence, make its one-hot inputs and reset the states to zero."""
        settings = self._settings
        batch = self._data.train_batch(
            settings.seed, number, 0, settings.batch_size, settings.sequence_length
        )
        tokens = torch.from_numpy(batch[0]).long().to(self._device)
        self._targets = torch.from_numpy(batch[1]).long().to(self._device)
        self._one_hot = nn.functional.one_hot(tokens, BYTE_VOCAB_SIZE).float()
        self._states = [torch.zeros(self._shape, device=self._device) for _ in self.network.layers]

    def step(self, t: int) -> None:
        """Train on the t-th token of the sequence."""
        x = self.network.embedding(self._one_hot[t])  # (B, n)
        for index, layer in enumerate(self.network.layers):
            x, state = layer(x, self._states[index])  # (B, n) each
            self._states[index] = state.detach()
        logits = self.network.head(x)  # (B, 256)
        loss = nn.functional.cross_entropy(logits, self._targets[t])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        decay = self._settings.smoothing
        self.smoothed = decay * self.smoothed + (1 - decay) * loss.item()
