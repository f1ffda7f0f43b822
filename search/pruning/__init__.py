"""Pruning: predict final values, decide which trials to pause, resume or prune."""
