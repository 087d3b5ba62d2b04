"""tools/slurm_train.sh, with stand-ins for Slurm's commands."""

import os
import subprocess

import pytest
from miniature import ROOT

SCRIPT = str(ROOT / "tools" / "slurm_train.sh")
FAKES = {
    # Each writes down how it was called; srun and sbatch then run what they were given.
    "srun": 'echo "srun $*" >> calls; while [ "$1" != trainer ]; do shift; done; exec "$@"',
    "sbatch": (
        'echo "sbatch $*" >> calls; while [[ "$1" != *.sh ]]; do shift; done; '
        'cp "$1" copied; shift; SLURM_JOB_ID=7 exec bash copied "$@"'
    ),
    "scontrol": 'echo "scontrol $*" >> calls',
    "trainer": 'echo "train $*" >> calls; exit "$CODE"',
}


@pytest.fixture
def slurm(tmp_path):
    """Runs the script; its exit code and what it called."""
    for name, script in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def run(code, **settings):
        (tmp_path / "calls").unlink(missing_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CODMOE"))}
        path = f"{tmp_path}:{os.environ['PATH']}"
        env = dict(kept, PATH=path, PYTHON="trainer", CODE=str(code), **settings)
        command = ["bash", SCRIPT, "part", "name", "ensemble/stage3", "--work-dir", "my work"]
        done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


def test_in_the_terminal(slurm):
    code, (srun, train) = slurm(138, GPUS="4")
    assert code == 138 and srun.startswith("srun -p part --job-name=name --gres=gpu:4 --ntasks=4 ")
    assert train == (
        f"train -u {ROOT}/tools/train.py ensemble/stage3 --launcher slurm --work-dir my work"
    )


def test_a_batch_job_that_is_warned_is_queued_again(slurm):
    code, calls = slurm(138, REQUEUE="1", WARNING="300", SRUN_ARGS="--time=4:00:00")
    sbatch, _, train, scontrol = calls
    assert code == 138 and scontrol == "scontrol requeue 7" and "--auto-resume" not in train
    assert " --requeue --open-mode=append --signal=USR1@300 --time=4:00:00 " in sbatch


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_batch_job_that_ends_otherwise_is_not(slurm, code):
    ended, calls = slurm(code, REQUEUE="1")
    assert ended == code and [call.split()[0] for call in calls] == ["sbatch", "srun", "train"]


def test_a_job_that_was_queued_again_goes_on(slurm):
    _, calls = slurm(0, REQUEUE="1", SLURM_RESTART_COUNT="1")
    assert calls[-1].endswith("--work-dir my work --auto-resume")
