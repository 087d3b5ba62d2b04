"""Each value of a resolved config names the file or option that gave it."""

import pytest
from miniature import run_command as run

from codmoe.engine.config import load_config
from codmoe.engine.origins import resolve
from codmoe.shipped import find_config


def origins(name, options=None, keys=()):
    cfg, settings = resolve(name, options, keys)
    return cfg, {setting.key: (setting.value, setting.origin) for setting in settings}


def test_stage_3():
    cfg, found = origins("ensemble/stage3", {"model.top_k": 1, "custom_hooks": []})
    base = "configs/_base_"
    assert found["model.top_k"] == (1, "--cfg-options")
    assert found["custom_hooks"] == ([], "--cfg-options")
    assert found["model.experts.sinet.type"][1] == f"{base}/models/moe_pvt_v2_b2.py"
    assert found["train_dataloader.dataset.split.use"][1] == "configs/ensemble/stage3.py"
    assert found["train_dataloader.dataset.type"][1] == f"{base}/datasets/cod10k_v3.py"
    assert found["checkpoint_dir"][1] == f"{base}/default_runtime.py"
    assert found["init_from.command"][1] == f"{base}/stages/ensemble.py"
    assert all(find_config(origin).is_file() for _, origin in found.values() if "/" in origin)
    # A variable that the files used up is no key.
    assert not any(key.startswith("train_pipeline") for key in found)
    loader = cfg.train_dataloader.dataset.pipeline[0]
    assert found["train_dataloader.dataset.pipeline.0.type"][0] == loader.type


OWN = """
_base_ = ["base.py"]
own_size = 1
model = dict(
    top_k=2,                                     # as in the base: it is this file that says so
    experts=dict(_delete_=True, ujsc=dict(type="UJSCExpert")),
    router=dict(type="EvidenceRouter", _delete_=True),
    backbone={{_base_.small}},
)
"""
BASE = """
_base_ = [{shipped!r}]
small = dict(name="pvt_v2_b0", pretrained=False)
model = dict(top_k=2, experts=dict(ujsc=dict(channels=32)))
default_hooks = dict(logger=dict(interval=7))
"""


def test_a_chain_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.py").write_text(BASE.format(shipped=str(find_config("ensemble/stage3"))))
    (tmp_path / "own.py").write_text(OWN)
    options = {"model.experts.ujsc.channels": 16, "default_hooks.logger.interval": 9}
    cfg, found = origins("own.py", options)
    assert found["model.top_k"] == (2, "own.py")
    experts = {key: where for key, where in found.items() if key.startswith("model.experts")}
    assert experts == {
        "model.experts.ujsc.type": ("UJSCExpert", "own.py"),
        "model.experts.ujsc.channels": (16, "--cfg-options"),
    }
    routers = {key: where for key, where in found.items() if key.startswith("model.router")}
    assert routers == {"model.router.type": ("EvidenceRouter", "own.py")}
    assert found["model.backbone.name"] == ("pvt_v2_b0", "own.py")
    assert found["model.backbone.type"][1] == "configs/_base_/models/moe_pvt_v2_b2.py"
    assert found["default_hooks.logger.interval"] == (9, "--cfg-options")
    assert origins("own.py")[1]["default_hooks.logger.interval"] == (7, "base.py")
    assert "size" not in cfg and cfg.model.backbone.name == "pvt_v2_b0"
    plain = load_config("own.py", options)
    assert all(plain[key] == cfg[key] for key in cfg), "tracing changes nothing"


def test_keys_and_their_misspelling():
    _, found = origins("quickstart/stage3", keys=["model.router", "train_cfg.max_epochs"])
    assert found["train_cfg.max_epochs"] == (3, "configs/quickstart/stage3.py")
    assert {key.split(".")[1] for key in found} == {"router", "max_epochs"}
    with pytest.raises(ValueError, match=r"no key 'model\.ruoter'; did you mean 'model\.router'"):
        resolve("quickstart/stage3", keys=["model.ruoter"])
    with pytest.raises(ValueError, match=r"no key 'xyz'; valid names: amp, [a-z_, ]+$"):
        resolve("quickstart/stage3", keys=["xyz"])


def test_the_command_prints_and_writes_it(tmp_path, monkeypatch, capsys):
    out = tmp_path / "whole.py"
    words = ("config", "experts/sinet", "model.experts", "--out", out)
    assert run(monkeypatch, *words) is None
    line, wrote = capsys.readouterr().out.splitlines()
    assert line == "model.experts.sinet.type = 'SINetExpert'  # configs/experts/sinet.py"
    assert wrote == f"wrote {out}" and "_base_" not in out.read_text()
    whole, sinet = load_config(out), load_config("experts/sinet")
    assert whole.model == sinet.model and whole.optim_wrapper == sinet.optim_wrapper
    assert "ends in .py" in run(monkeypatch, "config", "experts/sinet", "--out", "whole.txt")
