"""The launcher of several processes ends as they do, without a word of its own."""

from miniature import ONE_EXPERT, bash, signal_at, write_config


def test_a_mistake_is_one_sentence(tmp_path):
    done = bash("dist_train.sh", "ensemble/stage33", "2", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines and all(
        line.startswith("error: ") and "did you mean 'ensemble/stage3'" in line for line in lines
    )


def test_a_signal_to_one_process_ends_all(tmp_path):
    # At the end of an epoch, of two: nothing but the epoch's own checkpoint is written.
    config = write_config(tmp_path, 1, ONE_EXPERT, signal_at(0, rank=1), epochs=2)
    done = bash("dist_train.sh", config, "2", "--work-dir", tmp_path / "my work", cwd=tmp_path)
    assert done.returncode == 143 and "Traceback" not in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith(f"interrupted by SIGTERM: {tmp_path}/my work/epoch_1.pth holds every")
    assert "go on with: bash " in told and told.endswith(r"/my\ work --resume")
