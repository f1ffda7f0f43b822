"""Recurrent networks in PyTorch: configs, cells, tasks, training and export.

The package does not depend on Optuna. :mod:`rnn.config` and :mod:`rnn.codegen` do not import
torch.
"""
