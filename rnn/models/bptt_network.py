"""Training of one reference network by truncated backpropagation through time.

At each time step there is one update, by the gradient of that step's loss through the last W steps
of the sequence, or as many as it has had (Williams & Peng, *An Efficient Gradient-Based Algorithm
for On-Line Training of Recurrent Network Trajectories*, 1990). W changes how far the gradient
reaches and nothing else: neither the text nor the number of updates. The weights change at every
step, so all W steps are recomputed from the state before them: a step costs W times as much.

B is the number of streams, n the state size, V the vocabulary size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rnn.config import (
    BYTE_VOCAB_SIZE,
    BaselineConfig,
    CellConfig,
    GatedConfig,
    Precision,
    TrialConfig,
)
from rnn.errors import CellError
from rnn.models.baselines import BASELINE_LAYERS
from rnn.models.bptt_window import BPTTWindow
from rnn.models.gated import GatedLayer, RecurrentLayer, RecurrentNetwork
from rnn.stacked.flat_parameters import FlatParameters, NamedTensors
from rnn.stacked.linear import StackedLinear, WeightSlice
from rnn.stacked.network import draw_initial_weights
from rnn.training.precision import configure_matmul


class BPTTNetwork:
    """A :class:`rnn.models.factory.TrainableNetwork` of one reference network, K = 1.

    It is a :class:`rnn.models.factory.WindowedNetwork` as well.

    Args:
        configs: the one config, of any cell and ``bptt_steps``.
        seed, precision, vocab_size, device, weights: as of
            :func:`rnn.models.factory.build_network`.

    Attributes:
        module: the network; its parameters are views of ``parameters``, except in bfloat16.

    Raises:
        ValueError: if there is more than one config, or ``bptt_steps`` is less than 1.
    """

    static_graph = True
    position: int | None = None
    separate_texts = False

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        seed: int,
        precision: Precision = "fp32",
        vocab_size: int = BYTE_VOCAB_SIZE,
        device: torch.device | None = None,
        weights: Mapping[TrialConfig, NamedTensors] | None = None,
    ) -> None:
        if len(configs) != 1:
            raise ValueError(
                f"{len(configs)} configs of baseline cells or with bptt_steps > 1 cannot be "
                "trained in lockstep: expected one"
            )
        (config,) = self.configs = tuple(configs)
        if config.bptt_steps < 1:
            raise ValueError(f"bptt_steps is {config.bptt_steps}: expected 1 or more")
        self.seed, self.precision = seed, precision
        self.vocab_size = vocab_size
        self.device = device or torch.device("cpu")
        self.layers, self.state_size = config.architecture.layers, config.architecture.state_size
        self._window = BPTTWindow(config.bptt_steps)
        configure_matmul(precision, self.device)

        architecture = config.architecture
        if isinstance(architecture, CellConfig):
            raise CellError(f"cell {architecture.cell} is not built in: expected a built-in cell")
        with torch.device("meta"):  # parameters become views of the flat ones
            self.module = build_module(architecture, vocab_size)
        fused = _fused_weights(architecture)
        linears = {
            path: _place_linear(path.rpartition(".")[2], linear, fused)
            for path, linear in self.module.named_modules()
            if isinstance(linear, nn.Linear)
        }
        embedding = linears["embedding"]
        self.parameters = FlatParameters(
            self.configs,
            [
                (path[: path.rfind(".") + 1], linear)
                for path, linear in linears.items()
                if linear is not embedding
            ],
            embedding,
            torch.float64 if precision == "fp64" else torch.float32,
            precision == "bf16",
            self.device,
            vocab_size,
        )
        params = (weights or {}).get(config) or draw_initial_weights(config, seed, vocab_size)
        self.parameters.load(0, self.parameters.values, params)

        self._leaves: list[Tensor] = []
        self._grads: list[Tensor] = []
        for path, flat in linears.items():
            is_bfloat16 = precision == "bf16" and flat is not embedding
            linear = _BFloat16Linear(flat) if is_bfloat16 else _view_linear(flat)
            self.module.set_submodule(path, linear)
            self._leaves += linear.parameters()
            self._grads.append(flat.weight_grad[0].T)
            if flat.has_bias:
                self._grads.append(flat.bias_grad[0, 0])

    def with_configs(self, weights: Mapping[TrialConfig, NamedTensors]) -> "BPTTNetwork":
        """Return a network of this config and weights, otherwise like this one."""
        return BPTTNetwork(
            list(weights), self.seed, self.precision, self.vocab_size, self.device, weights
        )

    def init_state(self, streams: int) -> list[Tensor]:
        """Return the states at a sequence's start: zeros (1, B, n) for each layer."""
        return [state[None] for state in self.module.init_state(streams)]

    def init_training_state(self, streams: int) -> list[Tensor]:
        """Return what training carries from step to step, at a sequence's start: zeros.

        See :class:`rnn.models.bptt_window.BPTTWindow`.
        """
        return self._window.begin(self.init_state(streams))

    @torch.no_grad()
    def forward(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step; return logits (1, B, V) and states (1, B, n)."""
        logits, next_states = self.module(tokens[None], [state[0] for state in states])
        return logits[None], [state[None] for state in next_states]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each stream (1, B), in nats."""
        return functional.cross_entropy(logits[0], targets, reduction="none")[None]

    def loss_and_grad(
        self, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Advance by one time step; compute the gradients of its loss through the last W steps."""
        position, self.position = self.position, None
        window = self._window.advance(tokens[None], states, position)
        with torch.enable_grad():
            start = [state[0] for state in window.states]
            logits, next_states = self.module(window.tokens[0], start)
            loss = functional.cross_entropy(logits, targets)
        grads = torch.autograd.grad(loss, self._leaves, materialize_grads=True)
        for target, grad in zip(self._grads, grads, strict=True):
            target.copy_(grad.detach())  # torch 2.7 makes zeros that require a gradient
        after = [state.detach()[None] for state in next_states]
        return loss.detach()[None], [*after, *window.carried]


def build_module(
    config: GatedConfig | BaselineConfig, vocab_size: int = BYTE_VOCAB_SIZE
) -> RecurrentNetwork:
    """Build the reference network of a config, with PyTorch's initial weights."""
    if isinstance(config, GatedConfig):
        layers: list[RecurrentLayer] = [GatedLayer(config) for _ in range(config.layers)]
    else:
        layers = [BASELINE_LAYERS[config.cell](config) for _ in range(config.layers)]
    return RecurrentNetwork(layers, config.state_size, vocab_size)


def _fused_weights(config: GatedConfig | BaselineConfig) -> dict[str, list[WeightSlice]]:
    """Map the linear modules of a :class:`GatedLayer` to the parameters that they are made of."""
    if isinstance(config, BaselineConfig):
        return {}
    n = config.state_size
    r = n * (config.reads_new_state + config.reads_previous_state + config.residual)
    gates = ["state_gate"] * config.state_gate + ["forget_gate"] * config.forget_gate
    uzf = [
        WeightSlice(name, rows=(0, 2 * n), offset=(0, n * column))
        for column, name in enumerate(["candidate", *gates])
    ]
    oy = [WeightSlice("read_out", rows=(0, r))]
    if config.output_gate:
        oy.append(WeightSlice("output_gate", rows=(n, r), offset=(0, n)))
    return {
        "W_i": [WeightSlice("input_gate", rows=(0, 2 * n))],
        "W_uzf": uzf,
        "W_z_u": [WeightSlice("state_gate", rows=(2 * n, n))],
        "W_f_u": [WeightSlice("forget_gate", rows=(2 * n, n))],
        "W_oy": oy,
        "W_y_o": [WeightSlice("output_gate", rows=(0, n))],
    }


def _place_linear(
    name: str, linear: nn.Linear, fused: Mapping[str, Sequence[WeightSlice]]
) -> StackedLinear:
    """Return the place of a linear module in the flat parameters."""
    slices = fused.get(name, [WeightSlice(name, (0, linear.in_features))])
    has_bias = linear.bias is not None
    return StackedLinear(range(1), linear.in_features, linear.out_features, slices, has_bias)


def _view_linear(flat: StackedLinear) -> nn.Linear:
    """Return an ``nn.Linear`` whose weight and bias are views of the flat parameters."""
    linear = nn.Linear(flat.in_features, flat.out_features, flat.has_bias, device="meta")
    linear.weight = nn.Parameter(flat.weight[0].T)
    if flat.has_bias:
        linear.bias = nn.Parameter(flat.bias[0, 0])
    return linear


class _BFloat16Linear(nn.Linear):
    """``nn.Linear`` with a product in bfloat16, and float32 input, output and gradients.

    The gradients of several time steps are therefore added in float32. ``weight`` and ``bias`` give
    autograd the shapes of the gradients and have no memory; the product reads the flat parameters.

    Args:
        flat: place of weight and bias in the flat parameters.
    """

    def __init__(self, flat: StackedLinear) -> None:
        super().__init__(flat.in_features, flat.out_features, flat.has_bias, device="meta")
        zero = flat.bias_grad.new_zeros(())
        self.flat = flat
        self.weight = nn.Parameter(zero.expand(self.out_features, self.in_features))
        if flat.has_bias:
            self.bias = nn.Parameter(zero.expand(self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _BFloat16Product.apply(x, self.weight, self.bias, self.flat)  # type: ignore[no-untyped-call]
        return y


class _BFloat16Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, flat: StackedLinear
    ) -> Tensor:
        low_x = x.reshape(-1, flat.in_features).bfloat16()
        ctx.save_for_backward(low_x)
        ctx.flat, ctx.shape = flat, x.shape
        w = flat.weight[0]
        y = low_x @ w if bias is None else torch.addmm(flat.bias[0], low_x, w)
        return y.float().view(*x.shape[:-1], flat.out_features)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (low_x,) = ctx.saved_tensors
        flat, dx = ctx.flat, None
        dy = dy.reshape(-1, flat.out_features)
        low_dy = dy.bfloat16()
        if ctx.needs_input_grad[0]:
            dx = (low_dy @ flat.weight[0].T).float().view(ctx.shape)
        dw = (low_x.T @ low_dy).float().T
        return dx, dw, dy.sum(0) if flat.has_bias else None, None
