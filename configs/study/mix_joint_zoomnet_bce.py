# mix_joint with ZoomNet's own BCE in place of the structure loss.
_base_ = ["./_base_/mix_joint.py"]
model = dict(experts=dict(zoomnet=dict(segmentation_loss="bce")))
default_hooks = dict(best=dict(name="experts_joint_zoomnet_bce"))
