# configs/router/stage2.py on what configs/experts/refit_soup.py leaves.
_base_ = ["./stage2.py"]
init_from = dict(
    file="experts_soup_best.pth",
    command="codmoe train configs/experts/refit_soup.py --gpus 2",
)
default_hooks = dict(best=dict(name="router_soup"))
