"""Hooks that watch the router and the experts."""

import json
from types import SimpleNamespace

import pytest
import torch
from miniature import (
    STOP,
    TWO_EXPERTS,
    assert_same,
    build,
    log_of,
    merged,
    prepared,
    weights,
    write_config,
)

from codmoe.engine import handover
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.hooks.mixture import FamiliarityHook, RouterWatchHook, RoutingFigures
from codmoe.engine.hooks.training import BestWeightsHook
from codmoe.engine.launch import train
from codmoe.models.routers import EvidenceRouter
from codmoe.models.routers.evidence import Familiarity

BLIND = dict(mutual_information=0.004, top1_max_share=1.0, share_a=0.52, share_b=0.48)


COLLAPSED = dict(mutual_information=0.01, top1_max_share=0.99, share_a=0.97, share_b=0.03)


FAVOURITE = dict(mutual_information=0.2, top1_max_share=0.95, share_a=0.7, share_b=0.3)


ROUTES = dict(mutual_information=0.2, top1_max_share=0.6, share_a=0.6, share_b=0.4)


GAP = dict(IoU_a=0.70, IoU_b=0.68, IoU_oracle=0.74, regret=0.03)


NO_GAP = dict(IoU_a=0.70, IoU_b=0.68, IoU_oracle=0.701, regret=0.001)


class Log:
    def __init__(self):
        self.lines = []
        self.warning = self.info = self.lines.append


def watched(*validations, **settings):
    """The lines that a run logs whose validations measured these."""
    loss = SimpleNamespace(tau=0.05, needs_all_experts=True)
    model = SimpleNamespace(
        expert_names=("a", "b"),
        routing_losses=dict(distill=loss, balance=type("LoadBalance", (), dict(weight=0.01))()),
        router=torch.nn.Linear(1, 1),
    )
    model.router.noise, model.router.branches = 1.0, dict(texture=0, edge=0)
    info = {}
    hub = SimpleNamespace(get_info=info.get, update_info=info.__setitem__)
    runner = SimpleNamespace(
        model=model, message_hub=hub, _train_loop=object(), logger=Log(), epoch=0
    )
    hook = RouterWatchHook(**settings)
    for metrics in validations:
        runner.epoch += 1
        info["codmoe_best_epoch"] = 2
        hook.after_val_epoch(runner, metrics)
    hook.after_train(runner)
    return runner.logger.lines


def test_a_blind_router_is_told_once_with_what_to_change():
    told = watched(*[{**BLIND, **GAP}] * 6)[:-1]
    assert len(told) == 1
    for word in (
        "router: blind for 3 validations",
        "mutual information 0.004 of at most 0.693 nats",
        "lower model.routing_losses.distill.tau=0.05",
        "lower model.routing_losses.balance.weight=0.01",
        "lower model.router.noise=1",
        "model.router.branches on (now texture, edge)",
        "split.fractions",
        "0.0400 above the best expert",
    ):
        assert word in told[0], word
    assert watched(BLIND, BLIND) == []
    assert watched(BLIND, BLIND, ROUTES, BLIND, BLIND) == []
    assert "0.0400" not in watched(*[BLIND] * 3)[0]  # without the experts' IoUs


def test_a_collapsed_router_is_told_something_else():
    for metrics, words in ((COLLAPSED, "a has 97% of the weight"), (FAVOURITE, "95% of the first")):
        told = watched(*[{**metrics, **GAP}] * 4)[:-1]
        assert len(told) == 1 and "router: collapsed" in told[0] and words in told[0]
        assert "raise model.routing_losses.balance.weight=0.01" in told[0]
        assert "lower model.routing_losses" not in told[0]


def test_nothing_to_route_is_no_fault_of_the_router():
    for metrics in (BLIND, COLLAPSED):
        told = watched(*[{**metrics, **NO_GAP}] * 4)[:-1]
        assert len(told) == 1 and "nothing to route" in told[0]
        assert "oracle's IoU on validation is 0.7010" in told[0] and "use a alone" in told[0]
        assert "routing_losses" not in told[0]


