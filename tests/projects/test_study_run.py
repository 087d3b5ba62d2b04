"""A study of three rows, in miniature and on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from miniature import ONE_EXPERT, TWO_EXPERTS, call, interrupted_at, write_config

from projects.study.jobs import Job, estimate, publish
from projects.study.plan import CONFIGS, Row, plan_study, row_options, study_rows
from projects.study.run import Study, run_study

SETTINGS = dict(gpus=0, per_gpu=2)


def named(best):
    return dict(default_hooks=dict(best=dict(name=best)))


def write_rows(folder, epochs=1):
    few = dict(train_dataloader=dict(dataset=dict(length=4)))
    joint = write_config(folder, 1, TWO_EXPERTS, few, epochs=epochs)
    alone = write_config(folder, 1, ONE_EXPERT, named("alone"), few, epochs=epochs)
    router = write_config(folder, 2, TWO_EXPERTS, few, epochs=epochs)
    rows = {}
    for name, path in dict(joint=joint, alone=alone, router_top2=router).items():
        rows[name] = Row(f"toy_{name}", str(path.rename(folder / f"toy_{name}.py")))
    return rows


@contextmanager
def in_this_process():
    """Jobs run here, each to its end: a process of its own imports for seconds."""

    def launch(job, phase, command, environment):
        job.phase, job.launched = phase, time.time()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(job.log, "a") as log,
            redirect_stdout(log),
            redirect_stderr(log),
            pytest.MonkeyPatch.context() as patch,
        ):
            print("$", *command)
            code = call(patch, Path(command[1]).stem, *command[2:])
            print(code or "", flush=True)
        job.process = SimpleNamespace(poll=lambda: int(bool(code)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "launch", launch)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a study that ran to its end."""
    folder = tmp_path_factory.mktemp("study")
    rows = write_rows(folder)
    # What depends is named first: the order is that of wishes.
    order = [rows["router_top2"], rows["joint"], rows["alone"]]
    settings = dict(SETTINGS, seeds=[3], keep_weights=["*router*"])
    with in_this_process():
        study = run_study(order, work_dir=str(folder / "work"), **settings)
    assert {entry["state"] for entry in study.status.values()} == {"done"}, study.status
    return folder, order


def test_every_row_is_trained_tested_and_told(finished):
    folder, _ = finished
    work = folder / "work"
    results = sorted(path.name for path in (work / "results").iterdir())
    assert results == [
        "toy_alone_seed3.json",
        "toy_joint_seed3.json",
        "toy_router_top2_seed3.json",
    ]
    router = json.loads((work / "results" / results[2]).read_text())
    images = router["images"]["Synthetic"]
    assert set(images) == {"stems", "pranet", "sinet", "uniform", "oracle", "mixture"}
    assert len(images["stems"]) == len(images["mixture"]["mDice"]) == 5
    raw = json.loads((work / "toy_router_top2_seed3/test.json").read_text())
    for metric in ("mDice", "IoU"):
        mean = sum(images["sinet"][metric]) / 5
        assert mean == pytest.approx(raw["table"]["Synthetic"]["sinet"][metric], abs=1e-4)
    shares = router["routing_by_dataset"]["Synthetic"]
    assert shares["share_sinet"] + shares["share_pranet"] == pytest.approx(1)
    alone = json.loads((work / "results" / results[0]).read_text())
    assert set(alone["images"]["Synthetic"]) == {"stems", "mixture"}

    state = json.loads((work / "study_state.json").read_text())["runs"]
    assert state["toy_joint_seed3"]["state"] == "done" and state["toy_joint_seed3"]["seconds"] > 0
    log = (work / "logs/toy_joint_seed3.log").read_text()
    assert "tools/train.py" in log and "tools/test.py" in log
    weights = sorted(path.name for path in (work / "weights").rglob("*.pth"))
    assert weights == ["router_best.pth"]  # nothing else is needed any more
    assert not list(work.rglob("epoch_*.pth"))


def test_the_seed_and_the_weights_of_the_row_before(finished):
    folder, _ = finished
    log = "".join(p.read_text() for p in (folder / "work/toy_router_top2_seed3").glob("*/*.log"))
    assert "seed 3" in log and "weights/seed3/weights/experts_joint_best.pth" in log


