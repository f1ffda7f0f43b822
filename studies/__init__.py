"""Studies as data: configs, search spaces, stored attributes, storage and artifacts."""
