"""What the README shows works as written."""

import re
import sys
from pathlib import Path

import pytest
import torch

from codmoe import ModelLevelMoE
from codmoe.engine.config import config_root, load_config
from codmoe.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(containing: str) -> str:
    """The one code block of the README that holds a text."""
    found = [b for b in re.findall(r"```python\n(.*?)```", README, re.S) if containing in b]
    assert len(found) == 1, f"{len(found)} blocks hold {containing!r}"
    return found[0]


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_expert", None)


def test_python_interface(run_dir):
    torch.manual_seed(0)
    (run_dir / "checkpoints_moe").mkdir()
    saved = ModelLevelMoE(backbone="pvt_v2_b2", num_experts=4, top_k=2)
    torch.save(dict(state_dict=saved.state_dict()), "checkpoints_moe/ensemble_best.pth")
    scope = dict(images=torch.randn(1, 3, 64, 64))
    exec(block("num_experts=4"), scope)
    assert scope["pred"].shape == (1, 1, 64, 64)
    assert scope["routing_info"]["top_k_indices"].shape == (1, 2)
    assert torch.equal(
        scope["model"].state_dict()["router.fuse.0.weight"],
        saved.state_dict()["router.fuse.0.weight"],
    )


def test_a_new_expert_is_one_file_and_a_line_of_config(run_dir):
    (run_dir / "my_expert.py").write_text(block("# my_expert.py"))
    text = block("joint_linear.py").replace("./joint.py", str(config_root() / "experts/joint.py"))
    (run_dir / "joint_linear.py").write_text(text)
    cfg = load_config("joint_linear.py")
    cfg.model.backbone.update(name="pvt_v2_b0", pretrained=False)
    for name in ("sinet", "zoomnet", "ujsc"):
        cfg.model.experts[name].channels = 16
    model = MODELS.build(cfg.model)
    assert model.expert_names == ("linear", "sinet", "ujsc", "zoomnet")
    targets = torch.zeros(2, 1, 64, 64)
    losses = model.train()(torch.randn(2, 3, 64, 64), targets=targets, mode="loss")
    assert losses["linear.loss_structure"] > 0


def test_named_files_exist():
    named = set(
        re.findall(r"(?:tools|configs|codmoe|docs|tests)/[\w./-]+\.(?:py|sh|md|png)", README)
    )
    examples = {"configs/ensemble/stage3_mine.py", "configs/experts/joint_linear.py"}
    assert len(named) > 15
    assert [path for path in sorted(named - examples) if not (ROOT / path).is_file()] == []


def test_pages_are_finished_and_their_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert len(pages) > 4
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"^[A-Z_]{4,}$|\bTODO\b|\bTBD\b", text, re.M), page
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[\w-]+)?\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
