"""List what is trained and what can be: codmoe models "*stage3*"

Trained models predict at once. Recipes are configs: `codmoe train NAME` makes their weights.
"""

from __future__ import annotations

import math
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from codmoe.commands.options import option
from codmoe.shipped import DEFAULT, FOLDER, SHIPPED, find_config, list_configs, shipped_names

OPTIONS = (
    option("pattern", nargs="?", default="*", help="part of a name, or a shell pattern"),
    option("--trained", action="store_true", help="only what is trained"),
)


def run(args) -> None:
    from mmengine.config import Config
    from rich.console import Console
    from rich.text import Text

    asked: str = args.pattern if set("*?[") & set(args.pattern) else f"*{args.pattern}*"
    trained = shipped_names(asked)
    recipes = [] if args.trained else [name for name in list_configs() if fnmatch(name, asked)]
    if not trained and not recipes:
        raise ValueError(f"no name matches {args.pattern!r}; codmoe models lists all")
    console = Console(soft_wrap=True, highlight=False)

    def say(name: str, facts: list[str], about: str) -> None:
        console.print(Text.assemble("  ", (f"{name:{width}}", "bold"), "  ", ", ".join(facts)))
        console.print(Text(f"      {about}", "dim"))

    width = max(map(len, (*trained, *recipes)))
    if trained:
        console.print("trained, ready to predict:", style="green")
    for name in trained:
        cfg = Config.fromfile(find_config(SHIPPED[name]))
        default = "what codmoe predict takes by itself; " if name == DEFAULT else ""
        about = f"{default}model card: {FOLDER / 'MODEL_CARD.md'}"
        say(name, [*_parts(cfg), *_weights(name)], about)
    if recipes:
        console.print("recipes, to be trained by codmoe train NAME:", style="yellow")
    for name in recipes:
        path = find_config(name)
        cfg = Config.fromfile(path)
        made = _made(cfg)
        there = [f"weights made here: {made}"] if made.is_file() else []
        say(name, [*_parts(cfg), f"tested on {' + '.join(_tested(cfg))}", *there], _about(path))


def _parts(cfg: Any) -> list[str]:
    """Backbone and experts of a config."""
    experts, chosen = list(cfg.model.experts), cfg.model.get("top_k")
    named = f"{chosen} of {len(experts)} experts" if chosen else f"{len(experts)} experts"
    return [cfg.model.backbone.name, f"expert {experts[0]}" if len(experts) == 1 else named]


def _weights(name: str) -> list[str]:
    """Parameters and size of a trained model's file, by its head alone."""
    from safetensors import safe_open

    from codmoe.trust import SCALE

    path = FOLDER / f"{name}_ensemble.safetensors"
    if not path.is_file():
        return ["whose weights this installation lacks"]
    with safe_open(path, framework="numpy") as file:
        # The scales of 8-bit weights are no numbers of the model.
        keys = [key for key in file.keys() if not key.endswith(SCALE)]  # noqa: SIM118
        count = sum(math.prod(file.get_slice(key).get_shape()) for key in keys)
    return [f"{count / 1e6:.2f} M parameters", f"{path.stat().st_size / 1e6:.1f} MB"]


def _about(path: Path) -> str:
    """The first sentence of the comment at the top of a config, or of its first base."""
    text = path.read_text(encoding="utf-8")
    comment = re.match(r"(?:#.*\n)+", text)
    if comment:
        words = " ".join(line.lstrip("# ") for line in comment[0].splitlines())
        return re.sub(r"configs/([\w/-]+)\.py", r"\1", re.split(r"(?<=\.)\s", words)[0])
    base = re.search(r"_base_ = \[\s*[\"'](.+?)[\"']", text)
    return _about(path.parent / base[1]) if base else ""


def _tested(cfg: Any) -> list[str]:
    loader = cfg.get("test_dataloader") or {}
    return list((loader.get("dataset") or {}).get("datasets") or ["its own data"])


def _made(cfg: Any) -> Path:
    """Where a stage leaves its weights."""
    return Path(cfg.checkpoint_dir) / f"{cfg.default_hooks.best.name}_best.pth"