def test_each_state_is_told_once_and_so_is_the_way_out():
    blind, collapsed = {**BLIND, **GAP}, {**COLLAPSED, **GAP}
    told = watched(blind, blind, collapsed, collapsed, ROUTES, blind, blind, patience=2)
    assert [line.split(":")[1].split(" for")[0].split(",")[0].strip() for line in told[:4]] == [
        "blind",
        "collapsed",
        "routes again",
        "blind",
    ]


def test_a_router_that_routes_is_left_alone_and_its_end_is_told():
    (end,) = watched(*[{**ROUTES, **GAP}] * 5)
    # Of the best epoch, 2: the mixture has 0.71 of 0.70 to 0.74.
    for word in ("epoch 2", "IoU 0.7100", "best expert a 0.7000", "oracle 0.7400"):
        assert word in end
    assert "25% of the gap closed" in end and "regret 0.0300" in end
    assert watched(*[ROUTES] * 5) == []


def test_where_there_is_no_gap_no_share_is_told():
    equal = dict(GAP, IoU_oracle=0.70, regret=0.0)
    figures = RoutingFigures.of({**ROUTES, **equal}, ("a", "b"))
    assert figures.gain()["gap_closed"] is None


def test_knowing_images_needs_a_router_that_falls_back():
    with pytest.raises(ValueError, match=r"set model\.router\.fallback, e\.g\. 4\.0"):
        FamiliarityHook().before_train(SimpleNamespace(model=SimpleNamespace(router=None)))


def test_what_is_known_is_not_averaged_away():
    parts = [Familiarity(8, 4.0) for _ in range(2)]
    model, averaged = (SimpleNamespace(router=SimpleNamespace(familiarity=p)) for p in parts)
    ema = SimpleNamespace(ema_model=SimpleNamespace(module=averaged))
    runner, hook = SimpleNamespace(model=model, hooks=[object(), ema]), FamiliarityHook()
    hook.before_val_epoch(runner)
    for _ in range(3):
        parts[0](torch.randn(4, 8))
    hook.after_val_epoch(runner)
    assert parts[0].edge > 0 and parts[0].kept is None
    assert_same(parts[0].state_dict(), parts[1].state_dict(), atol=0, rtol=0)


def test_settings_are_checked():
    for wrong in (dict(patience=0), dict(max_share=1.2)):
        with pytest.raises(ValueError, match="router_watch"):
            RouterWatchHook(**wrong)


GIVEN = {2: "experts_joint_best.pth", 3: "router_best.pth"}


def started(folder, stage, *changes, epochs=1):
    """A config of stage 2 or 3, and the weights that it starts from."""
    config = write_config(folder, stage, TWO_EXPERTS, *changes, epochs=epochs)
    torch.manual_seed(7)
    save_weights(folder / "weights" / GIVEN[stage], build(config), {}, "the stage before")
    return config


def watch(**settings):
    return dict(default_hooks=dict(router_watch=settings))


def test_a_training_with_a_router_made_blind(tmp_path, monkeypatch):
    real = EvidenceRouter.score
    monkeypatch.setattr(EvidenceRouter, "score", lambda *args: 0.0 * real(*args))
    known = dict(
        model=dict(router=dict(fallback=2.0)),
        default_hooks=dict(familiarity=dict(type="FamiliarityHook")),
    )
    config = started(tmp_path, 2, watch(patience=2, min_gap=-1.0), known, epochs=3)
    train(prepared(config, tmp_path / "work"))
    # What it validated on is known by the weights that are kept.
    kept = weights(tmp_path / "weights" / "router_best.pth")
    assert kept["router.familiarity.edge"] > 0 and kept["router.familiarity.mean"].any()
    log = log_of(tmp_path / "work")
    assert log.count("router: blind for 2 validations") == 1
    assert "model.routing_losses.distill.tau" in log
    finished = json.loads((tmp_path / "work" / "finished.json").read_text())
    routing = finished["routing"]
    assert routing["epoch"] == finished["best_epoch"]
    assert routing["IoU_mixture"] == pytest.approx(finished["best"], abs=1e-6)
    assert routing["regret"] == pytest.approx(routing["IoU_oracle"] - routing["IoU_mixture"])
    assert "router on validation (epoch" in log


