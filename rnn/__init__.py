"""Recurrent language models in PyTorch: configs, networks, training and inference.

The package does not depend on Optuna. :mod:`rnn.config` and :mod:`rnn.codegen` do not import torch.
"""
