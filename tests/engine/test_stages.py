"""Stages in a chain: planned, interrupted, resumed, and put into one table."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from miniature import ROOT, TWO_EXPERTS, call, interrupted_at, write_config
from torch import nn
from toy_parts import NAMES, REFIT, SOUP, leave_separate, toy_config

from codmoe.engine import stages
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.config import load_config
from codmoe.engine.hooks.progress import CHAIN
from codmoe.engine.stages import plan, run_stages, work_of

RUN_COMMAND = stages.run_command
SOURCES = ["pranet", "sinet", "uniform", "router", "oracle", "ensemble"]


@pytest.fixture
def configs(tmp_path):
    few = dict(train_dataloader=dict(dataset=dict(length=4)))
    return [str(write_config(tmp_path, stage, TWO_EXPERTS, few)) for stage in (1, 2, 3)]


@pytest.fixture
def commands(monkeypatch):
    """Runs the tools in this process, and lists what was run."""
    done = []

    def run(command):
        tool, *arguments = command[1:]
        name = os.path.basename(tool).removesuffix(".py")
        resumed = "resume" if "--resume" in arguments else ""
        done.append(" ".join(filter(None, [name, f"stage{_number(arguments[0])}", resumed])))
        if name == "test" and os.path.exists(arguments[arguments.index("--json") + 1]):
            return  # the earlier result will do
        with pytest.MonkeyPatch.context() as patch:
            code = call(patch, name, *arguments)
        if code:
            raise RuntimeError(code)

    monkeypatch.setattr(stages, "run_command", run)
    return done


def _number(config):
    return os.path.basename(config)[len("stage")]


TESTED = ["test stage2", "test stage3"]


def test_three_stages_and_one_table(configs, commands, tmp_path, capsys):
    work = tmp_path / "work"
    payload = run_stages(configs, work_dir=str(work))
    assert commands == ["train stage1", "train stage2", "train stage3", *TESTED]
    told = capsys.readouterr().out
    for place in ("1/3 experts_joint", "2/3 router", "3/3 ensemble"):
        assert re.search(rf" {place}  epoch 1/1  step 1/1 .* left \d+:\d\d, all \d+:\d\d", told)
    assert "  next " not in told and CHAIN not in os.environ
    written = json.loads((work / "table.json").read_text())
    rows = written["table"]["Synthetic"]
    assert sorted(rows) == sorted(SOURCES) and list(payload["table"]["Synthetic"]) == list(rows)
    assert all(row["n"] == 5 and 0 <= row["IoU"] <= 1 for row in rows.values())
    router = json.loads((work / "router.json").read_text())["table"]["Synthetic"]
    ensemble = json.loads((work / "ensemble.json").read_text())["table"]["Synthetic"]
    assert rows["router"] == router["mixture"] and rows["ensemble"] == ensemble["mixture"]
    assert rows["sinet"] == router["sinet"] != ensemble["sinet"]  # stage 3 trains it further
    experts = {k: v["IoU"] for k, v in ensemble.items() if k in ("pranet", "sinet")}
    best = max(experts, key=experts.get)
    ahead = 100 * (ensemble["mixture"]["IoU"] - experts[best])
    said = "Synthetic: after stage 3, IoU of the ensemble less that of its best expert"
    assert f"{said} {best} {ahead:+.2f} (" in told
    markdown = (work / "table.md").read_text()
    assert all(f"| Synthetic | {source} |" in markdown for source in SOURCES)
    assert (work / "ensemble.png").is_file()
    page = (work / "report.html").read_text()
    for source, row in rows.items():
        assert f"{row['IoU']:.4f}" in page and source in page
    assert page.count("<h2>") == 10
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])["datasets"][0]
    assert len(shown["stems"]) == 5 and all(shown["pictures"])
    for name in ("experts_joint", "router", "ensemble"):
        assert (tmp_path / "weights" / f"{name}_best.pth").is_file()

    commands.clear()
    capsys.readouterr()

    def fail(folder):
        raise ZeroDivisionError("oops")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "write_report", fail)
        assert run_stages(configs, work_dir=str(work))["table"]["Synthetic"] == rows
    assert commands == TESTED
    out, err = capsys.readouterr()
    assert out.count("finished earlier") == 3
    again = f"codmoe report {work}"
    assert f"no report (ZeroDivisionError: oops); once mended: {again}" in err
    assert len(list(work.glob("table*.json"))) == 2 and (work / "report.html").read_text() == page
    assert plan(configs, work, [])[0].is_finished()
    assert not plan(configs, work, ["train_cfg.max_epochs=7"])[0].is_finished()

    joint = tmp_path / "weights" / "experts_joint_best.pth"
    before = joint.read_bytes()
    (work / "stage2" / "finished.json").unlink()
    commands.clear()
    run_stages(configs, work_dir=str(work))
    # Stage 2 goes on from its last epoch, which was all but the end of it.
    assert commands == ["train stage2 resume", "train stage3", *TESTED]
    assert joint.read_bytes() == before
    assert all((work / f"stage{i}" / "finished.json").is_file() for i in (1, 2, 3))


def test_work_counts_images_epochs_and_what_learns():
    images = dict(train=100, val=10)
    cfg = load_config("ensemble/stage3", {"train_cfg.max_epochs": 8, "train_cfg.val_interval": 2})
    assert work_of(cfg, images) == 100 * 8 * 3 + 10 * 4
    cfg.model.frozen = ("backbone",)
    assert work_of(cfg, images) == 100 * 8 * 2 + 10 * 4
    # Four views run once; what is kept costs a quarter.
    cfg.default_hooks.frozen_cache = dict(views=4)
    assert work_of(cfg, images) == 100 * (4 + 1) + 10 * (1 + 0.25 * 3)


def _children_of(group):
    result = subprocess.run(["ps", "-ewwo", "pid,pgid,args"], text=True, capture_output=True)
    return [line for line in result.stdout.splitlines() if group in line and "ps -ewwo" not in line]


def test_an_interrupted_stage_goes_on(configs, commands, tmp_path, monkeypatch):
    work = tmp_path / "work"
    checkpoint = work / "stage1" / "last_checkpoint"
    long = ("--cfg-options", "train_cfg.max_epochs=500")
    with pytest.MonkeyPatch.context() as patch, interrupted_at(checkpoint):
        patch.setattr(stages, "run_command", RUN_COMMAND)
        code = call(patch, "run_stages", *configs, "--work-dir", work, *long)
    assert code == 128 + signal.SIGTERM
    assert not _children_of(str(work))  # the training did not survive
    epoch = int(checkpoint.read_text().rsplit("_", 1)[1].removesuffix(".pth"))
    assert plan(configs, work, ["train_cfg.max_epochs=500"])[0].is_interrupted()
    options = [f"train_cfg.max_epochs={epoch + 1}"]
    assert not plan(configs, work, options)[0].is_interrupted()
    # The rest of 500 epochs is too long for a test: let the shorter schedule pass for the same.
    monkeypatch.setattr(stages.Stage, "has_same_config", lambda self: True)

    class Enough(Exception):
        pass

    def stop(stage, *args):
        raise Enough

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        real = stages.train_command
        patch.setattr(
            stages, "train_command", lambda s, *a: real(s, *a) if "stage1" in s.name else stop(s)
        )
        run_stages(configs, work_dir=str(work), options=options)
    assert commands == ["train stage1 resume"]
    finished = json.loads((work / "stage1" / "finished.json").read_text())
    assert finished["epochs"] == epoch + 1
    log = "".join(p.read_text() for p in (work / "stage1").glob("*/*.log"))
    assert f"resumed epoch: {epoch}," in log


def test_a_checkpoint_of_other_experts_is_not_resumed(configs, tmp_path):
    work = tmp_path / "work"
    stage = plan(configs, work, [])[1]
    last, source = stage.work_dir / "last_checkpoint", tmp_path / "weights/experts_joint_best.pth"
    for path in (source, last):
        path.parent.mkdir(parents=True)
        path.write_text("")
    stage.mark.write_text(stage.fingerprint)
    os.utime(source, (100, 100))
    assert stage.is_interrupted()
    os.utime(last, (50, 50))
    assert not stage.is_interrupted()


def test_stages_that_do_not_chain_are_refused(configs, tmp_path):
    first, second, third = configs
    with pytest.raises(ValueError, match=r"starts from .*router_best\.pth, but .*experts_joint_b"):
        plan([first, third, second], tmp_path, [])
    with pytest.raises(ValueError, match=r"starts from nothing, but .*experts_joint_best\.pth"):
        plan([first, first, third], tmp_path, [])
    other = str(write_config(tmp_path, 2, dict(checkpoint_dir="elsewhere")))
    with pytest.raises(ValueError, match=r"elsewhere/experts_joint_best\.pth, but"):
        plan([first, other, third], tmp_path, [])
    names = [stage.weights.name for stage in plan(configs, tmp_path, [])]
    assert names == ["experts_joint_best.pth", "router_best.pth", "ensemble_best.pth"]


def test_all_configs_are_read_before_the_first_runs(configs, commands, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        run_stages([*configs[:2], "absent"], work_dir=str(tmp_path / "work"))
    assert commands == []


@pytest.mark.parametrize(
    "names",
    [
        stages.DEFAULT_CONFIGS,
        [f"quickstart/stage{i}" for i in (1, 2, 3)],
        [f"{n}_polyp_dinov2-s" for n in stages.DEFAULT_CONFIGS],
        [f"{n}_cod" for n in stages.DEFAULT_CONFIGS],
    ],
)
def test_the_shipped_stages_chain(names, tmp_path):
    assert len(plan(names, tmp_path, [])) == 3


@pytest.mark.parametrize("policy", ["one_backbone", "soup"])
def test_separate_experts_chain_through_their_refit(policy, tmp_path):
    separate = [f"experts/{name}" for name in ("pranet", "sinet", "ujsc", "zoomnet")]
    later = [f"experts/refit_{policy}", f"router/stage2_{policy}", f"ensemble/stage3_{policy}"]
    assert len(plan([*separate, *later], tmp_path, [])) == 7
    with pytest.raises(ValueError, match=r"stage2 starts from .*experts_joint_best\.pth, but"):
        plan([*separate, later[0], "router/stage2"], tmp_path, [])


def test_a_command_that_fails_is_told():
    with pytest.raises(RuntimeError, match=r"exit code 3$"):
        stages.run_command([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_missing_test_set_is_told_before_training(tmp_path, monkeypatch):
    missing = dict(type="CODDataset", data_root=str(tmp_path / "nowhere"))
    lost = dict(test_dataloader=dict(dataset=dict(datasets=dict(Mine=missing))))
    configs = [str(write_config(tmp_path, stage, lost)) for stage in (1, 2, 3)]
    monkeypatch.setattr(stages, "run_command", lambda command: pytest.fail("it ran"))
    with pytest.raises(FileNotFoundError, match=r"test_dataloader\.dataset: .*Mine.*nowhere"):
        run_stages(configs, work_dir=str(tmp_path / "work"))


def test_a_wrong_measure_of_the_test_is_told_before_training(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "run_command", lambda command: pytest.fail("it ran"))
    wrong = ["test_evaluator.0.extra=SM"]
    with pytest.raises(ValueError, match=r"stage1.*: test_evaluator\.0: extra='SM' is no measure"):
        run_stages(configs, work_dir=str(tmp_path / "work"), options=wrong)


def test_a_start_that_fails_does_not_pass_for_the_run_before(tmp_path, monkeypatch):
    configs = [str(write_config(tmp_path, stage, TWO_EXPERTS)) for stage in (1, 2, 3)]
    work = tmp_path / "work"
    first = plan(configs, work, [])[0]
    for path in (first.work_dir / "finished.json", first.weights):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    first.mark.write_text(first.fingerprint)
    assert first.is_finished()

    def fail(command):
        raise RuntimeError("the child failed")

    monkeypatch.setattr(stages, "run_command", fail)
    changed = ["train_cfg.max_epochs=7"]
    with pytest.raises(RuntimeError, match="the child failed"):
        run_stages(configs, work_dir=str(work), options=changed)
    assert not plan(configs, work, changed)[0].is_finished()
    assert list(first.work_dir.glob("earlier-*/finished.json"))  # set aside, not lost


def test_weights_that_another_run_wrote_are_not_the_stages(tmp_path):
    configs = [str(write_config(tmp_path, number, TWO_EXPERTS)) for number in (1, 2, 3)]
    stage = plan(configs, tmp_path / "work", [])[0]
    stage.work_dir.mkdir(parents=True)
    (stage.work_dir / "finished.json").write_text('{"run_id": "a"}')
    stage.mark.write_text(stage.fingerprint)
    save_weights(stage.weights, nn.Linear(1, 1), {}, "a")
    assert stage.is_finished()
    save_weights(stage.weights, nn.Linear(1, 1), {}, "b")
    assert not stage.is_finished()


def test_several_files_in_a_plan_of_stages(tmp_path):
    separate = leave_separate(tmp_path)
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


def until(there, seconds, otherwise):
    """Waits for what is to be there."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def test_a_training_ends_with_the_process_that_started_it(configs, tmp_path, processes):
    work = tmp_path / "work"
    tool = [sys.executable, str(ROOT / "tools/run_stages.py"), *configs, "--work-dir", str(work)]
    tool += ["--cfg-options", "train_cfg.max_epochs=500"]
    with open(tmp_path / "out", "w") as out:
        env = stages.child_environment()
        parent = subprocess.Popen(tool, stdout=out, stderr=out, env=env)
    processes.append(parent)
    last = work / "stage1" / "last_checkpoint"
    until(lambda: last.is_file() or parent.poll() is not None, 150, "it trains not at all")
    assert parent.poll() is None, (tmp_path / "out").read_text()
    with pytest.raises(ValueError, match=r"work is in use by process \d+ .*run_stages"):
        run_stages(configs, work_dir=str(work))
    assert len(_children_of(str(work))) == 2
    parent.kill()
    parent.wait()
    until(lambda: not _children_of(str(work)), 120, "it trains on")
    said = (tmp_path / "out").read_text()
    assert "interrupted by SIGTERM: " in said and "Traceback" not in said
