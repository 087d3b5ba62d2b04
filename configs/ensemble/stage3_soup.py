# configs/ensemble/stage3.py after configs/router/stage2_soup.py.
_base_ = ["./stage3.py"]
init_from = dict(
    file="router_soup_best.pth",
    command="codmoe train configs/router/stage2_soup.py --gpus 2",
)
default_hooks = dict(best=dict(name="ensemble_soup"))
