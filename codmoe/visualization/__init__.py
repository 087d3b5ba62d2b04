"""Pictures of predictions, of routing, and of data sets."""

from codmoe.visualization.dataset_page import collect_attributes, save_attributes
from codmoe.visualization.grid import GridRow, save_grid
from codmoe.visualization.samples import save_samples

__all__ = ["GridRow", "collect_attributes", "save_attributes", "save_grid", "save_samples"]
