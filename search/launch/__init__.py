"""Launchers: start the workers of a study as jobs of a cluster, and follow them."""
