# configs/router/stage2.py on the protocol of the COD papers: COD10K + CAMO, four test sets.
_base_ = ["../_base_/stages/router.py", "../_base_/datasets/cod_benchmark.py"]
checkpoint_dir = "checkpoints_moe/cod"
init_from = dict(command="codmoe train configs/experts/joint_cod.py --gpus 2")
train_dataloader = dict(dataset=dict(split=dict(use=("router",))))
