# configs/experts/joint.py on the synthetic objects in photographs of your own (data/backgrounds).
_base_ = ["../_base_/stages/joint.py", "../_base_/datasets/composite.py"]
checkpoint_dir = "checkpoints_moe/composite"
