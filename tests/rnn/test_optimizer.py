"""Optimizers compute what torch.optim computes, in every precision, for each network of a stack."""

from collections.abc import Sequence

import pytest
import torch
from networks import SPEC
from torch import Tensor

from rnn.config import OPTIMIZERS, GatedOptions, OptimizerConfig, TrialConfig
from rnn.engines import Engine
from rnn.network import Window
from rnn.stacked.engine import NetworkStack
from rnn.training import optimizer
from rnn.training.optimizer import Optimizer

CONFIGS = [
    TrialConfig(GatedOptions(False, True, False, True, True, "new").network(2, 6)),
    TrialConfig(GatedOptions(True, True, True, True, True, "both").network(2, 6)),
    # Its candidate and gates never have a gradient.
    TrialConfig(GatedOptions(False, True, True, True, True, "old").network(2, 6)),
]

STEPS = 6
SETTINGS = [
    OptimizerConfig("adam", 0.01),
    OptimizerConfig("adam", 0.01, schedule="linear", warmup_steps=2),
    OptimizerConfig("adam", 0.02, beta1=0.8, beta2=0.95, weight_decay=0.1),
    OptimizerConfig("adamw", 0.01, beta1=0.8, beta2=0.95, weight_decay=0.1),
    OptimizerConfig("adamw", 0.01, schedule="cosine", warmup_steps=3),
    OptimizerConfig("rmsprop", 0.001, beta2=0.9),
    OptimizerConfig("rmsprop", 0.001, beta2=0.9, weight_decay=0.1, schedule="cosine"),
    OptimizerConfig("sgd", 0.1, momentum=0.0, weight_decay=0.1, schedule="linear"),
    OptimizerConfig("sgd", 0.1, momentum=0.8, weight_decay=0.1, warmup_steps=STEPS),
]


def torch_optimizer(weights: Sequence[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "rmsprop":
        return torch.optim.RMSprop(weights, rate, alpha=config.beta2, weight_decay=decay)
    if config.name == "sgd":
        return torch.optim.SGD(weights, rate, momentum=config.momentum, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(weights, rate, (config.beta1, config.beta2), weight_decay=decay)


def torch_scheduler(
    tested: torch.optim.Optimizer, config: OptimizerConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    warmup = config.warmup_steps
    rest = max(1, STEPS - warmup)
    schedulers = torch.optim.lr_scheduler
    decay = {
        "constant": schedulers.ConstantLR(tested, factor=1.0),
        "cosine": schedulers.CosineAnnealingLR(tested, T_max=rest),
        "linear": schedulers.LinearLR(tested, 1.0, 0.0, total_iters=rest),
    }[config.schedule]
    if not warmup:
        return decay
    rise = schedulers.LinearLR(tested, 1 / warmup, total_iters=warmup - 1)
    return schedulers.SequentialLR(tested, [rise, decay], [warmup])


class Reference:
    """Network k of a stack, updated by torch.optim."""

    def __init__(self, network: Engine, k: int) -> None:
        self.parameters, self.k = network.parameters, k
        self.config = network.configs[k].optimizer
        self.weights = self.extract(self.parameters.values)
        for weight in self.weights:
            weight.requires_grad_()
        self.optimizer = torch_optimizer(self.weights, self.config)
        self.scheduler = torch_scheduler(self.optimizer, self.config)
        self.norms: list[float] = []

    def extract(self, flat: Tensor) -> list[Tensor]:
        return list(self.parameters.extract(self.k, flat).values())

    def step(self) -> None:
        for weight, grad in zip(self.weights, self.extract(self.parameters.grads), strict=True):
            weight.grad = grad
        if limit := self.config.gradient_clipping:
            norm = torch.nn.utils.clip_grad_norm_(self.weights, limit)
            self.norms.append(norm.item())
        self.optimizer.step()
        self.scheduler.step()


def assert_steps_equal(network: Engine, precision: str) -> list[Reference]:
    """Update some times, and compare each network with its reference."""
    rtol, atol = (1e-9, 1e-12) if precision == "fp64" else (1e-4, 1e-6)
    references = [Reference(network, k) for k in range(len(network.configs))]
    tested = Optimizer(network.parameters, [config.optimizer for config in network.configs])
    values, states = network.parameters.values, network.init_training_state(4)
    for step in range(STEPS):
        tokens = torch.tensor([[step, 1, 2, 10 - step]])
        network.loss_and_grad(Window(tokens, tokens.flip(1)), states)
        for reference in references:
            reference.step()
        tested.set_learning_rates(step, STEPS)
        tested.step()
        for reference in references:
            actual = reference.extract(values)
            expected = [weight.detach() for weight in reference.weights]
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
        copies = network.parameters.matmul_values
        assert torch.equal(copies, values[: len(copies)].to(copies))
    assert tested.updates == STEPS
    return references


@pytest.mark.parametrize(
    ("precision", "chunk_size"), [("fp64", 100), ("fp32", 1 << 16), ("bf16", 100)]
)
def test_each_network_of_a_stack_is_updated_as_by_torch_optim(monkeypatch, precision, chunk_size):
    assert {config.name for config in SETTINGS} == set(OPTIMIZERS) == set(optimizer.UPDATES)
    monkeypatch.setattr(optimizer, "_CHUNK_SIZE", chunk_size)
    configs = [
        each._replace(optimizer=config, varied=(("number", number),))
        for number, config in enumerate(SETTINGS)
        for each in CONFIGS
    ]
    assert_steps_equal(NetworkStack(configs, 3, precision, SPEC), precision)


@pytest.mark.parametrize(
    ("precision", "rates", "limits"),
    [
        ("fp64", [0.1], [0.2]),
        ("fp64", [0.1, 0.2], [0.0, 0.2, 1e6]),
        ("bf16", [0.1], [0.0, 0.2, 1e6]),
    ],
)
def test_gradient_is_clipped_by_the_norm_of_its_network(precision, rates, limits):
    configs = [
        each._replace(
            optimizer=OptimizerConfig("sgd", rate, momentum=0.5, gradient_clipping=limit),
            varied=(("learning_rate", rate), ("gradient_clipping", limit)),
        )
        for rate in rates
        for limit in limits
        for each in CONFIGS
    ]
    stack = NetworkStack(configs, 3, precision, SPEC)
    references = assert_steps_equal(stack, precision)
    norms = {reference.config.gradient_clipping: reference.norms for reference in references}
    assert min(norms[0.2]) > 0.3, "they are clipped"
    assert norms.get(0.0, []) == []
