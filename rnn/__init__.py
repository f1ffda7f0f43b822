"""Recurrent language models in PyTorch: configs, networks, training and export.

The package does not depend on Optuna. :mod:`rnn.config` and :mod:`rnn.codegen` do not import
torch.
"""
