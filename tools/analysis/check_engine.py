"""Prepared inference beside eager: python tools/analysis/check_engine.py ensemble/stage3
--checkpoint checkpoints_moe/ensemble_best.pth --json FILE"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import parse_options
from codmoe.inference.engine_report import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", help="config file, or name of a shipped one (ensemble/stage3)")
    add("--checkpoint", help="weights; random ones without")
    add("--size", type=int, default=448, help="side of the images (448)")
    add("--large", type=int, default=16, help="batch of the throughput (16)")
    add("--dtype", default="auto", help="bf16, fp16 or fp32; bf16 where the GPU has it")
    add("--inductor", action="store_true", help="also compiled, which takes minutes")
    add("--inductor-only", action="store_true", help="compiled beside CUDA graphs, little else")
    add("--repeats", type=int, default=20, help="calls that count (20)")
    add("--budget", type=float, default=190, help="seconds once the model stands (190)")
    add("--device", help="cuda, cpu; the first GPU if there is one")
    add("--json", dest="json_file", help="also write the figures to this file")
    add("--model-options", dest="options", nargs="+", metavar="KEY=VALUE", help="top_k=1")
    settings = vars(parser.parse_args())
    try:
        if settings.pop("inductor_only"):
            settings["inductor"] = "only"
        settings["options"] = parse_options(settings["options"])
        run(settings.pop("config"), **settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
