from codmoe.models.backbones.base import Backbone
from codmoe.models.backbones.timm_pyramid import TimmPyramid
from codmoe.models.backbones.vit_pyramid import ViTPyramid

__all__ = ["Backbone", "TimmPyramid", "ViTPyramid"]
