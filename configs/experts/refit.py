_base_ = ["../_base_/stages/refit.py", "../_base_/datasets/cod10k_v3.py"]