def test_what_is_done_is_not_done_again(finished, tmp_path, capsys):
    folder, order = finished
    study = run_study(
        order, work_dir=str(folder / "work"), seeds=[3], out=str(tmp_path / "out"), **SETTINGS
    )
    assert {entry["state"] for entry in study.status.values()} == {"done"}
    published = tmp_path / "out" / "toy_joint_seed3.json"
    assert len(list((tmp_path / "out").glob("*.json"))) == 3
    published.write_text("another run's")
    for _ in range(2):
        publish(study.runs[1], study.out)
    kept = [path for path in (tmp_path / "out").glob("toy_joint*") if path != published]
    assert [path.read_text() for path in kept] == ["another run's"]
    assert published.read_text() == study.runs[1].result.read_text()
    assert " on the CPU" not in capsys.readouterr().out


def test_what_has_to_run_again(finished):
    folder, order = finished

    def waiting(*options, rows=order):
        work = folder / "work"
        runs = plan_study(rows, seeds=[3], work_dir=work, options=options)
        study = Study(runs, work, work / "results", **SETTINGS)
        return sorted(run.row for run in runs if study.state(run) == "waiting")

    assert waiting() == []
    assert waiting("train_cfg.max_epochs=2") == ["toy_alone", "toy_joint", "toy_router_top2"]
    assert waiting("toy_al*:train_cfg.max_epochs=2") == ["toy_alone"]
    # The joint row is as it was, but its weights are gone and its router needs them.
    assert waiting("toy_router*:train_cfg.max_epochs=2") == ["toy_joint", "toy_router_top2"]
    # What starts from other weights is another run.
    assert waiting("toy_joint:train_cfg.max_epochs=2") == ["toy_joint", "toy_router_top2"]


def test_it_stops_and_goes_on(tmp_path, monkeypatch):
    rows = write_rows(tmp_path, epochs=500)
    work = tmp_path / "work"
    arguments = [rows["joint"].config, rows["alone"].config, "--gpus", 0, "--work-dir", work]
    # Of the two processes one really trains.
    real, sleep = Job.launch, [sys.executable, "-c", "import time; time.sleep(100)"]

    def launch(job, phase, command, environment):
        stand_in = job.run.row == "toy_alone"
        real(job, phase, [*sleep, *command[1:]] if stand_in else command, environment)

    monkeypatch.setattr(Job, "launch", launch)

    last = work / "toy_joint_seed0" / "last_checkpoint"
    with pytest.MonkeyPatch.context() as patch, interrupted_at(last):
        assert call(patch, "projects.study.run", *arguments) == 128 + signal.SIGTERM
    listed = subprocess.run(["ps", "-eo", "args"], text=True, capture_output=True).stdout
    assert str(work) not in listed  # no training survives
    state = json.loads((work / "study_state.json").read_text())["runs"]
    assert {entry["state"] for entry in state.values()} == {"interrupted"}

    runs = plan_study([rows["joint"], rows["alone"]], seeds=[0], work_dir=work)
    (work / "toy_alone_seed0" / "last_checkpoint").write_text("epoch_1.pth")
    study = Study(runs, work, work / "results", time_limit=1.0, **SETTINGS)
    assert all(run.is_interrupted() for run in runs)
    started = time.time()
    status = study.run()
    assert time.time() - started < 20
    assert {entry["state"] for entry in status.values()} == {"interrupted"}
    for run in runs:
        log = (work / "logs" / f"{run.label}.log").read_text()
        commands = [line for line in log.splitlines() if line.startswith("$ ")]
        assert [("--resume" in line) for line in commands] == [False, True]


def test_a_failure_stops_those_that_need_it_alone(tmp_path):
    rows = write_rows(tmp_path)
    bad = ["toy_joint:train_dataloader.batch_size=100"]  # less than one batch of images
    order = [rows["joint"], rows["router_top2"], rows["alone"]]
    with in_this_process():
        study = run_study(order, work_dir=str(tmp_path / "work"), options=bad, gpus=0, per_gpu=1)
    states = {label: entry["state"] for label, entry in study.status.items()}
    assert states == {
        "toy_joint_seed0": "failed",
        "toy_router_top2_seed0": "blocked",
        "toy_alone_seed0": "done",
    }
    assert "less than one batch" in study.status["toy_joint_seed0"]["tail"]


