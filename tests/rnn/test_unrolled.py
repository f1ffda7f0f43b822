"""Networks that are unrolled: what their gradients are, as torch alone would have them."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from network_configs import each_of, label, representatives
from torch import Tensor, nn

from rnn.codegen import generate_module, state_dict_mapping
from rnn.config import (
    BASELINE_CELLS,
    GATE_INPUTS,
    STATE_SOURCES,
    BaselineConfig,
    GatedConfig,
    TrialConfig,
)
from rnn.models.bptt_network import Unrolled
from rnn.models.factory import build_network
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import NetworkStack
from rnn.training.checkpoint import deserialize_checkpoint, serialize_checkpoint
from rnn.training.evaluation import compute_eval_losses
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import TrainStep

STREAMS, TOKENIZER = 3, 11
GATED = [
    GatedConfig(*switches, source, 2, 4, gate_inputs)
    for gate_inputs in GATE_INPUTS
    for switches in itertools.product((False, True), repeat=5)
    for source in STATE_SOURCES
]
SOME = representatives(GATED, together=3)
KNOWN = [BaselineConfig(cell, 2, 4) for cell in BASELINE_CELLS]
EXACT = {"rtol": 1e-9, "atol": 1e-12}


each_of_some = each_of(SOME, KNOWN, together=2)


def text(steps: int) -> Tensor:
    return torch.randint(TOKENIZER, (steps, STREAMS), generator=torch.Generator().manual_seed(1))


def weights_of(network: NetworkStack | Unrolled) -> NamedTensors:
    return network.parameters.extract(0, network.parameters.values)


def gradients_of(network: NetworkStack | Unrolled) -> NamedTensors:
    return network.parameters.extract(0, network.parameters.grads)


def assert_close(found: NamedTensors, expected: NamedTensors, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], **tolerance, msg=lambda said, name=name: f"{name}: {said}"
        )


class Module:
    """The network as it is written out, and gradients through it by autograd alone."""

    def __init__(self, architecture: GatedConfig | BaselineConfig) -> None:
        names: dict[str, Any] = {"__name__": "written"}
        code = generate_module(architecture, TOKENIZER)
        exec(code.replace("new_state.detach()", "new_state"), names)
        self.network: nn.Module = names["Network"]().double()
        self.names = state_dict_mapping(architecture)

    def load(self, weights: NamedTensors) -> None:
        self.network.load_state_dict(
            {
                name: weights[of][0].T if part == "weight" else weights[of][1]
                for name, (of, part) in self.names.items()
            }
        )

    def loss_and_grad(
        self, reads: Tensor, targets: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, NamedTensors, list[Tensor]]:
        """The last loss of reading (w, B) from these states, its gradients, the last states."""
        self.network.zero_grad()
        for tokens in reads:
            logits, states = self.network(tokens, states)
        loss = nn.functional.cross_entropy(logits, targets)
        loss.backward()
        found: dict[str, dict[str, Tensor]] = {}
        for name, weight in self.network.named_parameters():
            of, part = self.names[name]
            own = torch.zeros_like(weight) if weight.grad is None else weight.grad
            found.setdefault(of, {})[part] = own.T if part == "weight" else own
        gradients = {of: (own["weight"], own["bias"]) for of, own in found.items()}
        return loss.detach(), gradients, [state.detach() for state in states]


@each_of(SOME, together=2)
def test_through_one_step_it_learns_as_a_population_does(architecture: GatedConfig):
    configs, read = [TrialConfig(architecture)], text(4)
    networks = [kind(configs, 3, "fp64", TOKENIZER) for kind in (NetworkStack, Unrolled)]
    expected, found = networks
    states = [network.init_training_state(STREAMS) for network in networks]
    for t in range(3):
        losses = []
        for network, own in zip(networks, states, strict=True):
            loss, after = network.loss_and_grad(network.prepare_inputs(read[t]), read[t + 1], own)
            losses.append(loss)
            for state, new in zip(own, after, strict=True):
                state.copy_(new)
        torch.testing.assert_close(*losses, **EXACT)
        torch.testing.assert_close(*states, **EXACT)
        assert_close(gradients_of(found), gradients_of(expected), **EXACT)


@each_of_some
def test_the_gradient_goes_through_the_window_and_no_further(architecture):
    """Whole, cut off at a sequence's start, and with weights that change at every step."""
    config, window, module = TrialConfig(architecture, 0, 3), 3, Module(architecture)
    network = Unrolled([config], 3, "fp64", TOKENIZER)
    program = TrainStep(network, STREAMS, learning_rate=0.05, smoothing=0.0)
    for read in (text(7), text(4).flip(0)):  # two sequences
        program.begin_sequence()
        before = [module.network.initial_state(STREAMS)]
        for t, targets in enumerate(read[1:]):
            module.load(weights_of(network))
            first = max(0, t + 1 - window)
            loss, gradients, after = module.loss_and_grad(
                read[first : t + 1], targets, before[first]
            )
            before.append(after)
            program.step(read[t], targets)
            torch.testing.assert_close(program.ema_losses[0], loss, **EXACT)
            assert_close(gradients_of(network), gradients, **EXACT)
            torch.testing.assert_close([s[0] for s in program.states[:2]], after, **EXACT)


