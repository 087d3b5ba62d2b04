"""Wrong files and numbers for every argument of every tool: python tests/wrong_files.py [TOOL ...]

EVERY=10 in the environment tries a tenth of them.

Each tool is run in this process with all arguments right but one. What comes out is success, a
usage error or one sentence that a ``raise`` of the package made.
"""

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import mmengine.runner.loops as loops
import numpy as np
import pytest
import torch
from miniature import TWO_EXPERTS, build, call, write_config
from mmengine.logging import MMLogger
from PIL import Image

from codmoe.engine.checkpoints import save_weights
from codmoe.shipped import shipped_weights

NUMBERS = ("-1", "0", "1000000000000", "x", "1.5", "nan")


def wrong_files(folder):
    """Paths that are hardly what any option wants."""
    made = dict(
        empty=b"", binary=bytes(range(256)) * 20, list=b"[1, 2]", dict=b'{"a": {"b": [1]}}',
        nested=b'{"table": {"x": {"y": 3}}}', row=b'{"method": 1, "images": {"a": 1}}',
        deep=b"[" * 5000, python=b"model = dict(type='ModelLevelMoE')", text=b"hello\n",
        utf16="model = 1".encode("utf-16"), pickle=b"\x80\x04N.", half=b"\x89PNG\r\n\x1a\n",
    )  # fmt: skip
    paths = []
    for name, content in made.items():
        for suffix in ("", ".json", ".py", ".pth", ".safetensors", ".png"):
            path = folder / f"{name}{suffix}"
            path.write_bytes(content)
            paths += [path] if suffix or name in ("empty", "binary") else []
    torch.save([torch.zeros(2)], folder / "list_of_tensors.pth")
    torch.save(dict(state_dict=dict(a=1)), folder / "numbers.pth")
    torch.save(dict(state_dict=dict(a=torch.zeros(2)), meta=[1]), folder / "meta.pth")
    (folder / "folder").mkdir()
    (folder / "images/1.png").mkdir(parents=True)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "loops").mkdir()
    (folder / "loops/loop.png").symlink_to(folder / "loops/loop.png")
    (folder / "loops/round").symlink_to(folder / "loops", target_is_directory=True)
    (folder / "broken.png").symlink_to(folder / "nothing")
    (folder / os.fsdecode(b"not\xff.png")).write_bytes(b"x")
    return [
        *paths, *(folder / f"{name}.pth" for name in ("list_of_tensors", "numbers", "meta")),
        folder / "folder", folder / "images", folder / "loop.png", folder / "loops",
        folder / "broken.png", folder / os.fsdecode(b"not\xff.png"), folder / "missing",
        folder / "missing/below.json", folder / ("n" * 300), folder / "text.json/below", "",
        "/dev/null", "/proc/1/mem",
    ]  # fmt: skip


