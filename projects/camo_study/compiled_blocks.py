"""Runs a tool with the blocks of a ViT compiled, which makes training faster:
python projects/camo_study/compiled_blocks.py tools/train.py CONFIG
"""

from __future__ import annotations

import runpy
import sys

import torch

import codmoe.compat  # noqa: F401  # timm cannot load beside every torchvision without it


def main() -> None:
    from timm.models.vision_transformer import Block

    # Blocks of one shape share what was compiled for them; eight is too few for all shapes here.
    torch._dynamo.config.recompile_limit = 64
    Block.forward = torch.compile(Block.forward, dynamic=False)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
