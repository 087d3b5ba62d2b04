"""codmoe: camouflaged object detection with a mixture of complete expert decoders."""

from codmoe.compat import declare_torchvision_ops

declare_torchvision_ops()  # before anything imports timm or the mmengine Runner
