"""Plotly figures, and charts made of them."""