def right(folder):
    """``{tool: (arguments that are right, how many are positional)}``."""
    weights = folder / "weights"
    config, two = write_config(folder, 2, TWO_EXPERTS), write_config(folder, 1, TWO_EXPERTS)
    save_weights(weights / "experts_joint_best.pth", build(two), {}, "x")
    save_weights(weights / "router_best.pth", build(config), {}, "x")
    third = write_config(folder, 3, TWO_EXPERTS)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:20] = 255
    for kind in ("Imgs", "GT"):
        (folder / "data" / kind).mkdir(parents=True)
        for name in "abc":
            Image.fromarray(mask if kind == "GT" else np.stack([mask] * 3, -1)).save(
                folder / "data" / kind / f"{name}.png"
            )
    image, gt, out = folder / "data/Imgs/a.png", folder / "data/GT", folder / "out"
    shipped = shipped_weights()
    return {
        "train": [config, "--work-dir", out, "--data-root", None, "--cfg-options", "a=1"],
        "test": [config, weights / "router_best.pth", "--json", out / "a.json", "--out", out / "o",
                 "--grid", out / "g.png", "--pictures", out / "e", "--work-dir", out / "w",
                 "--data-root", None, "--compile", None],
        "run_stages": [two, config, third, "--work-dir", out, "--gpus", 1, "--data-root", None],
        "predict": [image, "--out", out / "p", "--checkpoint", shipped, "--config", None,
                    "--threshold", 0.5, "--size", 64, "--batch-size", 1, "--device", "cpu",
                    "--compile", None],
        "pack_weights": [shipped, out / "packed.safetensors", "--limit", None],
        "export": [shipped, "--format", "safetensors", "--out", out / "x", "--config", None,
                   "--size", 64, "--images", None],
        "eval_maps": ["--pred", gt, "--gt", gt, "--json", folder / "m.json", "--method", "m",
                      "--datasets", "d", "--device", "cpu", "--workers", 1],
        "analysis/compare": [folder / "m.json", "--names", "a", "--sources", None,
                             "--metrics", "IoU", "--datasets", None, "--baseline", None,
                             "--out", out / "c"],
        "analysis/model_summary": [config, "--size", 64, "--json", out / "s.json"],
        "analysis/report": [folder / "data", "--out", out / "r.html"],
        "analysis/benchmark": [config, "--batch-sizes", 1, "--sizes", 64, "--routes", "auto",
                               "--precisions", "fp32", "--executions", "eager", "--repeats", 1,
                               "--warmup", 1, "--device", "cpu", "--checkpoint",
                               weights / "router_best.pth", "--json", out / "b.json"],
        "data/browse": [config, "--out", out / "b.png", "--attributes", out / "a.png",
                        "--data-root", None, "--count", 2, "--columns", 2, "--seed", 0],
        "data/doctor": [folder / "data", "--json", out / "d.json", "--image-dir", None,
                        "--mask-dir", None, "--workers", 1],
    }  # fmt: skip


def attempts(given, files):
    """Argument lists with one wrong value."""
    for i, value in enumerate(given):
        if isinstance(value, str) and value.startswith("--"):
            continue
        for wrong in (*NUMBERS, *files):
            line = list(given)
            line[i] = wrong
            # Options whose right value is to leave them out.
            left = {j for j, v in enumerate(line) if v is None}
            left |= {j - 1 for j in left}
            yield (
                given[i - 1] if i else "1st",
                wrong,
                [v for j, v in enumerate(line) if j not in left],
            )


def main(tools=()):
    """Tries all; prints what was left."""
    warnings.simplefilter("ignore")
    loops.EpochBasedTrainLoop.run = lambda self: None
    folder = Path(tempfile.mkdtemp())
    (folder / "wrong").mkdir()
    os.chdir(folder)
    files, every = wrong_files(folder / "wrong"), right(folder)
    patch = pytest.MonkeyPatch()
    call(patch, "eval_maps", *every["eval_maps"])
    found, left, draw = Counter(), [], random.Random(0)
    for tool, given in every.items():
        if tools and tool not in tools:
            continue
        for option, wrong, line in attempts(given, files):
            if draw.random() * float(os.environ.get("EVERY", 1)) > 1:
                continue
            shutil.rmtree(folder / "out", ignore_errors=True)
            text = io.StringIO()
            try:
                with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                    code = call(patch, tool, *line)
            except Exception as error:
                code = f"error: unexpected, not caught: {type(error).__name__} {error}"
            MMLogger._instance_dict.clear()
            bad = "Traceback" in text.getvalue() or str(code).startswith("error: unexpected")
            kind = "left" if bad else "works" if code in (None, 0) else "told"
            found[tool, kind] += 1
            if bad:
                left.append(
                    f"{tool} {option} {wrong!s:.60}: {code!s:.250} {text.getvalue()[-200:]}"
                )
            if os.environ.get("SHOW"):
                print(f"{tool} {option} {wrong!r:.80} -> {kind}: {code!s:.200}", flush=True)
    shutil.rmtree(folder)
    print(dict(found))
    print("\n".join(left))
    return left


if __name__ == "__main__":
    main(sys.argv[1:])
