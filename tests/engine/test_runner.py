"""Scalars that stay on the device until they are read, and read the same."""

import json

import pytest
import torch
from miniature import ONE_EXPERT, STOP, log_of, prepared, write_config
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from PIL import Image

from benchmarks.kills import settings
from codmoe.datasets.cache import SampleCache
from codmoe.engine.hooks.progress import stage_name
from codmoe.engine.launch import train
from codmoe.engine.runner import CODRunner, DeferredMessageHub, check_test
from codmoe.trust import read_pickle


def told(hub):
    for step in range(6):
        hub.update_scalar("train/lr", 0.1 * step)
        hub.update_scalar("train/loss", torch.tensor(1 / 3, requires_grad=True) * step, count=2)
        hub.update_scalar("train/IoU", torch.tensor([0.1], dtype=torch.float64) * step)
        hub.update_scalar("train/mixed", torch.tensor(step) if step % 2 else step)
    return hub


def histories(hub):
    return {k: [h.tolist() for h in v.data] for k, v in hub.log_scalars.items()}


def test_what_is_read_is_what_mmengine_reads():
    hub = told(DeferredMessageHub("a"))
    assert any(key == "train/loss" for key, _, _ in hub._deferred)
    expected = histories(told(MessageHub("a")))
    assert list(histories(hub)) == list(expected)
    assert histories(hub) == expected
    saved = told(DeferredMessageHub("b")).state_dict()["log_scalars"]
    assert {k: v.data[0].tolist() for k, v in saved.items()} == {
        k: v[0] for k, v in expected.items()
    }
    assert told(DeferredMessageHub("c")).get_scalar("train/loss").current() == pytest.approx(5 / 3)


def test_nothing_is_fetched_before_somebody_asks(monkeypatch):
    fetched = []
    monkeypatch.setattr(
        DeferredMessageHub, "fetch", lambda self, real=DeferredMessageHub.fetch: fetched.append(
            len(self._deferred)) or real(self))  # fmt: skip
    hub = DeferredMessageHub("a")
    hub.update_scalar("train/time", 1.0)
    hub.update_scalar("train/loss", torch.tensor(1.0))
    hub.get_scalar("train/time")  # mmengine's timer does, in every step
    assert not fetched
    assert not any(value.requires_grad for _, value, _ in told(hub)._deferred)
    monkeypatch.setattr(hub, "limit", 3)
    told(hub)
    assert len(hub._deferred) < 3
    with pytest.raises(KeyError, match="nothing"):
        hub.get_scalar("nothing")


def test_a_training_logs_what_it_logs_with_mmengines_hub(tmp_path, monkeypatch):
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    interval = dict(default_hooks=dict(logger=dict(interval=3)), log_processor=dict(window_size=2))
    longer = dict(train_dataloader=dict(dataset=dict(length=24)))
    config = write_config(tmp_path, 1, ONE_EXPERT, off, interval, longer)

    def logged(name):
        runner = train(prepared(config, tmp_path / name))
        (file,) = (tmp_path / name).glob("*/vis_data/scalars.json")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        timed = ("time", "data_time", "memory")
        return runner, [{k: v for k, v in row.items() if k not in timed} for row in rows]

    deferred, ours = logged("deferred")
    assert isinstance(deferred.message_hub, DeferredMessageHub)
    assert deferred.optim_wrapper.message_hub is deferred.message_hub
    monkeypatch.setattr(CODRunner, "build_message_hub", Runner.build_message_hub)
    plain, theirs = logged("plain")
    assert type(plain.message_hub) is MessageHub
    assert ours == theirs and len(ours) == 2 and "grad_norm" in ours[0]


def test_no_more_workers_than_cores(monkeypatch):
    """torch warns of more, twice a run; configs are made for larger machines."""
    sampler = dict(type="DefaultSampler", shuffle=False)
    for cores, asked, workers in ((2, 8, 2), (2, 1, 1), (1, 0, 0)):
        monkeypatch.setattr("codmoe.engine.runner.available_cores", lambda cores=cores: cores)
        data = dict(dataset=[0, 1], sampler=sampler, batch_size=1, num_workers=asked)
        assert CODRunner.build_dataloader(data).num_workers == workers
        assert data["num_workers"] == asked


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("gpu", [False, True])
def test_memory_is_pinned_for_gpus_alone(monkeypatch, gpu):
    """Without one torch warned of it at each loader of the configs that ship."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    sampler = dict(type="DefaultSampler", shuffle=False)
    data = dict(dataset=[0, 1], sampler=sampler, batch_size=1, pin_memory=True)
    assert CODRunner.build_dataloader(data).pin_memory is gpu


def test_runs_of_one_second_are_two(tmp_path, monkeypatch):
    """They had one hub: the second began at the first one's end, and deleted its checkpoints."""
    config = write_config(tmp_path, 1, ONE_EXPERT)
    monkeypatch.setattr("time.strftime", lambda *_: "20300101_000000")
    runs = [train(prepared(config, tmp_path / name)) for name in ("a", "b")]
    assert all((tmp_path / name / "epoch_1.pth").is_file() for name in ("a", "b"))
    assert runs[0].message_hub is not runs[1].message_hub
    for run in runs:
        assert stage_name(run) == "experts_joint"
        run._hooks.clear()
        assert stage_name(run) == config.stem


