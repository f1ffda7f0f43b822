"""Studies read into frames, and tables written to files."""
