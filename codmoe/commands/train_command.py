"""Train one stage: codmoe train configs/experts/sinet.py"""

from codmoe.commands.options import (
    CFG_OPTIONS,
    CONFIG,
    DATA,
    LAUNCHER,
    QUIET,
    TRAINING,
    WORK_DIR,
    on_gpus,
    option,
    whole,
)

OPTIONS = (
    CONFIG,
    WORK_DIR,
    *DATA,
    option("--resume", action="store_true", help="go on from the work dir's last one"),
    option("--auto-resume", action="store_true", help="or start if there is none"),
    *TRAINING,
    option(
        "--lr-range",
        nargs="?",
        const=100,
        type=whole(10),
        metavar="STEPS",
        help="no training: raise the learning rate over so many steps (100) and suggest one",
    ),
    CFG_OPTIONS,
    *LAUNCHER,
    QUIET,
)


def run(args) -> None:
    on_gpus("train", args)
    from codmoe.engine.config import load_config, parse_options
    from codmoe.engine.ddp import leave_cpu_process_group
    from codmoe.engine.launch import prepare, train
    from codmoe.engine.lr_range import lr_range
    from codmoe.engine.own_data import set_data
    from codmoe.engine.terminal import settle_terminal
    from codmoe.engine.training_options import TrainingOptions

    settle_terminal()
    if args.lr_range and args.auto_batch:
        raise ValueError("--lr-range is for one size of batch, and --auto-batch looks for one")
    training = TrainingOptions.of(args)
    options = parse_options(args.cfg_options)
    cfg = load_config(args.config, options)
    set_data(cfg, args.data_root, args.images, args.masks, options=options)
    training.set_training(cfg)
    training.set_log(cfg)
    if args.resume or args.auto_resume:
        cfg.resume = True if args.resume else "auto"
    prepare(cfg, launcher=args.launcher, work_dir=args.work_dir)
    args.work_dir = cfg.work_dir
    if args.lr_range:
        lr_range(cfg, args.lr_range)
    else:
        train(cfg, auto_batch=training.auto_batch)
    leave_cpu_process_group()