@pytest.mark.parametrize("known", KNOWN, ids=label)
def test_a_known_cell_is_torchs_own(known: BaselineConfig):
    steps, n = 5, known.state_size
    network = Unrolled([TrialConfig(known, 0, steps)], 3, "fp64", TOKENIZER)
    weights = weights_of(network)
    kind = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[known.cell]
    module = kind(n, n, known.layers).double()
    hands = (("input", "ih"), ("state", "hh"))
    for layer, (name, hand) in itertools.product(range(known.layers), hands):
        weight, bias = weights[f"layers.{layer}.{name}"]
        with torch.no_grad():
            getattr(module, f"weight_{hand}_l{layer}").copy_(weight.T)
            getattr(module, f"bias_{hand}_l{layer}").copy_(bias)

    read = text(steps + 1)
    table, head = weights["embedding"], weights["head"]
    outputs, _ = module(table[0][read[:-1]] + table[1])  # (steps, B, n)
    expected = outputs @ head[0] + head[1]
    states = network.init_state(STREAMS)
    for t in range(steps):
        logits, states = network.forward(network.prepare_inputs(read[t]), states)
        torch.testing.assert_close(logits[0], expected[t].detach(), **EXACT)
        losses = nn.functional.cross_entropy(expected[t], read[t + 1], reduction="none")
        torch.testing.assert_close(network.losses(logits, read[t + 1])[0], losses.detach(), **EXACT)

    states = network.init_training_state(STREAMS)
    for t in range(steps):
        _, states = network.loss_and_grad(network.prepare_inputs(read[t]), read[t + 1], states)
    losses.mean().backward()
    gradients = gradients_of(network)
    for layer, (name, hand) in itertools.product(range(known.layers), hands):
        weight, bias = gradients[f"layers.{layer}.{name}"]
        own = getattr(module, f"weight_{hand}_l{layer}").grad
        torch.testing.assert_close(weight, own.T, **EXACT)
        torch.testing.assert_close(bias, getattr(module, f"bias_{hand}_l{layer}").grad, **EXACT)


@each_of_some
def test_products_in_bfloat16_leave_the_gradient_what_it_is(architecture):
    found = []
    for precision in ("fp64", "bf16"):
        network = Unrolled([TrialConfig(architecture, 0, 12)], 3, precision, TOKENIZER)
        states, read = network.init_training_state(STREAMS), text(14)
        for t in range(13):
            inputs = network.prepare_inputs(read[t])
            loss, states = network.loss_and_grad(inputs, read[t + 1], states)
        flat = network.parameters.grads.double()
        found.append((loss.double(), flat))
        assert loss.dtype == states[0].dtype == network.parameters.values.dtype
    (expected_loss, expected), (loss, gradients) = found
    torch.testing.assert_close(loss, expected_loss, rtol=0.02, atol=0)
    assert (gradients - expected).norm() < 0.03 * expected.norm()


