"""Camouflage images made on the fly, whole or blended into photographs."""

from codmoe.datasets.synthetic.camouflage import SyntheticCamouflage
from codmoe.datasets.synthetic.composite import CompositeCamouflage

__all__ = ["CompositeCamouflage", "SyntheticCamouflage"]
