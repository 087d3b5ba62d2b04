import json

import pytest
import torch

from codmoe.models.router_truth import RouterTruth
from codmoe.structures import CODDataSample

NAMES = ("pranet", "sinet")
IMAGES = dict(a=(0.2, 0.9), b=(0.7, 0.1))


def sample(stem):
    return CODDataSample(metainfo=dict(stem=stem))


@pytest.fixture
def files(tmp_path):
    """One result file a fold, as tools/test.py --experts writes them."""
    paths = []
    for fold, (stem, values) in enumerate(IMAGES.items()):
        sources = {
            name: dict(images={stem: dict(IoU=value)})
            for name, value in zip(NAMES, values, strict=True)
        }
        path = tmp_path / f"fold{fold}.json"
        path.write_text(json.dumps(dict(table=dict(CAMO=sources))))
        paths.append(str(path))
    return paths


def test_it_knows_every_image_of_every_fold(files):
    truth = RouterTruth(files, expert_names=NAMES)
    iou = truth.of([sample("b"), sample("a")], torch.device("cpu"))
    torch.testing.assert_close(iou, torch.tensor([IMAGES["b"], IMAGES["a"]]))
    turned = RouterTruth(files, expert_names=NAMES[::-1]).of([sample("a")], torch.device("cpu"))
    assert turned[0].tolist() == pytest.approx(IMAGES["a"][::-1])


def test_centred_it_says_on_which_images_an_expert_is_better_than_elsewhere(tmp_path):
    # The second is 0.2 worse everywhere but on c, where it is as good.
    values = dict(a=(0.5, 0.3), b=(0.7, 0.5), c=(0.6, 0.6))
    sources = {
        name: dict(images={stem: dict(IoU=pair[i]) for stem, pair in values.items()})
        for i, name in enumerate(NAMES)
    }
    path = tmp_path / "fold.json"
    path.write_text(json.dumps(dict(table=dict(CAMO=sources))))
    truth = RouterTruth(str(path), expert_names=NAMES, centred=True)
    iou = truth.of([sample(stem) for stem in values], torch.device("cpu"))
    torch.testing.assert_close(iou.mean(0), iou.mean().expand(2))
    assert iou[0, 0] > iou[0, 1] and iou[2, 1] > iou[2, 0]


def test_a_misspelt_argument_is_told(make_model):
    with pytest.raises(ValueError, match=r"router_truth: .*centered"):
        make_model(router_truth=dict(files=["a.json"], centered=True))
    with pytest.raises(ValueError, match="router_truth: no files"):
        make_model(router_truth=dict(centred=True))


def test_what_is_missing_is_told(files, tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="image 'c' is in none of"):
        RouterTruth(files, expert_names=NAMES).of([sample("c")], cpu)
    with pytest.raises(ValueError, match="needs the name of every image"):
        RouterTruth(files, expert_names=NAMES).of(None, cpu)
    with pytest.raises(ValueError, match="has no 'ujsc' on CAMO, but pranet, sinet"):
        RouterTruth(files, expert_names=("pranet", "ujsc")).of([sample("a")], cpu)
    with pytest.raises(FileNotFoundError, match=r"fold9\.json does not exist"):
        RouterTruth([str(tmp_path / "fold9.json")], expert_names=NAMES).of([sample("a")], cpu)


def test_a_model_is_built_and_used_without_the_files(make_model, batch):
    model = make_model(router_truth=dict(files=["gone.json"])).eval()
    assert model(batch(1)[0]).shape == (1, 1, 64, 64)


def test_routing_losses_read_it(make_model, batch, files, tmp_path):
    experts = {name: dict(type="FPNExpert", channels=16) for name in NAMES}
    model = make_model(
        experts=experts,
        router_truth=dict(files=files),
        routing_losses=dict(teach=dict(type="ExpertIoUDistillation", tau=0.05)),
        train_dispatch="dense",
    ).train()
    images, targets = batch(2)
    samples = [sample("a"), sample("b")]
    losses = model(images, data_samples=samples, targets=targets, mode="loss")
    # One is best on a, another on b, whatever the model's own experts do: as by hand.
    target = (torch.tensor([IMAGES["a"], IMAGES["b"]]) / 0.05).softmax(1)
    with torch.no_grad():
        scores = model.router(images, model.backbone(images)).logits.log_softmax(1)
    expected = (target * (target.log() - scores)).sum(1).mean()
    torch.testing.assert_close(losses["router.loss_teach"], expected, atol=1e-4, rtol=1e-4)
    losses["router.loss_teach"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.router.parameters())
