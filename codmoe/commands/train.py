"""Train one stage: codmoe train configs/experts/sinet.py"""

from codmoe.commands.options import (
    CFG_OPTIONS,
    CONFIG,
    DATA,
    LAUNCHER,
    QUIET,
    WORK_DIR,
    on_gpus,
    option,
)

OPTIONS = (
    CONFIG,
    WORK_DIR,
    *DATA,
    option("--resume", action="store_true", help="go on from the work dir's last one"),
    option("--auto-resume", action="store_true", help="or start if there is none"),
    CFG_OPTIONS,
    *LAUNCHER,
    QUIET,
)


def run(args) -> None:
    on_gpus("train", args)
    from codmoe.engine.config import load_config, parse_options
    from codmoe.engine.ddp import leave_cpu_process_group
    from codmoe.engine.launch import prepare, train
    from codmoe.engine.own_data import set_data

    options = parse_options(args.cfg_options)
    cfg = load_config(args.config, options)
    set_data(cfg, args.data_root, args.images, args.masks, options=options)
    if args.resume or args.auto_resume:
        cfg.resume = True if args.resume else "auto"
    prepare(cfg, launcher=args.launcher, work_dir=args.work_dir)
    args.work_dir = cfg.work_dir
    train(cfg)
    leave_cpu_process_group()
