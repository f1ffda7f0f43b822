"""The colours of figures, seen on white and on black.

They are near those of Okabe and Ito (*Color Universal Design*, 2008), told apart by those who do
not see every colour; what they say is said by position or shape too.
"""

import numpy as np
from plotly.colors import sample_colorscale

IMPROVES, WORSENS, NEUTRAL = "#2f7fd1", "#d55e00", "#8a9099"
"""Of an effect: the loss falls, it rises, the interval has zero in it."""

PALETTE = ("#2f7fd1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a9099")
"""Of values that have no order."""


def sequential_colors(count: int) -> list[str]:
    """Return colours with an order, from orange, the best or least, to violet."""
    # The ends of the scale are left out: one is too faint on white, the other on black.
    places = np.linspace(0.78, 0.3, count) if count > 1 else [0.5]
    return [str(colour) for colour in sample_colorscale("Plasma", places)]
