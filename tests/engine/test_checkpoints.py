"""Checkpoints: written whole, read without running code, loaded strictly."""

import json
from pathlib import Path

import pytest
import torch
from miniature import build, file_size, write_config
from mmengine.fileio import get_file_backend
from safetensors.torch import save_file
from torch import nn

from codmoe.engine.checkpoints import (
    AtomicBackend,
    load_parts,
    newest_checkpoint,
    read_meta,
    read_weights,
    save_weights,
)


class Parts(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.backbone = nn.Linear(2, width)
        self.experts = nn.ModuleDict(dict(sinet=nn.BatchNorm1d(width)))
        self.router = nn.Linear(width, 1)


def save(path, model, run="run", **meta):
    return save_weights(path, model, meta, run)


def test_a_file_appears_once_it_is_complete(tmp_path, monkeypatch):
    backend = get_file_backend(backend_args=dict(backend="atomic"))
    assert isinstance(backend, AtomicBackend)
    path = tmp_path / "deep" / "epoch_1.pth"
    backend.put(b"whole", path)
    backend.put_text("", tmp_path / "last_checkpoint")
    assert path.read_bytes() == b"whole"
    assert (tmp_path / "last_checkpoint").read_text(encoding="utf-8") == ""

    real = Path.write_bytes

    def full_disk(self, data):
        real(self, data[: len(data) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    for target in (path, path.with_name("epoch_2.pth")):
        with pytest.raises(OSError, match="No space"):
            backend.put(b"another", target)
    assert [p.name for p in path.parent.iterdir()] == ["epoch_1.pth"]
    assert path.read_bytes() == b"whole"


def test_weights_of_another_run_are_kept_and_of_the_own_replaced(tmp_path):
    path = tmp_path / "new" / "router_best.pth"
    first, second, third = Parts(), Parts(), Parts()
    assert save(path, first, "a") is None
    assert save(path, second, "a") is None  # the same run: no second file
    assert [p.name for p in path.parent.iterdir()] == ["router_best.pth"]
    kept = save(path, third, "b")
    assert kept.parent == path.parent and kept.name.startswith("router_best.2")
    for file, model in ((kept, second), (path, third)):
        assert torch.equal(read_weights(file)["backbone.weight"], model.backbone.weight)
    foreign = tmp_path / "foreign.pth"
    foreign.write_bytes(b"no checkpoint at all")
    assert save(foreign, first, "a").read_bytes() == b"no checkpoint at all"


def test_weights_that_cannot_be_written_leave_the_earlier_ones(tmp_path):
    path = tmp_path / "x_best.pth"
    save(path, Parts(), score=0.5)
    before = path.read_bytes()

    with file_size(len(before) // 2), pytest.raises(OSError, match="free some room") as caught:
        save(path, Parts(), score=0.6)
    assert caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x_best.pth"] and path.read_bytes() == before


def test_what_is_saved_reads_without_running_code(tmp_path):
    path = tmp_path / "x_best.pth"
    model = Parts()
    save(path, model, score=0.5, expert_names=["sinet"])
    content = torch.load(path, weights_only=True)
    assert content["meta"] == dict(score=0.5, expert_names=["sinet"], run_id="run")
    assert read_meta(path) == content["meta"] and read_meta(tmp_path / "absent.pth") == {}
    # Copies: what is trained on must not change what was saved.
    assert content["state_dict"]["backbone.weight"].data_ptr() != model.backbone.weight.data_ptr()
    other = Parts()
    other.load_state_dict(content["state_dict"])
    assert torch.equal(other.router.weight, model.router.weight)


def test_a_part_is_loaded_and_the_rest_left(tmp_path):
    path = tmp_path / "x_best.pth"
    source, target = Parts(), Parts()
    source.experts.sinet.running_mean.fill_(7)
    save(path, source)
    router = target.router.weight.clone()
    keys = load_parts(target, path, ("backbone", "experts"))
    assert {key.split(".")[0] for key in keys} == {"backbone", "experts"}
    assert torch.equal(target.backbone.weight, source.backbone.weight)
    assert target.experts.sinet.running_mean.tolist() == [7, 7]
    assert torch.equal(target.router.weight, router)
    assert len(load_parts(target, path)) == len(source.state_dict())
    assert torch.equal(target.router.weight, source.router.weight)


def test_what_does_not_fit_is_told_with_file_keys_and_command(tmp_path):
    path = tmp_path / "experts_joint_best.pth"
    command = "bash tools/dist_train.sh configs/experts/joint.py 2"
    save(path, Parts())
    with pytest.raises(ValueError) as caught:
        load_parts(Parts(width=3), path, ("backbone",), command)
    for word in (str(path), "2 keys differ in shape", "backbone.weight", command):
        assert word in str(caught.value)

    more = Parts()
    more.experts["ujsc"] = nn.Linear(1, 1)
    words = r"2 keys of the model are not in it .*experts\.ujsc.* no ujsc: "
    words += r".*parts=\('backbone', 'experts.sinet'\)"
    with pytest.raises(ValueError, match=words):
        load_parts(more, path)
    more = Parts()
    more.combiner = nn.Linear(1, 1)
    save(path, more)
    with pytest.raises(ValueError, match=r"2 keys of it are not in the model .*combiner\.weight"):
        load_parts(Parts(), path)
    untouched = Parts()
    before = untouched.backbone.weight.clone()
    with pytest.raises(ValueError):
        load_parts(untouched, path)
    assert torch.equal(untouched.backbone.weight, before)

    absent = tmp_path / "absent.pth"
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist; make it with: bash"):
        load_parts(Parts(), absent, command=command)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"broken\.pth cannot be read"):
        load_parts(Parts(), broken)


@pytest.mark.parametrize("content", [dict(epoch=3), [1, 2], dict(state_dict=dict(a="b")), {}])
def test_a_file_without_weights_is_told(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"other\.pth holds no state_dict"):
        read_weights(path)


def test_plain_state_dicts_and_text_files(tmp_path):
    torch.save(Parts().state_dict(), tmp_path / "plain.pth")
    assert "router.bias" in read_weights(tmp_path / "plain.pth")
    (tmp_path / "finished.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path / "finished.json")


def test_an_ablation_starts_from_the_whole_models_file(tmp_path):
    whole = build(write_config(tmp_path, 1))
    save_weights(tmp_path / "joint.pth", whole, {}, "run")
    fewer = build(write_config(tmp_path, 1, dict(model=dict(experts=dict(ujsc=None)))))
    keys = load_parts(fewer, tmp_path / "joint.pth", ("backbone", "experts"))
    assert not any(key.startswith("experts.ujsc") for key in keys)
    name = "experts.sinet.search.head.1.weight"
    assert torch.equal(fewer.state_dict()[name], whole.state_dict()[name])


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints of two epochs, as a run of another folder left them."""
    for epoch in (1, 2):
        content = dict(state_dict={}, optimizer={}, meta=dict(epoch=epoch, iter=10 * epoch))
        torch.save(content, tmp_path / f"epoch_{epoch}.pth")
    torch.save(dict(state_dict={}, meta=dict(iter=30)), tmp_path / "best_IoU_epoch_3.pth")
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_2.pth")
    return tmp_path


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_the_last_checkpoint_is_looked_for_in_its_own_folder(run):
    assert newest_checkpoint(run) == run / "epoch_2.pth"
    (run / "last_checkpoint").write_text("/elsewhere/epoch_1.pth")
    assert newest_checkpoint(run) == run / "epoch_1.pth"


@pytest.mark.parametrize(
    ("fault", "used", "reason"),
    [
        (lambda run: (run / "last_checkpoint").write_text(""), 2, "is empty or missing"),
        (lambda run: (run / "last_checkpoint").write_text("/else"), 2, "does not exist"),
        (lambda run: (run / "last_checkpoint").write_bytes(b"\xff\x00"), 2, "does not exist"),
        (lambda run: (run / "last_checkpoint").unlink(), 2, "is empty or missing"),
        (lambda run: (run / "epoch_2.pth").unlink(), 1, "epoch_2.pth does not exist"),
        (lambda run: cut_off(run / "epoch_2.pth"), 1, "epoch_2.pth cannot be read"),
        (lambda run: (run / "epoch_2.pth").write_bytes(b""), 1, "epoch_2.pth cannot be read"),
    ],
)
def test_the_newest_whole_checkpoint_is_taken_and_told(run, fault, used, reason, caplog):
    fault(run)
    assert newest_checkpoint(run) == run / f"epoch_{used}.pth"
    (told,) = caplog.messages
    assert told.startswith(f"going on from {run / f'epoch_{used}.pth'}: ") and reason in told


def test_of_several_processes_one_tells_it(run, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    (run / "last_checkpoint").unlink()
    assert newest_checkpoint(run) == run / "epoch_2.pth" and not caplog.messages


def test_no_whole_checkpoint(run):
    for epoch in (1, 2):
        cut_off(run / f"epoch_{epoch}.pth")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole .*leave --resume out"):
        newest_checkpoint(run)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_predict_nothing_are_refused(tmp_path, suffix):
    state, path = Parts().state_dict(), tmp_path / f"weights{suffix}"
    writes = {".pth": torch.save, ".safetensors": save_file}[suffix]
    writes({**state, "router.bias": torch.tensor([float("inf")])}, path)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors hold NaN or infinity \(router.bias\)"):
        load_parts(Parts(), path)
    writes({**state, "router.weight": torch.ones(1, 2, dtype=torch.int64)}, path)
    with pytest.raises(ValueError, match=r"router.weight is torch.int64, torch.float32 in the mo"):
        load_parts(Parts(), path)
    writes({**state, "router.weight": torch.ones(1, 2, dtype=torch.float16)}, path)
    load_parts(Parts(), path)


def test_the_share_that_fits_is_said(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({k.replace("router", "gate"): v for k, v in Parts().state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"7 of 9 tensors of the model fit; 2 keys of the model"):
        load_parts(Parts(), path)
