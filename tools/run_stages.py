"""Train stage 1, 2 and 3 and print one table: python tools/run_stages.py --gpus 2

Goes on from where it was interrupted. Without configs: experts/joint, router/stage2,
ensemble/stage3. Stage 1 may be several configs: separate experts, a refit of their heads.
"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.stages import DEFAULT_CONFIGS, run_stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "configs", nargs="*", default=DEFAULT_CONFIGS, help="stage 1 (one or more), 2 and 3"
    )
    parser.add_argument("--gpus", type=int, default=1, help="processes per stage")
    parser.add_argument("--work-dir", default="work_dirs/stages", help="logs, table and picture")
    parser.add_argument("--data-root", help="folder of the data set, instead of the configs'")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if len(args.configs) < 3:
        sys.exit(f"error: {len(args.configs)} configs given; give stage 1, 2 and 3, or none")
    try:
        run_stages(
            args.configs,
            gpus=args.gpus,
            work_dir=args.work_dir,
            options=args.cfg_options,
            data_root=args.data_root,
        )
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
