# As grown.py, but what routed before is held: of the routing, the new expert's chance alone learns.
_base_ = ["./grown.py"]
model = dict(newcomers=("polyp",))
train_dataloader = dict(dataset=dict(datasets={{_base_.training.grown_held}}))
default_hooks = dict(best=dict(name="grown_held"))
