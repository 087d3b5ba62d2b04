# configs/ensemble/stage3.py on the protocol of the COD papers: COD10K + CAMO, four test sets.
_base_ = ["../_base_/stages/ensemble.py", "../_base_/datasets/cod_benchmark.py"]
checkpoint_dir = "checkpoints_moe/cod"
init_from = dict(command="codmoe train configs/router/stage2_cod.py --gpus 2")
train_dataloader = dict(dataset=dict(split=dict(use=("experts", "router"))))
