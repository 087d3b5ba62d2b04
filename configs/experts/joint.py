_base_ = ["../_base_/stages/joint.py", "../_base_/datasets/cod10k_v3.py"]