def test_a_run_goes_on_with_the_decays_that_it_began_with(tmp_path):
    """Earlier versions let the norms and biases decay that an entry of ``custom_keys`` matches."""
    decays = dict(paramwise_cfg=dict(custom_keys={"backbone.body": dict(decay_mult=1.0)}))
    before = write_config(tmp_path, 1, ONE_EXPERT, STOP, dict(optim_wrapper=decays), epochs=2)
    began = train(prepared(before, tmp_path / "work")).optim_wrapper.param_groups
    config = write_config(tmp_path, 1, ONE_EXPERT, epochs=2)
    runner = train(prepared(config, tmp_path / "work", resume=True))
    assert runner.iter == 4 and "decay until this run ends" in log_of(tmp_path / "work")
    assert [(len(g["params"]), g["weight_decay"]) for g in runner.optim_wrapper.param_groups] == [
        (len(g["params"]), g["weight_decay"]) for g in began
    ]


def test_another_length_of_a_run_that_goes_on_is_told(tmp_path):
    """The schedule lies in the checkpoint: further epochs have the rate at which it ended."""
    said = "schedule was made to end at step"
    for epochs, ends in ((2, None), (2, None), (3, "4 and does, though this config's would at 6")):
        config = write_config(tmp_path, 1, ONE_EXPERT, epochs=epochs)
        runner = train(prepared(config, tmp_path / "work", resume="auto"))
        assert runner.iter == 2 * epochs
        log = log_of(tmp_path / "work")
        assert f"{said} {ends}" in log if ends else said not in log


def test_settings_that_changed_before_a_run_goes_on_are_told(tmp_path):
    """The rate lies in the checkpoint: another one was passed over without a word."""
    began = write_config(tmp_path, 1, ONE_EXPERT, epochs=2)
    train(prepared(began, tmp_path / "work"))
    rate = dict(optim_wrapper=dict(optimizer=dict(lr=1.0, weight_decay=0.5)))
    data = dict(val_dataloader=dict(dataset=dict(seed=7), num_workers=1), test_dataloader=None)
    for change, told in (
        ({}, None),
        (dict(work_dir=str(tmp_path / "elsewhere"), log_level="INFO"), None),
        (dict(model=dict(expert_execution="checkpoint", checkpoint_backbone="all")), None),
        (rate, "no effect: optim_wrapper.optimizer.lr=1.0, was 0.001; optim_wrapper.optimizer.we"),
        (data, "other than before: val_dataloader.dataset.seed=7, was absent. Figures"),
        (dict(model=dict(expert_loss_weight=0.5)), "before: model.expert_loss_weight=0.5, was 1.0"),
    ):
        off = dict(test_cfg=None, test_evaluator=None) if change is data else {}
        config = write_config(tmp_path, 1, ONE_EXPERT, change, off, epochs=2)
        already = log_of(tmp_path / "work")
        runner = train(prepared(config, tmp_path / "work", resume=True))
        log = log_of(tmp_path / "work").replace(already, "")
        assert told in log if told else "than before" not in log and "no effect" not in log
        assert runner.optim_wrapper.param_groups[0]["initial_lr"] < 1


def test_a_warm_up_of_one_step_is_left_out(tmp_path):
    """As of few images: the rate would stay at a hundredth of what was set."""
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    one = dict(train_dataloader=dict(batch_size=8), default_hooks=dict(warmup=None))
    runner = train(prepared(write_config(tmp_path, 1, ONE_EXPERT, off, one), tmp_path / "work"))
    (rate,) = runner.message_hub.get_scalar("train/base_lr").data[0]
    assert runner.iter == 1 and rate == runner.cfg.optim_wrapper.optimizer.lr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a toy's training of one epoch, and what writes its config anew."""
    folder = tmp_path_factory.mktemp("trained")

    def config():
        return write_config(folder, 1, settings(1, folder), dict(train_cfg=dict(max_epochs=1)))

    train(prepared(config(), folder / "work"))
    return folder / "work/epoch_1.pth", config


def changed(trained, tmp_path, change):
    """A copy of the training's checkpoint whose weights were changed."""
    content = read_pickle(trained[0])
    content["state_dict"] = change(content["state_dict"])
    path = tmp_path / "other.pth"
    torch.save(content, path)
    return path


