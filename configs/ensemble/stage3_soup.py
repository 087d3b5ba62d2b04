# configs/ensemble/stage3.py after configs/router/stage2_soup.py.
_base_ = ["./stage3.py"]
init_from = dict(
    file="router_soup_best.pth",
    command="bash tools/dist_train.sh configs/router/stage2_soup.py 2",
)
default_hooks = dict(best=dict(name="ensemble_soup"))
