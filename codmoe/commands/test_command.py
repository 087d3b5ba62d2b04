"""Test a checkpoint:

codmoe test configs/ensemble/stage3.py checkpoints_moe/ensemble_best.pth
"""

from codmoe.commands.options import (
    CFG_OPTIONS,
    COMPILE,
    CONFIG,
    DATA,
    LAUNCHER,
    QUIET,
    VIEWS,
    WORK_DIR,
    on_gpus,
    option,
    weights,
)

OPTIONS = (
    CONFIG,
    option(
        "checkpoint",
        type=weights,
        help="weights, e.g. checkpoints_moe/ensemble_best.pth, or small, which ships",
    ),
    option("--experts", action="store_true", help="also each expert, uniform and oracle"),
    option("--json", help="result file; WORK_DIR/test.json by default, .md beside it"),
    option("--out", help="new folder for prediction maps, 8-bit PNG, original size"),
    option("--grid", help="picture file: image, truth, experts, mixture, weights"),
    option("--pictures", help="folder for small pictures of every image, which the report shows"),
    option("--cost", action="store_true", help="also parameters, operations and ms of each source"),
    *VIEWS,
    COMPILE,
    WORK_DIR,
    *DATA,
    option(
        "--held-out",
        action="store_true",
        help="of these data what a training on them holds out, whatever the weights",
    ),
    CFG_OPTIONS,
    *LAUNCHER,
    QUIET,
)


def run(args) -> None:
    on_gpus("test", args)
    from codmoe.engine.config import load_config, parse_options
    from codmoe.engine.ddp import leave_cpu_process_group
    from codmoe.engine.launch import prepare
    from codmoe.engine.own_data import set_data
    from codmoe.engine.testing import test

    options = parse_options(args.cfg_options)
    cfg = load_config(args.config, options)
    data = (args.data_root, args.images, args.masks)
    if args.held_out and not any(data):
        raise ValueError("--held-out is of --images and --masks, or of --data-root; give them")
    set_data(cfg, *data, checkpoint=None if args.held_out else args.checkpoint, options=options)
    if args.flip or args.scales:
        cfg.tta = dict(flip=args.flip, scales=args.scales or [1.0])
    prepare(cfg, launcher=args.launcher, work_dir=args.work_dir)
    args.work_dir = cfg.work_dir
    test(
        cfg,
        args.checkpoint,
        experts=args.experts,
        json_file=args.json,
        out_dir=args.out,
        grid=args.grid,
        pictures=args.pictures,
        cost=args.cost,
        compile=args.compile is not None and parse_options(args.compile),
    )
    leave_cpu_process_group()
