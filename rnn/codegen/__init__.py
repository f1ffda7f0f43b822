"""A network config as PyTorch source and as equations, without the options it does not use."""
