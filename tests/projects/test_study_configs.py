"""The rows of the study say what was asked for."""

import pytest

from codmoe import create_model
from projects.study.plan import CONFIGS, plan_study, study_rows

LONE = ("sinet", "pranet", "zoomnet", "ujsc")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """``{row: run}`` of all rows, read once."""
    planned = plan_study(study_rows(), seeds=[0], work_dir=tmp_path_factory.mktemp("study"))
    return {run.row: run for run in planned}


def test_the_rows_chain(runs):
    sources = {row: run.above[0].row for row, run in runs.items() if run.above}
    assert sources["polyp_stage3"] == "polyp_router_top2"
    assert sources["mix_static"] == sources["mix_refit"] == "mix_joint"
    assert sources["mix_joint"] == sources["mix_fpn4"] == "mix_warm"
    assert sources["mix_stage3_lite2"] == "mix_router_lite2"
    assert {row for row, run in runs.items() if run.is_source} == set(sources.values())
    for run in runs.values():
        assert len(run.above) == bool(run.cfg.get("init_from"))


def test_a_row_has_the_budget_of_its_stage(runs):
    """Equal epochs, batch and rate in a stage, and no images that another stage holds out."""
    assert len(runs) == 2 * 37
    for name, run in runs.items():
        check_budget(name, run.cfg)


def check_budget(name, cfg):
    dataset, _, row = name.partition("_")
    stage = {"stage3": "stage3", "router": "router", "static": "router", "refit": "refit"}.get(
        row.split("_")[0], "joint"
    )
    others = dict(fpn="fpn", fpn_frozen="fpn", warm="warm", fpn_long="long", fpn4="after")
    others |= dict(joint_cold="cold", joint_lite2="cold")
    others |= dict.fromkeys(LONE, "after")  # as long as experts learn on the way to the ensemble
    stage = others.get(row, stage)
    budget, loop = cfg.budget[stage], cfg.train_cfg
    epochs = budget.train_cfg.max_epochs
    assert loop.max_epochs == epochs and loop.val_interval == max(1, epochs // 2)
    # Everything that is compared starts from the same backbone, but for what says otherwise.
    source = (cfg.get("init_from") or {}).get("file")
    warm = row in ("joint", "joint_mixture", "joint_zoomnet_structure", "fpn4", *LONE)
    assert (source == "warm_best.pth") == warm
    if row != "static":
        assert cfg.optim_wrapper.optimizer.lr == cfg.rates[stage].optimizer.lr
        keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
        rates = [
            cfg.optim_wrapper.optimizer.lr * keys[k].lr_mult for k in ("backbone.body", "backbone")
        ]
        assert rates[0] <= 3e-5 * (1 + 1e-9) and rates[1] <= 3e-4 * (1 + 1e-9)
    assert cfg.train_dataloader.batch_size == 12
    used = {"joint": ("experts",), "refit": ("experts",), "router": ("router",)}
    used |= {"static": ("router",), "warm": ("experts",)}
    wanted = used.get(row.split("_")[0], ("experts", "router"))
    assert tuple(cfg.train_dataloader.dataset.split.use) == wanted
    assert tuple(cfg.val_dataloader.dataset.split.use) == ("val",)
    assert not cfg.test_dataloader.dataset.get("split")
    hook = cfg.default_hooks.checkpoint
    assert 1 < hook.interval < epochs and not hook.save_last and epochs % hook.interval
    assert cfg.folder == f"checkpoints_moe/study/{dataset}"


def test_the_five_domains(runs):
    cfg = runs["mix_fpn"].cfg
    train, test = cfg.train_dataloader.dataset.datasets, cfg.test_dataloader.dataset.datasets
    assert list(train) == list(test) and len(train) == 5
    for name in train:
        held = cfg.val_dataloader.dataset.datasets[name]
        assert train[name].split_dir == held.split_dir == f"{name}/train"
        assert test[name].split_dir == f"{name}/test"
        # What is left out must be so for every part, or the parts would overlap.
        assert train[name].exclude == held.exclude
    assert list(train.WeizmannHorse.exclude) == ["horse274"]


def test_ablations_change_what_they_say(runs):
    models = {row: run.cfg.model for row, run in runs.items()}
    base = models["mix_router_top2"]
    for branch in ("texture", "edge", "context", "frequency"):
        model = models[f"mix_router_no_{branch}"]
        assert dict(model.router.branches) == {branch: False}
    for loss in ("distill", "balance", "z"):
        losses = models[f"mix_router_no_{loss}"].routing_losses
        assert losses[loss] is None
        assert {k: v for k, v in losses.items() if k != loss} == {
            k: v for k, v in base.routing_losses.items() if k != loss
        }
    assert [models[f"polyp_router_top{k}"].top_k for k in (1, 2, 4)] == [1, 2, 4]
    assert models["mix_stage3_no_expert_loss"].expert_loss_weight == 0
    assert models["mix_stage3_sparse"].train_dispatch == "sparse"
    tops = [models[f"mix_stage3{row}"].train_top_k for row in ("", "_top2")]
    assert tops == ["all", None]
    assert models["mix_joint"].experts.zoomnet.segmentation_loss == "bce"
    assert set(models["mix_fpn4"].experts) == {f"fpn_{c}" for c in "abcd"}


# The models of other rows are the same as one of these, or as a stage's of configs/.
@pytest.mark.parametrize(
    "row", "fpn4 fpn_frozen static router_pixel router_no_edge stage3_lite2".split()
)
def test_models_can_be_built(row):
    create_model(CONFIGS / f"{row}.py")
