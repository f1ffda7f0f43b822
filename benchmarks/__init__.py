"""Measurements, as ratios in one run: machines are noisy, and a second run is another day."""
