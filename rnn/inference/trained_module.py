"""A trained network as a plain module, for use in PyTorch."""

import torch

from rnn.cells.loading import load_cell
from rnn.config import CellConfig, TrialConfig
from rnn.inference.saved_model import SavedModel
from rnn.models.bptt_network import BPTTNetwork, build_module
from rnn.models.cell_module import CellModule, build_seeded
from rnn.models.gated import RecurrentNetwork


def build_trained_module(model: SavedModel) -> RecurrentNetwork | CellModule:
    """Return a trained network as a plain module on the CPU, in evaluation mode.

    Args:
        model: trained network; the source of a user's own cell is executed.

    Raises:
        CellError: if the source of a user's own cell is not one, or does not match the weights.
    """
    architecture, size = model.architecture, model.tokenizer.size
    dtype = torch.float64 if model.precision == "fp64" else torch.float32
    module: RecurrentNetwork | CellModule
    if isinstance(architecture, CellConfig):
        if model.cell_source is not None:
            load_cell(model.cell_source)
        module = build_seeded(architecture, size, 0).to(dtype)
        module.load_state_dict(model.weights)
        return module.eval()
    config = TrialConfig(architecture)
    trained = BPTTNetwork(
        [config], 0, "fp64" if dtype == torch.float64 else "fp32", size,
        weights={config: model.weights},
    )  # fmt: skip
    module = build_module(architecture, size).to(dtype)
    module.load_state_dict(trained.module.state_dict())  # whose tensors are views of one
    return module.eval()
