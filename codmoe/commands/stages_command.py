"""Train stage 1, 2 and 3 and print one table: codmoe stages --gpus 2

Goes on from where it was interrupted. Without configs: experts/joint, router/stage2,
ensemble/stage3. Stage 1 may be several configs: separate experts, a refit of their heads.
"""

from codmoe.commands.options import CFG_OPTIONS, DATA, QUIET, TRAINING, config, option, whole

OPTIONS = (
    option("configs", nargs="*", type=config, help="stage 1 (one or more), 2 and 3"),
    option("--gpus", type=whole(most=1024), default=1, help="processes per stage"),
    option("--work-dir", default="work_dirs/stages", help="logs, table and picture"),
    *DATA,
    *TRAINING,
    CFG_OPTIONS,
    QUIET,
)


def run(args) -> None:
    from codmoe.engine.stages import DEFAULT_CONFIGS, run_stages
    from codmoe.engine.terminal import settle_terminal
    from codmoe.engine.training_options import TrainingOptions

    settle_terminal()
    if 0 < len(args.configs) < 3:
        raise ValueError(f"{len(args.configs)} configs given; give stage 1, 2 and 3, or none")
    run_stages(
        args.configs or DEFAULT_CONFIGS,
        gpus=args.gpus,
        work_dir=args.work_dir,
        options=args.cfg_options,
        training=TrainingOptions.of(args),
        data_root=args.data_root,
        images=args.images,
        masks=args.masks,
    )
