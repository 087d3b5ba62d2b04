"""Kills of trainings, as the script does by the hundred; here a handful."""

import json
import os
import subprocess
import sys

from miniature import ROOT


def test_killed_stages_end_as_the_uninterrupted_one(tmp_path):
    # A process of its own: it forks, and a process with threads of torch must not.
    options = ["--random", "1", "--every", "16", "--json", str(tmp_path / "kills.json")]
    command = [sys.executable, "-m", "benchmarks.kills", *options]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "kills.json").read_text())
    assert result["wrong"] == [] and result["total"] >= 3
    assert {where.partition(",")[0] for where in result["kills"]} == {
        f"stage {i}" for i in (1, 2, 3)
    }
