"""Configs with one wrong value each: python tests/wrong_configs.py [EVERY] [CONFIG ...]

Each key of a config, at every depth, is given values of other types; then it is loaded, everything
is built, and training starts, without a step. What comes out is no error, or one that a ``raise``
of the package made. With EVERY=10 a tenth of the attempts is made.
"""

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import mmengine.runner.loops as loops
from miniature import ONE_EXPERT, TWO_EXPERTS, build, write_config
from mmengine.logging import MMLogger

from codmoe.cli import _said
from codmoe.engine import config
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.config import load_config
from codmoe.engine.launch import prepare, train

WRONG = (
    *(5, -1, 0, 2.5, float("inf"), True, None, "x", "a.b", "", [], [1], ["x"], {}, {"a": 1}),
    *({"type": "Nope"}, {"type": 5}, [{"type": "Nope"}], [None], lambda: 0, Path("x"), object),
    *(b"x", 10**400),
)


def keys(node, path=()):
    """Paths of everything in a config, its lists' items included."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        here = (*path, name)
        yield here
        if isinstance(value, (dict, list)):
            yield from keys(value, here)
        if isinstance(value, dict):
            yield (*here, "unknown_key")


def changed(cfg, path, value):
    """Sets a value at a path."""
    for name in path[:-1]:
        cfg = cfg[name]
    cfg[path[-1]] = value


def configs(folder):
    """The three stages in miniature, with what they start from."""
    first = write_config(folder, 1, ONE_EXPERT)
    two = write_config(folder, 1, TWO_EXPERTS)
    weights = Path(folder) / "weights"
    second = write_config(folder, 2, TWO_EXPERTS)
    third = write_config(folder, 3, TWO_EXPERTS)
    save_weights(weights / "experts_joint_best.pth", build(two), {}, "x")
    save_weights(weights / "router_best.pth", build(second), {}, "x")
    return [first, second, third]


def attempt(path, key, value, folder, built=True):
    """What comes out of a config with this one value: None, a sentence, or an exception."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            with changing(key, value):
                cfg = load_config(path)
            if built:
                train(prepare(cfg, work_dir=str(folder)))
    except (Exception, SystemExit) as error:
        said = _said(error) if isinstance(error, Exception) else None
        return said or error
    return None


@contextlib.contextmanager
def changing(path, value):
    """Has configs read with another value."""
    read = config._read

    def with_value(file):
        cfg = read(file)
        changed(cfg._cfg_dict, path, value)
        return cfg

    config._read = with_value
    try:
        yield
    finally:
        config._read = read


def main(every=1, names=()):
    """Tries all; prints what was left."""
    warnings.simplefilter("ignore")
    if not names:
        loops.EpochBasedTrainLoop.run = lambda self: None
    draw = random.Random(0)
    folder = Path(tempfile.mkdtemp())
    found, left = Counter(), {}
    for path in names or configs(folder):
        known = {*config.RUNNER_KEYS, *config.OWN_KEYS} - {"config_file"}
        for key in keys({k: v for k, v in load_config(path).to_dict().items() if k in known}):
            for value in WRONG:
                if draw.random() * every > 1:
                    continue
                work = folder / f"work{sum(found.values())}"
                result = attempt(path, key, value, work, built=not names)
                MMLogger._instance_dict.clear()
                kind = {None: "works", str: "a sentence"}.get(
                    result if result is None else type(result), "left"
                )
                found[kind] += 1
                if kind == "left":
                    frame = traceback.extract_tb(result.__traceback__)[-1]
                    where = f"{type(result).__name__} at {frame.filename}:{frame.lineno}"
                    left.setdefault(where, []).append(
                        f"{'.'.join(map(str, key))}={value!r:.50}: {str(result)[:150]}"
                    )
                if os.environ.get("SHOW"):
                    print(f"{key}={value!r:.50} -> {kind}: {result!s:.300}", flush=True)
    shutil.rmtree(folder)
    print(dict(found))
    for where, cases in left.items():
        print(f"{len(cases)} × {where}\n    " + "\n    ".join(cases[:3]))
    return left


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 1, sys.argv[2:])
