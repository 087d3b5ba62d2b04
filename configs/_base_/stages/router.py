# Stage 2: the router learns; backbone and experts are frozen, their batch-norm statistics too.
_base_ = [
    "../models/moe_pvt_v2_b2.py",
    "../schedules/adamw_cosine.py",
    "../default_runtime.py",
]
init_from = dict(
    file="experts_joint_best.pth",
    parts=("backbone", "experts"),
    command="codmoe train configs/experts/joint.py --gpus 2",
)
model = dict(
    frozen=("backbone", "experts"),
    router=dict(type="EvidenceRouter", noise=1.0),
    top_k=2,
    train_dispatch="dense",  # distillation compares all experts on each image
    mixture_loss=dict(type="StructureLoss"),
    routing_losses=dict(
        distill=dict(type="ExpertIoUDistillation", weight=1.0, tau=0.05),
        balance=dict(type="LoadBalanceLoss", weight=0.01),
        z=dict(type="RouterZLoss", weight=0.001),
    ),
    evaluate_all_experts=True,
)
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
default_hooks = dict(
    best=dict(name="router"),
    # What is frozen runs once for each of four augmented views of an image (views=1: without
    # augmentation) and is kept in host memory: 3.2 MB a view of 448 px. None switches it off.
    frozen_cache=dict(type="FrozenCacheHook", views=4, limit_gb=8.0, dtype="float16"),
    router_watch=dict(type="RouterWatchHook"),
)