def test_a_training_with_a_router_made_to_collapse(tmp_path, monkeypatch):
    real = EvidenceRouter.score

    def score(*args):
        logits = real(*args)
        return 0.0 * logits + torch.tensor([8.0, 0.0])

    monkeypatch.setattr(EvidenceRouter, "score", score)
    changes = merged(watch(patience=1, min_gap=-1.0), dict(model=dict(router=dict(noise=0.0))))
    train(prepared(started(tmp_path, 2, changes, epochs=1), tmp_path / "work"))
    log = log_of(tmp_path / "work")
    assert log.count("router: collapsed for 1 validations: pranet has 100% of the weight") == 1


def read(folder, name="experts_after"):
    return json.loads((folder / f"{name}.json").read_text())


def test_experts_are_measured_before_and_with_the_weights_that_are_kept(tmp_path, monkeypatch):
    scores = [0.9, 0.1]  # the first epoch is the best
    measured = []
    real = BestWeightsHook.after_val_epoch

    def after(self, runner, metrics=None):
        measured.append(metrics)
        real(self, runner, {**metrics, "IoU": scores[runner.epoch - 1]})

    monkeypatch.setattr(BestWeightsHook, "after_val_epoch", after)
    measurements, summary = [], handover.summary
    monkeypatch.setattr(handover, "summary", lambda *args: measurements.append(1) or summary(*args))
    work_dir = tmp_path / "work"
    drop = dict(default_hooks=dict(experts_after=dict(max_drop=-2.0)))  # warns of any change
    runner = train(prepared(started(tmp_path, 3, drop, epochs=2), work_dir))
    found = read(work_dir)
    assert found["before"] == read(work_dir, "experts_before")
    # Not twice before the first step: loading the weights measured them.
    assert len(measurements) == 2
    assembly = read(work_dir, "assembly")
    for name, expert in assembly["experts"].items():
        assert expert["assembled"] == found["before"]["IoU"][name]
    assert assembly["uniform"] == found["before"]["IoU"]["uniform"]
    for name in ("pranet", "sinet", "oracle"):
        # As RoutingMetric has it: of the first epoch, not of the last.
        assert found["after"]["IoU"][name] == pytest.approx(measured[0][f"IoU_{name}"])
        change = found["after"]["IoU"][name] - found["before"]["IoU"][name]
        assert found["change"]["IoU"][name] == pytest.approx(change)
    assert found["after"]["IoU"] != pytest.approx(found["before"]["IoU"])
    assert found["after"]["images"] == 4
    assert 0 <= found["after"]["diversity"]["pairwise_iou"] <= 1
    log = log_of(work_dir)
    assert "experts on 4 validation images" in log and "pairwise iou" in log
    assert "raise model.expert_loss_weight" in log
    # The model is left as training left it, not with the best weights.
    best, last = weights(tmp_path / "weights" / "ensemble_best.pth"), runner.model.state_dict()
    assert any(not torch.equal(best[key], last[key]) for key in best)


def test_a_resumed_run_compares_with_the_first_start(tmp_path):
    config = started(tmp_path, 3, STOP, epochs=2)
    train(prepared(config, tmp_path / "work"))
    before = read(tmp_path / "work", "experts_before")
    config = write_config(tmp_path, 3, TWO_EXPERTS, epochs=2)
    train(prepared(config, tmp_path / "work", resume=True))
    assert read(tmp_path / "work")["before"] == before
    (tmp_path / "work" / "experts_before.json").unlink()
    train(prepared(config, tmp_path / "work", resume=True))  # it has ended: there is no step to do
    assert read(tmp_path / "work")["before"] is None
    assert "is not known" in log_of(tmp_path / "work")


@pytest.mark.parametrize("dispatch", ["dense", "sparse"])
def test_no_advice_that_is_followed_already(tmp_path, dispatch):
    hook = dict(default_hooks=dict(experts_after=dict(type="ExpertsAfterHook", max_drop=-1.0)))
    model = dict(model=dict(train_dispatch=dispatch, train_top_k=None, top_k=1))
    config = write_config(tmp_path, 3, TWO_EXPERTS, model, hook, dict(init_from=None))
    train(prepared(config, tmp_path / "work"))
    log = log_of(tmp_path / "work")
    assert "sinet lost " in log and "lower optim_wrapper.optimizer.lr" in log
    assert ("model.train_dispatch='dense'" in log) == (dispatch == "sparse")
