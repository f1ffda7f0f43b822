"""The training step of gated networks in C, for CPUs; compiled when it is first used."""
