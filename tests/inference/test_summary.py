import json

from miniature import call
from mmengine.config import Config

MODEL = dict(
    backbone=dict(type="TimmPyramid", name="pvt_v2_b0", pretrained=False),
    experts=dict(
        sinet=dict(type="SINetExpert", channels=8),
        pranet=dict(type="PraNetExpert", channels=8, deep_channels=8, shallow_channels=8),
        zoomnet=dict(type="ZoomNetExpert", channels=12),
    ),
    router=dict(type="EvidenceRouter", width=16),
    combiner=dict(type="ProbabilityCombiner", learn_temperature=True),
    top_k=2,
)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    config = tmp_path / "miniature.py"
    # It asks for weights: the tool must neither read nor download them.
    section = dict(MODEL, type="ModelLevelMoE")
    section["backbone"] = dict(MODEL["backbone"], pretrained=True, checkpoint="absent.safetensors")
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
