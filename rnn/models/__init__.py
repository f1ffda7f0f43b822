"""Reference networks as plain modules, and the choice between them and the fast engine."""
