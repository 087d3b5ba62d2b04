"""Memory of a training step, the peak on a GPU and what autograd keeps on a CPU:
python tools/analysis/peak_memory.py experts/joint --limit 16 --cfg-options amp=fp16"""

from __future__ import annotations

import argparse
import sys

from codmoe.engine.config import parse_options
from codmoe.engine.memory import peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a shipped one (experts/joint)")
    parser.add_argument("--batch", type=int, help="images; the config's, on the CPU one")
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=10, help="training steps on the GPU")
    parser.add_argument("--limit", type=float, metavar="GiB", help="of the GPU, no more than this")
    parser.add_argument("--parts", action="store_true", help="on the CPU, of every part alone")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override the config")
    args = parser.parse_args()
    settings = {key: getattr(args, key) for key in ("batch", "size", "steps", "limit", "parts")}
    try:
        figures = peak_memory(args.config, parse_options(args.cfg_options), **settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(args.config + ": " + ", ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
