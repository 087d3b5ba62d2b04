from codmoe.models.experts.base import Expert
from codmoe.models.experts.fpn import FPNExpert
from codmoe.models.experts.pranet import PraNetExpert
from codmoe.models.experts.sinet import SINetExpert
from codmoe.models.experts.ujsc import UJSCExpert
from codmoe.models.experts.zoomnet import ZoomNetExpert

__all__ = ["Expert", "FPNExpert", "PraNetExpert", "SINetExpert", "UJSCExpert", "ZoomNetExpert"]
