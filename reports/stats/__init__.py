"""Statistics as functions of arrays and frames; imports no other package of the project.

Its modules import NumPy alone, and pandas, SciPy and scikit-learn, which are slow to import, where
they are used.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
