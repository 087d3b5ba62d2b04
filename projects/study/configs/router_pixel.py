# router_top4 with weights per pixel.
_base_ = ["./_base_/router.py"]
model = dict(top_k=4, combiner=dict(_delete_=True, type="PixelCombiner", learn_temperature=True))
default_hooks = dict(best=dict(name="router_pixel"))
