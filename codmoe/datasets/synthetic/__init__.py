"""Camouflage images made on the fly, whole or blended into photographs."""

from codmoe.datasets.synthetic.camouflage import SyntheticCamouflage, generate
from codmoe.datasets.synthetic.composite import CompositeCamouflage, compose
from codmoe.datasets.synthetic.scene import KINDS

__all__ = ["KINDS", "CompositeCamouflage", "SyntheticCamouflage", "compose", "generate"]
