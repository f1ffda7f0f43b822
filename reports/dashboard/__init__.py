"""Additions to optuna-dashboard: a study's note, effects figure and files, and its server."""
