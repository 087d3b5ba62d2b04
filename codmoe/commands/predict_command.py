"""Predict masks: codmoe predict IMAGES_AND_FOLDERS --out DIR [--save mask overlay ...]

Inputs: images; folders, with all images below them; videos; camera:0.
The same command goes on where it was interrupted, and leaves out what is done. On several GPUs:
codmoe predict IMAGES --out DIR --table DIR/all.csv --gpus 8
"""

import os
import sys

from codmoe.commands.options import (
    COMPILE,
    LAUNCHER,
    MODEL,
    QUIET,
    TILE,
    TRUST_CODE,
    VIEWS,
    WEIGHTS,
    images,
    inferencer,
    on_gpus,
    option,
    whole,
)


def picture(text: str) -> str:
    """The ``type`` of an input: a camera, or a path that is there."""
    return text if text.startswith("camera:") else images(text)


OPTIONS = (
    option("inputs", nargs="+", type=picture, help="image files, folders, videos, camera:0"),
    option("--out", help="folder for the outputs, which keeps sub-folders"),
    option(
        "--save",
        nargs="+",
        metavar="KIND",
        help="mask, probability (default), overlay, outline, cutout, side-by-side; several get a "
        "folder each",
    ),
    option("--table", help="file for a row an image: .csv, .json or .jsonl"),
    WEIGHTS,
    *MODEL,
    option(
        "--threshold", type=float, help="0 to 1, what masks are cut at; by default the weights'"
    ),
    option("--overwrite", action="store_true", help="replace outputs that are there"),
    option("--skip-unreadable", action="store_true", help="leave damaged files out; exit code 1"),
    TILE,
    *VIEWS,
    option("--batch-size", type=whole(), default=8),
    COMPILE,
    TRUST_CODE,
    QUIET,
    *LAUNCHER,
)


def run(args) -> int | None:
    if not args.out and not args.table:
        raise ValueError("give --out DIR for pictures, --table FILE for figures, or both")
    on_gpus("predict", args)

    from pathlib import Path

    import torch
    from PIL import Image

    from codmoe.engine.config import parse_options
    from codmoe.inference.inferencer import check_threshold
    from codmoe.inference.inputs import Video, collect
    from codmoe.inference.outputs import Outputs
    from codmoe.interruption import going_on, interruption
    from codmoe.messages import listed, note, printable
    from codmoe.models.tta import check_scales

    # Before weights are loaded or fetched.
    rank, world, local = _process(args.launcher)
    check_threshold(args.threshold)
    check_scales(args.scales or (1.0,))
    if args.tile:
        Image.MAX_IMAGE_PIXELS = None  # memory is the limit, see check_memory()
    folder = Path(args.out).expanduser() if args.out else None
    items = collect(args.inputs, out_dir=folder, say=rank == 0)
    default = "probability" if args.threshold is None else "mask"
    outputs = Outputs(
        items,
        folder=folder,
        kinds=args.save or [default],
        table=Path(args.table).expanduser() if args.table else None,
        overwrite=args.overwrite,
        resume=True,
        shard=(rank, world),
    )
    outputs.check(skip_unreadable=args.skip_unreadable)
    videos = [item.source for item in items if isinstance(item.source, Video)]
    cameras = any(isinstance(video.source, int) for video in videos)
    if videos and folder and rank == 0:
        note("videos are written without their sound")
    if cameras:
        note("Ctrl-C ends the recording")
        interruption.waits = True
    interruption.farewell = lambda: going_on(None)
    if args.device is None and world > 1 and torch.cuda.is_available():
        args.device = f"cuda:{local % torch.cuda.device_count()}"
    compiling = None if args.compile is None else parse_options(args.compile)
    infer = inferencer(args, batch_size=args.batch_size, compile=compiling)
    options = dict(threshold=args.threshold, skip_unreadable=args.skip_unreadable)
    for prediction in infer.run(outputs, **options):
        weights = "  ".join(f"{name} {w:.2f}" for name, w in prediction.weights.items())
        frame = "" if prediction.frame is None else f" frame {prediction.frame}"
        path = printable(str(prediction.path or "camera"))
        print(f"{path}{frame}  object {prediction.share:.1%}  {weights}")
    if outputs.skipped:
        print(f"{outputs.skipped:,} were done before; --overwrite predicts them anew")
    part = f"part {rank + 1} of {world}: " if world > 1 else ""
    print(f"{part}{outputs.made:,} predicted; {outputs.where()}")
    if outputs.failed:
        names = listed(outputs.failed)
        print(f"{len(outputs.failed):,} cannot be read: {printable(names)}", file=sys.stderr)
        return 1
    return None


def _process(launcher: str) -> tuple[int, int, int]:
    """Number of this process, of all, and of this one on its machine."""
    if launcher == "slurm":
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    elif launcher == "pytorch" or "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    else:
        return 0, 1, 0
    missing = [name for name in names if name not in os.environ]
    if missing:
        starter = "srun" if launcher == "slurm" else "torchrun"
        raise ValueError(f"--launcher {launcher}: {missing[0]} is not set; start it by {starter}")
    rank, world, local = (int(os.environ[name]) for name in names)
    return rank, world, local
