"""Optuna meets torch: points, claims, workers."""
