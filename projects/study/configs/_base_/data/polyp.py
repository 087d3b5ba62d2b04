# PraNet's polyp benchmark, and how long each stage learns.
_base_ = ["../../../../../configs/_base_/datasets/polyp.py"]
epochs = dict(fpn=30, warm=20, joint=8, cold=16, refit=4, router=20, stage3=8)
folder = "checkpoints_moe/study/polyp"
train = "STUDY_DATA=polyp python tools/train.py projects/study/configs"