TEXT = np.random.default_rng(0).integers(0, TOKENIZER, 500, dtype=np.uint8)
SETTINGS = TrainConfig(
    steps=20,
    batch_size=STREAMS,
    sequence_length=13,
    log_every=2,
    learning_rate=0.01,
    smoothing=0.9,
    seed=3,
    average_fraction=0.6,
)


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [2, 9, 12, 14])
@pytest.mark.parametrize("architecture", [GATED[-1], KNOWN[-1]], ids=label)
def test_what_is_gone_on_with_is_the_run_that_was_never_stopped(architecture, stop):
    """In a window that grows, in a whole one, and where the next sequence begins."""
    config = TrialConfig(architecture, 1, 4)

    def begin(weights=None, progress=None):
        network = build_network([config], 1, "bf16", TOKENIZER, None, weights)
        return TrainLoop(network, TEXT, SETTINGS, progress)

    def look():
        if run.step == stop:
            raise StopError

    whole, run = begin(), begin()
    list(whole.train())
    with pytest.raises(StopError):
        list(run.train(look))
    written = serialize_checkpoint(run.train_state(config), "me")
    progress = deserialize_checkpoint(architecture, "me", written, TOKENIZER)
    resumed = begin({config: progress.weights}, {config: progress})
    list(resumed.train())
    assert resumed.curves == whole.curves
    expected, found = (own.train_state(config) for own in (whole, resumed))
    for one, other in zip(found.states, expected.states, strict=True):
        assert torch.equal(one, other)
    for name, (weight, bias) in expected.weights.items():
        assert torch.equal(found.weights[name][0], weight)
        assert torch.equal(found.weights[name][1], bias)


def test_a_network_is_measured_from_a_texts_start_whatever_it_was_trained_on():
    config = TrialConfig(BaselineConfig("lstm", 2, 4), 0, 4)
    run = TrainLoop(build_network([config], 1, "fp64", TOKENIZER), TEXT, SETTINGS)
    list(run.train())
    module = Module(config.architecture)
    module.load(weights_of(run.stack))
    held_out = TEXT[: 9 * STREAMS].reshape(9, STREAMS)
    read, expected = torch.from_numpy(held_out).long(), 0.0
    states = module.network.initial_state(STREAMS)
    for t in range(8):
        logits, states = module.network(read[t], states)
        expected += nn.functional.cross_entropy(logits, read[t + 1], reduction="none") / 8
    found = compute_eval_losses(run.stack, held_out)
    torch.testing.assert_close(found[0], expected.detach(), **EXACT)


def test_only_what_cannot_be_trained_in_lockstep_is_unrolled():
    gated, known = TrialConfig(GATED[-1]), TrialConfig(KNOWN[0])
    longer = gated._replace(bptt_steps=2)
    assert isinstance(build_network([gated, TrialConfig(GATED[-2])], 1), NetworkStack)
    for config in (known, longer):
        network = build_network([config], 1)
        assert isinstance(network, Unrolled)
        again = network.with_configs({config: weights_of(network)})
        assert again.configs == (config,)
        for together in ([config, gated], [config, config._replace(replicate=1)]):
            with pytest.raises(ValueError, match=r"there are 2 members; allowed: one"):
                build_network(together, 1)
        with pytest.raises(ValueError, match=r"bptt_steps [12] cannot be stacked"):
            NetworkStack([gated, config], 1)
    with pytest.raises(ValueError, match=r"the gradient window is 0; allowed: 1 or more"):
        build_network([known._replace(bptt_steps=0)], 1)
