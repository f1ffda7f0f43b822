"""Builds the parts of the documentation that follow from the code and from the gallery's data."""
