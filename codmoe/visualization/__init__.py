"""Pictures of predictions and of routing."""

from codmoe.visualization.grid import GridRow, save_grid

__all__ = ["GridRow", "save_grid"]
