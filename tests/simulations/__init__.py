"""Simulated studies with known effects and noise, for tests and benchmarks."""
