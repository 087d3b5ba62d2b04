import json

import torch
from miniature import TWO_EXPERTS, build, call, write_config

from codmoe.engine.checkpoints import save_weights


def test_it_tests_and_tells_mistakes(tmp_path, monkeypatch):
    config = write_config(tmp_path, 3, TWO_EXPERTS)
    torch.manual_seed(0)
    file, work, maps = tmp_path / "w.pth", tmp_path / "work", tmp_path / "maps"
    save_weights(file, build(config), {}, "x")
    arguments = (config, file, "--work-dir", work, "--out", maps)
    assert call(monkeypatch, "test", *arguments, "--experts") is None
    table = json.loads((work / "test.json").read_text())["table"]
    assert list(table["Synthetic"]) == ["pranet", "sinet", "uniform", "oracle", "mixture"]
    assert len(list(maps.rglob("*.png"))) == 5

    again = ("--compile", "backend=eager", "--json", work / "compiled.json")
    assert call(monkeypatch, "test", config, file, "--work-dir", work, *again) is None
    compiled = json.loads((work / "compiled.json").read_text())
    assert "prepared model: eager, fp32" in compiled["engine"][0]
    eager, fast = (t["Synthetic"]["mixture"]["images"] for t in (table, compiled["table"]))
    assert eager.keys() == fast.keys()
    assert all(abs(eager[stem]["IoU"] - fast[stem]["IoU"]) < 1e-3 for stem in eager)

    def fails(*words, arguments=arguments):
        code = call(monkeypatch, "test", *arguments)
        assert code.startswith("error: ") and "\n" not in code
        assert all(word in code for word in words), code

    fails(str(maps), "not empty")
    fails("absent.pth", "does not exist", arguments=(config, tmp_path / "absent.pth"))
    wider = ("--cfg-options", "model.experts.sinet.channels=24")
    fails(str(file), "does not fit", arguments=(config, file, "--work-dir", work, *wider))
    three = ("--cfg-options", "model.top_k=3")
    fails("top_k=3", arguments=(config, file, "--work-dir", work, *three))
    assert sorted(p.name for p in work.glob("test*")) == [
        "test.json",
        "test.md",
        "test_attributes.md",
    ]


def test_three_configs_are_needed(monkeypatch):
    assert call(monkeypatch, "run_stages", "quickstart/stage1").startswith("error: 1 configs given")


def test_a_number_of_processes_is_needed(tmp_path):
    import subprocess

    from miniature import ROOT

    for script, arguments in (("dist_train.sh", ("x", "two")), ("dist_test.sh", ("x", "w", "0"))):
        command = ["bash", str(ROOT / "tools" / script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 2 and done.stderr.startswith("error: number of GPUs is")
        done = subprocess.run(command[:3], cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 2 and done.stderr.startswith("usage: ")
