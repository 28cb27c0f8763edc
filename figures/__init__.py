"""The pictures: their common style, and one module for each figure.

All are drawn without a display. A notebook's MPLBACKEND, or one that does not exist, would end the
import of matplotlib: the variable is set before it, and the backend where matplotlib was there.
"""

import os

os.environ["MPLBACKEND"] = "Agg"

import matplotlib

matplotlib.use("Agg")
