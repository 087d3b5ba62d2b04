"""The measures of camouflaged object detection, exact and batched."""
