_base_ = ["../_base_/stages/router.py", "../_base_/datasets/cod10k_v3.py"]
train_dataloader = dict(dataset=dict(split=dict(use=("router",))))
