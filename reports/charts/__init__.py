"""Plotly figures, their text alternatives, and charts made of both."""
