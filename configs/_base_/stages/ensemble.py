# Stage 3: everything learns; each expert keeps its own loss beside the mixture's.
_base_ = [
    "../models/moe_pvt_v2_b2.py",
    "../schedules/adamw_cosine.py",
    "../default_runtime.py",
]
init_from = dict(
    file="router_best.pth",
    parts=("backbone", "experts", "router", "combiner"),
    command="codmoe train configs/router/stage2.py --gpus 2",
)
model = dict(
    router=dict(type="EvidenceRouter", noise=0.2),
    top_k=2,
    # Every expert learns from every image, whoever is chosen: one that the router leaves out
    # can otherwise go stale on the moving backbone. "sparse" trains on routed images alone.
    train_dispatch="dense",
    # As all run, the mixture learns from all: better experts, and a router that has compared them
    # (0.5 points of IoU in the quickstart, three seeds). Afterwards it is made of top_k. None with
    # "sparse".
    train_top_k="all",
    mixture_loss=dict(type="StructureLoss"),
    expert_loss_weight=0.3,
    # Computed twice instead of kept, so that batch 12 at 448 px fits 16 GB: every expert (the
    # mixture needs all of them at once), and ZoomNet's backbone passes at 0.5x and 1.5x. With more
    # memory, "together" and None are faster.
    expert_execution="checkpoint",
    checkpoint_backbone="extra",
    # No balance loss: an expert that is seldom chosen learns all the same.
    routing_losses=dict(
        z=dict(type="RouterZLoss", weight=0.001),
    ),
    evaluate_all_experts=True,
    # Its uncertainty loss goes on where stage 1 ended, at full weight.
    experts=dict(zoomnet=dict(ual_start=1.0)),
)
train_cfg = dict(max_epochs=80)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
default_hooks = dict(
    best=dict(name="ensemble"),
    router_watch=dict(type="RouterWatchHook"),
    # Each expert before and after this stage, and how alike they have become.
    experts_after=dict(type="ExpertsAfterHook"),
)
