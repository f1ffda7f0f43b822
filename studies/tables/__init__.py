"""Studies as tables: files of their trials, written for keeping and read into a storage."""
