"""The wheel works without the checkout: configs and tools are in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import codmoe, torch
from pathlib import Path
assert Path(codmoe.__file__).is_relative_to(Path.cwd().parent / "unpacked"), codmoe.__file__
from codmoe.shipped import config_root
assert config_root().is_relative_to(Path(codmoe.__file__).parent), config_root()
print(*codmoe.list_models())
mini = dict(channels=8)
model = codmoe.create_model(
    "ensemble/stage3", backbone=dict(name="pvt_v2_b0"),
    experts=dict(sinet=mini, pranet=mini, zoomnet=mini, ujsc=mini), router=dict(width=8))
print(tuple(model(torch.randn(1, 3, 64, 64)).shape))
"""


def run(command, **options):
    done = subprocess.run(command, text=True, capture_output=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_a_wheel_is_enough(tmp_path):
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    run([sys.executable, *build])
    (wheel,) = tmp_path.glob("codmoe-*.whl")
    unpacked, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    elsewhere.mkdir()
    assert "codmoe/py.typed" in names
    for name in ("LICENSE", "codmoe/weights/NOTICE", "codmoe/weights/ATTRIBUTION.txt"):
        assert any(found.endswith(f".dist-info/licenses/{name}") for found in names), name
    for folder in ("configs", "tools", "codmoe"):
        files = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files and {f"codmoe/{name.removeprefix('codmoe/')}" for name in files} <= set(names)
    outside = ("tests/", "docs/", "benchmarks/", "projects/")
    assert not any(name.startswith(outside) or "__pycache__" in name for name in names)

    env = dict(os.environ, PYTHONPATH=str(unpacked), OMP_NUM_THREADS="1", PYTHON=sys.executable)
    out = run([sys.executable, "-c", SCRIPT], cwd=elsewhere, env=env).splitlines()
    from codmoe import list_models

    assert out[0].split() == list_models() and out[1] == "(1, 1, 64, 64)"
    tools = unpacked / "codmoe" / "tools"
    done = subprocess.run(
        ["bash", str(tools / "dist_train.sh"), "router/stage2", "1"],
        cwd=elsewhere,
        env=dict(env, PYTHONPATH=str(unpacked)),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode != 0 and "error: this stage starts from checkpoints_moe" in done.stderr
