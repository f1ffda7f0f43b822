"""Training: loop, step, optimizer, checkpoints, evaluation, precision and devices."""