def nan(state):
    return {k: v * float("nan") if v.is_floating_point() else v for k, v in state.items()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {f"net.{k}": v for k, v in state.items()},
            r"nothing of this model: 0 of \d+ tensors of the model fit; \d+ keys of the model are "
            r"not in it \(backbone.*, .*, .* and \d+ more\); \d+ keys of it are not in the model "
            r"\(net.backbone",
        ),
        (nan, r"\d+ of \d+ tensors hold NaN or infinity \(backbone"),
        (
            lambda state: {k: (v * 100).to(torch.int8) for k, v in state.items()},
            r"of another type than the model's \(backbone.*int8, torch.float32 in the model",
        ),
        (lambda state: dict(note=3), "holds no state_dict"),
    ],
)
def test_a_wrong_start_is_no_start(trained, tmp_path, change, message, resume):
    path = changed(trained, tmp_path, change)
    cfg = prepared(trained[1](), tmp_path / "work", load_from=str(path), resume=resume)
    with pytest.raises(ValueError, match=rf"checkpoint {path}.*{message}"):
        train(cfg)
    assert not list((tmp_path / "work").glob("*.pth"))


def test_averaged_weights_that_are_nan_are_not_resumed(trained, tmp_path):
    content = read_pickle(trained[0])
    content["ema_state_dict"] = nan(content["ema_state_dict"])
    torch.save(content, tmp_path / "other.pth")
    path = str(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: \d+ of \d+ tensors hold NaN"):
        train(prepared(trained[1](), tmp_path / "work", load_from=path, resume=True))


def test_a_start_from_part_of_a_model_is_said(trained, tmp_path):
    part = changed(trained, tmp_path, lambda s: {k: v for k, v in s.items() if "head" in k})
    runner = train(prepared(trained[1](), tmp_path / "work", load_from=str(part)))
    assert runner.iter == 3
    log = log_of(tmp_path / "work")
    assert "other.pth in part, the rest stays as it was: 4 of " in log
    with pytest.raises(ValueError, match=r"does not fit this model: 4 of \d+ tensors"):
        train(prepared(trained[1](), tmp_path / "again", load_from=str(part), resume=True))


def test_no_worker_is_asked_for_what_only_workers_can_do(tmp_path):
    none = dict(num_workers=0, persistent_workers=True, prefetch_factor=4)
    loaders = {f"{part}_dataloader": none for part in ("train", "val")}
    train(prepared(write_config(tmp_path, 1, ONE_EXPERT, loaders), tmp_path / "work"))
    assert "validation  IoU" in log_of(tmp_path / "work")


@pytest.mark.parametrize("part", ["train", "val"])
def test_data_are_looked_at_before_weights_are_fetched(tmp_path, monkeypatch, part):
    def fetched(*args, **kwargs):
        raise AssertionError("weights were fetched first")

    monkeypatch.setattr("timm.create_model", fetched)
    config = write_config(tmp_path, 1, ONE_EXPERT)
    missing = dict(type="CODDataset", data_root=str(tmp_path / "none"), name="CAMO")
    cfg = prepared(config, tmp_path / "work")
    cfg[f"{part}_dataloader"].dataset = missing
    with pytest.raises(FileNotFoundError, match="none"):
        train(cfg)


def test_looking_at_the_data_decodes_nothing_ahead(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    for part in ("Imgs", "GT"):
        (folder / part).mkdir(parents=True)
        for i in range(4):
            mask = Image.new("L", (64, 64))
            mask.paste(255, (8, 8, 30, 30 + i))
            mask.save(folder / part / f"{i}.png")
    filled = []
    real = SampleCache.fill
    monkeypatch.setattr(SampleCache, "fill", lambda self, *a: filled.append(1) or real(self, *a))
    cfg = prepared(write_config(tmp_path, 1, ONE_EXPERT), tmp_path / "work")
    data = dict(type="CODDataset", data_root=str(folder), split_dir="", cache=True)
    data["pipeline"] = [
        dict(type="LoadCODPair"),
        dict(type="Resize", scale=(64, 64)),
        dict(type="PackCODInputs", keep_original=True),
    ]
    cfg.val_dataloader.dataset = data
    train(cfg)
    assert filled == [1]


COD10K = dict(type="COD10K", data_root="/no/where", subset="Test", pipeline=[])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(test_evaluator=[dict(type="CODMetric", extra="SM")]), r"test_evaluator\.0: extra='S"),
        (
            dict(test_evaluator=[dict(type="CODMetric", full=False, extra=["CM"])]),
            r"test_evaluator\.0: CODMetric: extra=CM needs full=True",
        ),
        (
            dict(test_dataloader=dict(dataset=dict(datasets=dict(a=dict(COD10K, subset="Tset"))))),
            r"test_dataloader\.dataset\.datasets\.a: subset='Tset'",
        ),
        (dict(test_dataloader=dict(batch_size=0)), "test_dataloader: .*batch_size"),
    ],
)
def test_a_wrong_setting_of_the_test_is_told_before_training(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        train(prepared(write_config(tmp_path, 1, ONE_EXPERT, wrong), tmp_path / "work"))


def test_training_needs_no_test_images(tmp_path):
    data = dict(test_dataloader=dict(dataset=dict(datasets=dict(COD10K=COD10K))))
    check_test(prepared(write_config(tmp_path, 1, ONE_EXPERT, data), tmp_path / "work"))