def test_nothing_is_started_that_would_not_finish(tmp_path, monkeypatch):
    rows = write_rows(tmp_path)
    runs = plan_study(list(rows.values()), seeds=[0, 1], work_dir=tmp_path / "work")
    by_label = {run.label: run for run in runs}
    measured = {"toy_joint_seed0": dict(seconds=100, epochs=1)}
    assert estimate(by_label["toy_joint_seed1"], runs, measured) == pytest.approx(110)
    assert estimate(by_label["toy_alone_seed0"], runs, measured) == 0
    by_label["toy_joint_seed1"].cfg.train_cfg.max_epochs = 3
    assert estimate(by_label["toy_joint_seed1"], runs, measured) == pytest.approx(330)

    study = Study(runs, tmp_path / "work", tmp_path / "out", time_limit=60, **SETTINGS)
    study.status["toy_joint_seed0"] |= measured["toy_joint_seed0"]
    started = []
    monkeypatch.setattr(study, "_start", lambda run, gpu: started.append(run.label))
    study._fill()
    assert started == ["toy_alone_seed0", "toy_alone_seed1"]


@pytest.mark.parametrize("left, counts", [(None, True), ("last_checkpoint", False)])
def test_only_a_whole_training_tells_how_long_one_takes(tmp_path, monkeypatch, left, counts):
    (run,) = plan_study([write_rows(tmp_path)["alone"]], seeds=[0], work_dir=tmp_path / "work")
    study = Study([run], tmp_path / "work", tmp_path / "out", **SETTINGS)
    if left:
        run.work_dir.mkdir(parents=True)
        (run.work_dir / left).write_text("epoch_1.pth")
        run.mark.write_text(run.fingerprint)
    monkeypatch.setattr("projects.study.run.Job.launch", lambda *args: None)
    monkeypatch.setattr("projects.study.run.Job.poll", lambda job: 0)
    monkeypatch.setattr("projects.study.run.record", lambda run, out: None)
    study._start(run, 0)
    study.jobs[0].phase = "test"
    study._collect()
    entry = study.status[run.label]
    assert entry["state"] == "done" and ("seconds" in entry) == counts


@pytest.mark.parametrize("phase, file", [("train", "finished.json"), ("test", "test.json")])
def test_a_process_that_does_not_end_is_ended(tmp_path, monkeypatch, phase, file):
    monkeypatch.setattr("projects.study.jobs._LINGER", 0.3)
    (run,) = plan_study([write_rows(tmp_path)["alone"]], seeds=[0], work_dir=tmp_path / "work")
    run.work_dir.mkdir(parents=True)
    path = run.work_dir / file
    path.write_text("of an earlier attempt")
    os.utime(path, (100, 100))
    job = Job(run, 0, time.time(), tmp_path / "log")
    code = f"import time; time.sleep(1); open({str(path)!r}, 'w').close(); time.sleep(60)"
    job.launch(phase, [sys.executable, "-c", code], os.environ)
    started = time.time()
    assert job.poll() is None
    while job.poll() is None:
        assert time.time() - started < 20
        time.sleep(0.05)
    assert job.poll() == 0 and time.time() - started > 1
    job.launch(phase, [sys.executable, "-c", "raise SystemExit(3)"], os.environ)
    job.process.wait()
    assert job.poll() == 3


