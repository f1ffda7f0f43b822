"""Studies of results that other programs have recorded: tables, and studies of plain Optuna."""
