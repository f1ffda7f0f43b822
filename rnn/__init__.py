"""The networks: torch, and nothing of Optuna.

Modules are imported by name, so that whoever needs only :mod:`rnn.config` loads no torch.
"""
