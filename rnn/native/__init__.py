"""The training step of gated networks in C, for CPUs."""
