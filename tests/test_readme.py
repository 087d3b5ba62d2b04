"""What the README and the docs show works as written."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from codmoe import ModelLevelMoE
from codmoe.engine.config import load_config
from codmoe.engine.sources import read_sources
from codmoe.registry import MODELS
from codmoe.shipped import config_root

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("projects/**/*.md")}
    | {ROOT / "codmoe/weights/MODEL_CARD.md"}
)


def block(containing: str, text: str = README) -> str:
    """The one Python block of a page that holds a text."""
    found = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if containing in b]
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


def test_pairs_of_ones_own_train_the_shipped_ensemble():
    cfg = load_config("small/finetune")
    assert read_sources(cfg).file.is_file() and cfg.default_hooks.best.name == "finetuned"
    lines = [line for line in commands(ROOT / "README.md") if "small/finetune" in line]
    assert len(lines) == 3 and "finetuned_best.pth" in lines[1]


def test_the_expert_of_the_guide_passes_the_tester(run_dir, monkeypatch):
    """Parts of the tester that take seconds; the whole is what a contributor runs."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/models/experts"))
    guide = (ROOT / "docs/experts.md").read_text()
    scope = {"__name__": "sum_expert"}
    try:
        exec(block("class SumExpert", guide), scope)
        exec(block("class TestSum", guide), scope)
        tester = scope["TestSum"]()
        tester.test_output_meets_the_contract_at_any_size((48, 80))
        tester.test_every_parameter_gets_a_gradient(False)
        tester.test_overfits_one_image()
        tester.test_size_at_default_and_published_width()
        tester.test_is_documented()
    finally:
        MODELS.module_dict.pop("SumExpert", None)


def commands(page: Path) -> list[str]:
    """Lines of a page's shell blocks, continuations joined, comments away."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.S))
    return [line.split(" #")[0] for line in text.replace("\\\n", " ").splitlines()]


def source(command: str) -> Path | None:
    """The file that says which options a command has."""
    module = re.search(r"python -m ((?:benchmarks|projects)[\w.]+)", command)
    if module:
        return ROOT / (module[1].replace(".", "/") + ".py")
    name = re.search(r"\bcodmoe ([a-z]+)", command)
    script = re.search(r"tools/[\w/]+\.(?:py|sh)", command)
    if script:
        shell = re.search(r"dist_train|dist_test|slurm_train", script[0])
        text = (ROOT / script[0]).read_text()
        name = re.search(r"_(\w+)", shell[0]) if shell else re.search(r'tool\("(\w+)"\)', text)
    return ROOT / f"codmoe/commands/{name[1]}_command.py" if name else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_and_have_the_options_shown(page):
    for command in commands(page):
        path = source(command)
        if path is None:
            continue
        assert path.is_file(), command
        known = path.read_text() + (ROOT / "codmoe/cli.py").read_text()
        for shared in re.findall(r"^from (codmoe\.commands[.\w]+) import", known, re.M):
            known += (ROOT / (shared.replace(".", "/") + ".py")).read_text()
        # What stands before it, as srun does, has options of its own.
        own = re.sub(r"^srun .*?(?=\bcodmoe |\bpython )", "", command)
        words = shlex.split(own.replace("[", "").replace("]", "").split("$(")[0], comments=True)
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in known or f"'{option}'" in known, f"{command}: {option}"


def test_every_photograph_is_credited_and_small():
    credits = (ROOT / "demo/photos.md").read_text()
    photos = {path.stem: path for path in ROOT.glob("demo/photos/*.jpg")}
    rows = re.findall(
        r"^\| `(\w+)\.jpg` \| [^|]+ \| [^|]+ \| \[.+\]\(https:.+\) \|$", credits, re.M
    )
    assert sorted(rows) == sorted(photos)
    assert {path.stem for path in ROOT.glob("docs/images/predict/*.jpg")} <= set(photos)
    for path in photos.values():
        assert max(Image.open(path).size) <= 640


def test_named_files_exist():
    named = set(
        re.findall(
            r"(?:tools|configs|codmoe|docs|tests)/[\w./-]+\.(?:py|sh|md|png|jpg|svg)", README
        )
    )
    examples = {"configs/experts/joint_linear.py"}
    assert len(named) > 15
    assert [path for path in sorted(named - examples) if not (ROOT / path).is_file()] == []


def test_badges_are_true():
    project = (ROOT / "pyproject.toml").read_text()
    facts = dict(
        license=re.search(r'^license = "(.*)"', project, re.M)[1],
        python=re.search(r'^requires-python = ">=(.*)"', project, re.M)[1] + "+",
        torch=re.search(r'"torch>=(.*?)"', project)[1] + "+",
    )
    for name, fact in facts.items():
        assert f"[![{name}: {fact}](docs/images/badges/{name}.svg)]" in README
        assert f">{fact}</text>" in (ROOT / f"docs/images/badges/{name}.svg").read_text()


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_finished_and_its_links_lead_somewhere(page):
    text = page.read_text()
    assert not re.findall(r"^[A-Z_]{4,}$|\bTODO\b|\bTBD\b", text, re.M)
    for link, anchor in re.findall(r"\]\(([^)#:]*?)(?:#([\w-]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