def test_gpus_are_shared_out_evenly(tmp_path, monkeypatch):
    rows = write_rows(tmp_path)
    runs = plan_study(
        [rows["joint"], rows["alone"]],
        seeds=[0, 1, 2],
        work_dir=tmp_path / "work",
        options=["train_dataloader.batch_size=24"],
    )
    study = Study(runs, tmp_path / "work", tmp_path / "out", gpus=2, per_gpu=3, workers=5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    launched = []

    def launch(job, phase, command, environment):
        launched.append(environment["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr("projects.study.run.Job.launch", launch)
    study._fill()
    # Joint, alone, joint, alone, not a third joint, alone: two trainings of several experts at
    # batch 24 do not fit beside each other.
    assert launched == ["4", "7", "7", "4", "4"]
    assert [study.state(run) for run in runs].count("waiting") == 1


@pytest.fixture
def crowd(tmp_path, monkeypatch):
    """``crowd(rows, ...)``: a study of jobs that no process stands behind, and ``turn``, which says
    what begins after those named have run out of memory.
    """
    rows = write_rows(tmp_path)
    monkeypatch.setattr(Job, "launch", lambda job, phase, *_: setattr(job, "phase", phase))
    monkeypatch.setattr(Job, "tail", lambda job: "")
    monkeypatch.setattr(Job, "ran_out_of_memory", lambda job: True)

    def make(names, seeds=(0,), **settings):
        work = tmp_path / "work"
        runs = plan_study([rows[name] for name in names], seeds=seeds, work_dir=work)
        study = Study(runs, work, tmp_path / "out", **dict(gpus=1, per_gpu=3) | settings)

        def turn(*dead):
            monkeypatch.setattr(Job, "poll", lambda job: 1 if job.run in dead else None)
            study._collect()
            before = list(study.jobs)
            study._fill()
            return [job.run for job in study.jobs if job not in before]

        return study, runs, turn

    return make


def test_runs_that_were_too_many_for_a_gpu_do_not_come_together_again(crowd):
    study, (joint, alone), turn = crowd(["joint", "alone"])
    assert turn() == [joint, alone]
    assert turn(joint) == [] and study.state(joint) == "waiting"
    for _ in range(5):  # nobody has gone
        assert turn() == []
    study._end(study.jobs[0], "done")
    assert turn() == [joint]


def test_runs_that_fail_together_are_both_tried_again(crowd):
    study, (one, two), turn = crowd(["alone"], seeds=[0, 1])
    assert turn() == [one, two]
    assert turn(one, two) == [one] and study.state(two) == "waiting"
    study.jobs.clear()
    assert turn() == [two]


def test_a_run_that_does_not_fit_alone_fails_after_three_tries(crowd):
    study, (one,), turn = crowd(["alone"])
    assert turn() == [one]
    assert turn(one) == [one] and turn(one) == [one] and turn(one) == []
    assert study.state(one) == "failed"


@pytest.mark.parametrize("count", [3, 6])
def test_tries_beside_others_end_too(crowd, count):
    """No two of them fit beside each other, and the older one is always the victim."""
    study, runs, turn = crowd(["alone"], seeds=range(count), per_gpu=2)
    failures = 0
    turn()
    while study.jobs:
        if len(study.jobs) > 1:
            failures += 1
            turn(study.jobs[0].run)
        else:
            study._end(study.jobs[0], "done")
            turn()
    assert [study.state(run) for run in runs] == ["done"] * count
    assert failures <= count * (count - 1) // 2


@pytest.mark.parametrize(
    "printed, expected",
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 74.00 MiB.\n", True),
        ("RuntimeError: CUDA error: out of memory\nexception ignored\n", True),
        ("backbone: runs without: OutOfMemoryError: CUDA out of memory\nValueError: a\n", False),
        ("killed\n", False),
    ],
)
def test_what_a_process_died_of(tmp_path, printed, expected):
    log = tmp_path / "log"
    log.write_text(f"$ train\ntorch.OutOfMemoryError: CUDA out of memory.\n$ train\n{printed}")
    assert Job(None, 0, 0.0, log=log).ran_out_of_memory() == expected


def test_what_needs_much_memory(tmp_path):
    names = ["joint", "zoomnet", "ujsc", "fpn4", "router_top2", "stage3", "refit", "warm"]
    runs = plan_study(study_rows([f"mix_{n}" for n in names]), seeds=[0], work_dir=tmp_path)

    def heavy():
        return {run.row.removeprefix("mix_") for run in runs if run.is_heavy}

    assert not heavy()
    for run in runs:
        run.cfg.train_dataloader.batch_size = 24
    assert heavy() == {"joint", "zoomnet", "stage3", "refit"}


def trained(run):
    """As its training leaves it."""
    run.work_dir.mkdir(parents=True)
    run.mark.write_text(run.fingerprint)
    (run.work_dir / "finished.json").write_text("{}")
    run.weights.parent.mkdir(parents=True, exist_ok=True)
    run.weights.touch()


@pytest.mark.parametrize("phase, begun", [("train", []), ("test", ["router_top2", "joint"])])
def test_a_row_starts_while_its_source_is_tested(tmp_path, monkeypatch, phase, begun):
    rows = write_rows(tmp_path)
    order = [rows["joint"], rows["router_top2"]]
    large = ["train_dataloader.batch_size=24"]
    joint, router, again, _ = plan_study(
        order, seeds=[0, 1], work_dir=tmp_path / "work", options=large
    )
    # One GPU: a second training of two experts has room beside a test of two alone.
    runs = [joint, router, again]
    study = Study(runs, tmp_path / "work", tmp_path / "out", gpus=1, per_gpu=3)
    trained(joint)
    study.status[joint.label]["state"] = "running"
    study.jobs.append(Job(joint, 0, time.time(), log=tmp_path / "log", phase=phase))
    started = []
    monkeypatch.setattr(study, "_start", lambda run, gpu: started.append(run.row[4:]))
    study._fill()
    assert started == begun
    joint.weights.unlink()
    study._fill()
    assert started == begun + begun[1:]  # the joint row again: nothing was really started


def test_a_test_that_fails_stops_nobody(tmp_path, monkeypatch):
    rows = write_rows(tmp_path)
    joint, router = plan_study(
        [rows["joint"], rows["router_top2"]], seeds=[0], work_dir=tmp_path / "work"
    )
    study = Study([joint, router], tmp_path / "work", tmp_path / "out", gpus=1, per_gpu=1)
    study.status[joint.label]["state"] = "failed"
    started = []
    monkeypatch.setattr(study, "_start", lambda run, gpu: started.append(run.row))
    trained(joint)
    study._block()
    study._fill()
    assert started == ["toy_router_top2"] and study.state(router) == "waiting"
    (joint.work_dir / "finished.json").unlink()  # its training failed
    study._block()
    assert study.state(router) == "blocked"


def test_plans_that_cannot_be(tmp_path):
    rows = write_rows(tmp_path)
    with pytest.raises(ValueError, match=r"toy_router_top2 starts from experts_joint_best\.pth"):
        plan_study([rows["router_top2"]], seeds=[0], work_dir=tmp_path)
    same = Row("same", str(write_config(tmp_path, 1, named("alone"))))
    with pytest.raises(ValueError, match=r"both leave alone_best\.pth"):
        plan_study([rows["alone"], same], seeds=[0], work_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no row 'polyp_fnp'.*'polyp_fpn'"):
        study_rows(["polyp_fnp"])


def test_rows_by_pattern(tmp_path):
    found = study_rows(["mix_router_top*", "mix_router_top1", "polyp_fpn"])
    names = ["mix_router_top2", "mix_router_top4", "mix_router_top1", "polyp_fpn"]
    assert [row.name for row in found] == names
    assert found[0] == (names[0], str(CONFIGS / "router_top2.py"), "mix")
    for name in ("stage3", "fold0", "_part"):
        (tmp_path / f"{name}.py").touch()
    mine = [Row(name, str(tmp_path / f"{name}.py")) for name in ("stage3", "fold0")]
    assert study_rows(folder=tmp_path) == mine
    assert study_rows(["f*"], tmp_path) == study_rows([mine[1].config]) == mine[1:]
    with pytest.raises(FileNotFoundError, match="holds no config"):
        study_rows(folder=tmp_path / "absent")
    assert row_options("mix_fpn", ["a=1", "mix_*:b=2:3", "polyp_*:c=3"]) == ["a=1", "b=2:3"]


def test_an_override_for_no_row_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no row is called 'poylp_fpn'; .*polyp_fpn"):
        plan_study(
            study_rows(["polyp_fpn"]), seeds=[0], work_dir=tmp_path, options=["poylp_fpn:amp=None"]
        )


def test_gpus_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"gpus=2, but this machine has 1 GPU\(s\); use gpus=1"):
        run_study(study_rows(["polyp_fpn"]), gpus=2, work_dir=str(tmp_path))
