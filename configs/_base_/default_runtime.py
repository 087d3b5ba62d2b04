default_scope = "codmoe"

# Folder of the weights that stages leave and find: expert_<name>_best.pth, experts_joint_best.pth,
# experts_refit_best.pth, router_best.pth, ensemble_best.pth.
checkpoint_dir = "checkpoints_moe"

# Mixed precision: bf16 where the GPU has it, fp16 on others, none on the CPU. "fp16" and "bf16"
# take that one on any GPU, False none.
amp = True

# How images and weights lie in memory: "channels_last", which tensor cores read without a copy, or
# "contiguous". Also of testing and inference.
memory_format = "channels_last"

# timm's layer norms in half precision under autocast, where they otherwise are float32.
fast_norm = False

# Parts of the model that are compiled for training, each on its own, and by "reduce-overhead"
# captured in CUDA graphs; compile=True takes all of them. mode is torch.compile's, None its default
# without graphs. The first start takes minutes, later ones read torch's cache on disk
# (TORCHINDUCTOR_CACHE_DIR).
compile = dict(
    backbone=False,
    experts=False,
    router=False,
    combiner=False,
    losses=False,
    mode="reduce-overhead",
)

# Share of the training samples whose files may turn out unreadable while training runs: each is
# reported once and replaced by another sample. Above it training stops with the list.
max_unreadable = 0.01

# Experts that a stage starts from are measured before its first step, on their own checkpoint and
# in the assembled model; an IoU that drops by more stops the run. None measures nothing.
assembly = dict(max_drop=0.01)

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # Training checkpoints, for --resume; written to a temporary file and renamed.
    checkpoint=dict(
        type="CheckpointHook", interval=1, max_keep_ckpts=2, backend_args=dict(backend="atomic")
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    progress=dict(type="TrainingProgressHook"),
    average_buffers=dict(type="AverageBuffersHook"),
    # Ends a training whose loss or gradient stays NaN, as when fp16 overflows in every step.
    finite_loss=dict(type="FiniteLossHook"),
    # <checkpoint_dir>/<name>_best.pth; the name is the stage's.
    best=dict(type="BestWeightsHook", monitor="IoU"),
    # EMA is an option: ema=dict(type="EMAHook", momentum=0.002, update_buffers=True)
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
# None: DDP searches for parameters without gradient only where an expert may not run.
model_wrapper_cfg = dict(type="CODDistributedDataParallel", find_unused_parameters=None)
log_processor = dict(by_epoch=True, window_size=50)
log_level = "INFO"
randomness = dict(seed=0)
load_from = None
resume = False
