import json

from miniature import NARROW_MODEL, call
from mmengine.config import Config

from codmoe.inference.summary import report


def test_the_command_line(tmp_path, monkeypatch, capsys):
    config = tmp_path / "miniature.py"
    # It asks for weights: the tool must neither read nor download them.
    section = dict(NARROW_MODEL, type="ModelLevelMoE")
    section["backbone"] = dict(
        NARROW_MODEL["backbone"], pretrained=True, checkpoint="absent.safetensors"
    )
    config.write_text(Config(dict(model=section)).pretty_text)

    monkeypatch.chdir(tmp_path)
    tool = "analysis/model_summary"
    arguments = ("miniature.py", "--size", 64, "--json", "out/summary.json")
    assert call(monkeypatch, tool, *arguments) is None
    said = capsys.readouterr().out
    assert "GFLOPs (1 multiply-add = 2)" in said and "zoomnet" in said
    written = json.loads((tmp_path / "out/summary.json").read_text())
    assert written["total"]["flops"] == sum(row["flops"] for row in written["parts"])
    assert written["size"] == 64 and written["config"] == "miniature.py"
    code = call(monkeypatch, tool, "miniature.py", "--size", 65)
    assert code.startswith("error: ") and "use 64" in code


def test_by_default_it_is_the_image_that_the_config_tests_on(capsys):
    """A model of 336 px had the operations of one of 448."""
    assert report("small/finetune")["size"] == 336
    assert "one image of 336 × 336" in capsys.readouterr().out
    assert report("small/finetune", 448)["size"] == 448
