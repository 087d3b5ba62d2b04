"""What a stage starts from: files named, read, averaged and put together."""

import os

import pytest
import torch
from miniature import build, prepared
from toy_parts import NAMES, ONE_BACKBONE, REFIT, SOUP, leave_separate, toy_config

from codmoe.engine.config import load_config
from codmoe.engine.handover import average_weights, load_sources, read_sources
from codmoe.engine.launch import train
from codmoe.engine.stages import plan


@pytest.fixture
def separate(tmp_path):
    return leave_separate(tmp_path)


def test_the_average_is_exact(tmp_path):
    paths, states = [], []
    for i in range(3):
        path = tmp_path / f"{i}.pth"
        state = {"backbone.w": torch.randn(5, generator=torch.Generator().manual_seed(i))}
        state["backbone.same"] = torch.full((4,), 0.1)
        state["backbone.half"] = torch.full((2,), float(i), dtype=torch.bfloat16)
        state |= {"backbone.steps": torch.tensor(10 + i), "experts.x.w": torch.zeros(1)}
        torch.save(dict(state_dict=state), path)
        paths.append(path)
        states.append(state)
    mean = average_weights(paths)
    assert sorted(mean) == ["backbone.half", "backbone.same", "backbone.steps", "backbone.w"]
    expected = torch.stack([s["backbone.w"].double() for s in states]).mean(0).float()
    assert torch.equal(mean["backbone.w"], expected)
    assert torch.equal(mean["backbone.same"], states[0]["backbone.same"])  # to the last bit
    assert mean["backbone.half"].tolist() == [1, 1]
    assert mean["backbone.half"].dtype == torch.float32  # not rounded again
    assert mean["backbone.steps"] == 10

    torch.save(dict(state_dict={**states[1], "backbone.w": torch.zeros(6)}), paths[1])
    with pytest.raises(ValueError, match=r"0\.pth and .*1\.pth cannot .* 1 keys .*backbone\.w;"):
        average_weights(paths)
    torch.save(dict(state_dict={"experts.x.w": torch.zeros(1)}), paths[2])
    with pytest.raises(ValueError, match=r"2\.pth holds no backbone"):
        average_weights([paths[0], paths[2]])


def test_buffers_travel_with_their_part(tmp_path, separate):
    content = torch.load(separate["pranet"], weights_only=True)
    content["state_dict"]["backbone.shift"].fill_(4)
    content["state_dict"]["backbone.steps"].fill_(9)
    torch.save(content, separate["pranet"])
    for changes, shift in ((ONE_BACKBONE, 0), (SOUP, 2)):
        config = toy_config(tmp_path, 2, changes)
        model = build(config)
        cfg = load_config(config)
        lines = load_sources(model, read_sources(cfg))
        assert model.backbone.shift.tolist() == [shift] * 8
        assert len(lines) == 3 and "tensors of expert pranet" in lines[1]


def test_files_that_are_missing_or_another_experts(tmp_path, separate):
    config = toy_config(tmp_path, 2, ONE_BACKBONE)
    cfg = prepared(config, tmp_path / "work")
    separate["pranet"].write_bytes(separate["sinet"].read_bytes())
    with pytest.raises(
        ValueError, match=r"init_from.experts.pranet=.* no expert 'pranet', but sin"
    ):
        train(cfg)
    for path in separate.values():
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        train(prepared(config, tmp_path / "other"))
    for word in (*map(str, separate.values()), "do not exist; make them with: make experts"):
        assert word in str(caught.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (dict(backbone="a.pth", experts=dict(sinet="a.pth")), "names no file for pranet; it has s"),
        (dict(file="a.pth", backbone="b.pth"), "file and backbone exclude each other.*_delete_"),
        (dict(backbone=dict(average=["a.pth"])), r"average.*two files or more"),
        (dict(backbone=dict(mean=["a.pth", "b.pth"])), r"give a file, or dict\(average"),
        (dict(backbone="a.pth", parts=("backbone",)), "parts belongs to file"),
        (dict(parts=("backbone",)), "names no weights"),
        (dict(backbone="a.pth", expert="b.pth"), "no key 'expert'.*'experts'"),
        (dict(experts="a.pth"), r"init_from.experts='a.pth': give dict"),
    ],
)
def test_faults_of_the_config_are_told(tmp_path, init, words):
    config = toy_config(tmp_path, 2, dict(init_from=dict(init, _delete_=True)))
    with pytest.raises(ValueError, match=words):
        load_config(config)


def test_load_from_beside_it_is_refused(tmp_path, separate):
    cfg = prepared(toy_config(tmp_path, 2, ONE_BACKBONE), tmp_path / "work", load_from="x.pth")
    with pytest.raises(ValueError, match=r"load_from='x.pth' would replace what init_from loads"):
        train(cfg)


def test_several_files_in_a_plan_of_stages(tmp_path, separate):
    configs = [
        toy_config(
            tmp_path, 1, dict(default_hooks=dict(best=dict(name=f"expert_{n}"))), experts=[n]
        )
        for n in NAMES
    ]
    refit = toy_config(tmp_path, 1, SOUP, REFIT)
    start = dict(init_from=dict(file="experts_refit_best.pth"))
    names = [str(c) for c in (*configs, refit, toy_config(tmp_path, 2, start))]
    stages = plan([*names, str(toy_config(tmp_path, 3))], tmp_path / "work", [])
    stage = stages[2]
    assert stage.sources == list(reversed(list(separate.values())))
    for path in (stage.work_dir / "finished.json", stage.weights):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    stage.mark.write_text(stage.fingerprint)
    assert stage.is_finished()
    os.utime(separate["sinet"], (2e9, 2e9))  # one of them was trained again
    assert not stage.is_finished()
    with pytest.raises(ValueError, match=r"but the stage before leaves .*expert_sinet_best.pth"):
        plan([names[1], names[3]], tmp_path / "work", [])
