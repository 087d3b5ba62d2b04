# configs/experts/joint.py on the protocol of the COD papers: COD10K + CAMO, four test sets.
_base_ = ["../_base_/stages/joint.py", "../_base_/datasets/cod_benchmark.py"]
checkpoint_dir = "checkpoints_moe/cod"
