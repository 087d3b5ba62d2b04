# joint with the structure loss of the other experts in place of ZoomNet's own BCE.
_base_ = ["./_base_/joint.py"]
model = dict(experts=dict(zoomnet=dict(segmentation_loss="structure")))
default_hooks = dict(best=dict(name="experts_joint_zoomnet_structure"))
