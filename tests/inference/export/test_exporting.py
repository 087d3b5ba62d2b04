"""Exported models, each loaded back and held against the model it came from."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from miniature import MINIATURES, SMALL_BODY, call

from codmoe import ModelLevelMoE, create_model
from codmoe.inference.export import exporting as exporting
from codmoe.inference.export.exporting import TOLERANCE, compare, export, load_exported
from codmoe.inference.export.onnx_runner import OnnxRunner
from codmoe.inference.export.replacements import for_onnx

SIZE = 64
EXPERTS = MINIATURES | dict(
    # A head of few operators, where any will do.
    fpn=dict(type="FPNExpert", channels=16),
    other=dict(type="FPNExpert", channels=16),
    zoomnet=dict(type="ZoomNetExpert", channels=16, groups=2),
)
BACKBONE = dict(type="TimmPyramid", name="pvt_v2_b0", **SMALL_BODY)
# A third of the operators, and so of the seconds that an exporter takes.
SHORT = dict(type="TimmPyramid", name="resnet10t")


def images(count=4, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
    fine = torch.rand(count, 3, size, size, generator=generator) * 60
    return (
        (torch.nn.functional.interpolate(coarse, size, mode="bicubic") + fine).clamp(0, 255).byte()
    )


# All four branches are in the bundle; an exporter takes ten seconds for three of them.
ONE_BRANCH = dict(texture=False, edge=False, context=False)


def miniature(names, seed=0, backbone=BACKBONE, branches=None, **settings):
    """A model whose batch norms have seen images: maps of ordinary size, images routed apart."""
    torch.manual_seed(seed)
    experts = {name: EXPERTS[name] for name in names}
    router = dict(type="EvidenceRouter", width=16, noise=0.0, branches=branches)
    model = ModelLevelMoE(backbone, experts=experts, router=router, **settings)
    torch.nn.init.normal_(model.router.fuse[-1].weight, std=2.0)
    model.train()
    model.train_dispatch = "dense"
    with torch.no_grad():
        for seed in range(5):
            batch = model.data_preprocessor(dict(inputs=images(6, seed=seed)))
            model(batch["inputs"])
        model.eval()
        # Every expert as likely as the next, or the router would send all images to the same two.
        model.router.fuse[-1].bias -= reference(model, images(16))[1].logits.mean(0)
    return model


@pytest.fixture(scope="module")
def model():
    return miniature(("fpn", "pranet", "zoomnet"), backbone=SHORT)


@pytest.fixture(scope="module")
def sparse(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse") / "bundle"
    return folder, export(model, folder, format="onnx-sparse", size=SIZE, check=False)


def reference(model, batch):
    with torch.no_grad():
        logits, decision, _ = model.mixture(model.data_preprocessor(dict(inputs=batch))["inputs"])
    return logits.sigmoid().numpy(), decision


def test_sparse_onnx_computes_what_the_model_computes(model, sparse):
    runner = OnnxRunner(sparse[0])
    assert runner.size == (SIZE, SIZE) and runner.expert_names == model.expert_names
    for batch in (images(7, seed=20), images(1, seed=21), images(3, seed=22)):
        expected, decision = reference(model, batch)
        result = runner(batch.numpy())
        assert np.array_equal(result["indices"], decision.indices.numpy())
        assert np.abs(result["probability"] - expected).max() < TOLERANCE
        assert np.abs(result["weights"] - decision.weights.numpy()).max() < TOLERANCE
        assert np.isfinite(result["logits"]).all()
        assert set(runner.used) == {model.expert_names[i] for i in decision.indices.unique()}
    assert len({tuple(row) for row in reference(model, images(7, seed=20))[1].indices.tolist()}) > 1
    assert compare(model, load_exported(sparse[0]), images())["probability"] < TOLERANCE


def test_a_sparse_bundle_runs_the_chosen_experts_alone(model, sparse):
    runner = OnnxRunner(sparse[0])
    batch, zoomnet = images(16, seed=21), model.expert_names.index("zoomnet")
    without = (reference(model, batch)[1].indices != zoomnet).all(1)
    assert without.any() and not without.all()
    del runner._graphs["expert_zoomnet"], runner._graphs["scales"]
    assert len(runner(batch[without].numpy())["probability"]) == without.sum()
    assert set(runner.used) == {"fpn", "pranet"}
    with pytest.raises(KeyError, match="scales"):
        runner(batch.numpy())


def test_further_scales_are_made_once_for_all_experts_that_read_them(model, sparse):
    runner, other, asked = OnnxRunner(sparse[0]), OnnxRunner(sparse[0]), []
    files = runner.manifest["files"]
    assert files["scales"]["outputs"] == [f"f{level}_x1.5" for level in (1, 2, 3, 4)]
    assert "f1_x0.5" in files["pyramid"]["outputs"], "two of three choices read it, and it is cheap"
    files["expert_pranet"]["inputs"].append("f4_x1.5")

    def run(key, values):
        asked.append((key, values))
        return other.run_graph(key, values)

    runner.run_graph = run
    batch, pranet = images(16, seed=21).numpy(), model.expert_names.index("pranet")
    chosen = (runner(batch)["indices"] == pranet).any(1)
    assert 0 < chosen.sum() < 16 and [key for key, _ in asked].count("scales") == 1
    expected = other.run_graph("scales", dict(images=batch[chosen]))["f4_x1.5"]
    assert np.allclose(dict(asked)["expert_pranet"]["f4_x1.5"], expected, atol=1e-4)


def test_a_bundle_needs_neither_torch_nor_codmoe(model, sparse, tmp_path):
    batch = images(2, seed=23)
    np.save(tmp_path / "images.npy", batch.numpy())
    code = (
        "import sys; sys.modules['torch'] = sys.modules['codmoe'] = None\n"
        "import numpy as np\nfrom onnx_runner import OnnxRunner\n"
        f"result = OnnxRunner('.')(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"np.save({str(tmp_path / 'map.npy')!r}, result['probability'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=sparse[0], check=True)
    assert np.abs(np.load(tmp_path / "map.npy") - reference(model, batch)[0]).max() < TOLERANCE


def test_a_bundle_says_what_it_is_and_what_is_wrong(sparse, tmp_path):
    folder = sparse[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["expert_pranet"]["inputs"] == ["f2", "f3", "f4"]
    assert set(manifest) >= {"codmoe", "size", "mean", "std", "top_k", "expert_names"}
    runner = OnnxRunner(folder)
    right = images().numpy()
    for wrong, way in (
        (right.astype(np.float32), "give bytes"),
        (images(size=96).numpy(), "resize them"),
        (right[0], "one image is images"),
        (right.transpose(0, 2, 3, 1), "channels come before the sides"),
    ):
        with pytest.raises(ValueError, match=rf"are not uint8 \(N, 3, 64, 64\); {way}"):
            runner(wrong)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json does not exist"):
        OnnxRunner(tmp_path)
    (tmp_path / "manifest.json").write_text((folder / "manifest.json").read_text())
    for path in folder.glob("*.onnx"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "combiner.onnx").unlink()
    (tmp_path / "combiner.onnx").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"combiner\.onnx is not the file that was exported"):
        OnnxRunner(tmp_path)
    (tmp_path / "combiner.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"combiner\.onnx is missing"):
        OnnxRunner(tmp_path)


def test_dense_onnx(tmp_path):
    model = miniature(("sinet", "ujsc"), branches=ONE_BRANCH, top_k=1)
    found = export(model, tmp_path / "dense", format="onnx", size=(SIZE, 96))
    assert found["probability"] < TOLERANCE and found["undecided"] == 0
    runner = OnnxRunner(tmp_path / "dense")
    batch = torch.cat([images(3, seed=24), images(3, seed=25)], dim=3)[..., :96]
    assert np.abs(runner(batch.numpy())["probability"] - reference(model, batch)[0]).max() < 1e-4


def test_torch_export(tmp_path):
    combiner = dict(type="LogitCombiner", learn_temperature=True)
    model = miniature(("fpn", "other"), backbone=SHORT, branches=ONE_BRANCH, combiner=combiner)
    model.combiner.log_temperature.data.fill_(0.5)
    found = export(model, tmp_path / "program", format="torch-export", size=SIZE)
    assert 0 <= found["probability"] < TOLERANCE
    program = load_exported(tmp_path / "program")
    for count in (1, 5):
        batch = images(count, seed=26)
        given = program(batch)["probability"].numpy()
        assert np.abs(given - reference(model, batch)[0]).max() < TOLERANCE


def test_a_pretrained_folder(model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    found = export(model, folder, format="safetensors", size=SIZE)
    assert found["probability"] < 1e-6
    batch = model.data_preprocessor(dict(inputs=images()))["inputs"]
    expected = model(batch)
    again = ModelLevelMoE.from_pretrained(folder)
    assert not again.training and torch.allclose(again(batch), expected, atol=1e-5)
    assert ModelLevelMoE.from_pretrained(folder, top_k=1).router.top_k == 1
    # The weights are a checkpoint by themselves.
    other = create_model(checkpoint=folder / "model.safetensors")
    assert torch.allclose(other(batch), expected, atol=1e-5)
    # What is saved from what was loaded is the same, and what was there is kept.
    before = (folder / "config.json").read_text()
    again.save_pretrained(folder)
    assert (folder / "config.json").read_text() == before
    assert len(list(folder.glob("config.*.json"))) == len(list(folder.glob("model.*.saf*"))) == 1


def test_what_computes_something_else_is_not_kept(model, tmp_path, monkeypatch):
    def wrong(model, size, folder):
        changed = for_onnx(model, size)
        for parameter in changed.experts.parameters():
            parameter.data *= 1.01
        changed.save_pretrained(folder)
        return {}

    monkeypatch.setitem(exporting._WRITERS, "safetensors", wrong)
    with pytest.raises(ValueError, match=r"probability differs .* not kept"):
        export(model, tmp_path / "out", format="safetensors", size=SIZE)
    assert not list(tmp_path.iterdir())


def test_compare_sees_other_choices_and_a_constant_batch(model):
    def exported(change):
        def run(batch):
            logits, decision, _ = model.mixture(
                model.data_preprocessor(dict(inputs=batch))["inputs"]
            )
            info = dict(weights=decision.weights, indices=decision.indices)
            info.update(routing=decision.probabilities, logits=logits)
            return {**info, "probability": logits.sigmoid(), **change(info)}

        return torch.no_grad()(run)

    assert compare(model, exported(lambda info: {}), images())["logits"] < 1e-4
    with pytest.raises(ValueError, match="chooses other experts"):
        compare(model, exported(lambda info: dict(indices=info["indices"].flip(1))), images())
    with pytest.raises(ValueError, match="weights differs"):
        compare(model, exported(lambda info: dict(weights=info["weights"] + 0.01)), images())
    nothing = exported(lambda info: dict(probability=torch.full_like(info["logits"], torch.nan)))
    with pytest.raises(ValueError, match="probability differs"):
        compare(model, nothing, images())


def test_refusals(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"multiples of 32; use 64 × 96"):
        export(model, tmp_path / "x", format="onnx", size=(70, 100))
    with pytest.raises(ValueError, match="format='tflite' is unknown; use one of onnx"):
        export(model, tmp_path / "x", format="tflite")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already and is not touched"):
        export(model, tmp_path, format="safetensors", size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"needs onnxscript.*pip install 'codmoe\[export\]'"):
        export(model, tmp_path / "x", format="onnx", size=SIZE)


def test_a_config_has_random_weights_of_ordinary_size():
    model = exporting.model_for_export("quickstart/stage3")
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms and not any((norm.running_var == 1).all() for norm in norms)


def test_the_command_line(model, tmp_path, monkeypatch, capsys):
    model.save_pretrained(tmp_path / "model")
    weights, out = tmp_path / "model" / "model.safetensors", tmp_path / "out"
    arguments = (weights, "--format", "safetensors", "--out", out, "--size", 64)
    assert call(monkeypatch, "export", *arguments) is None
    said = capsys.readouterr().out
    assert "probability" in said and f"wrote {out}" in said
    assert call(monkeypatch, "export", *arguments).startswith("error: ")
    absent = ("absent.pth", "--format", "onnx", "--out", tmp_path / "no")
    assert "absent.pth does not exist" in call(monkeypatch, "export", *absent)
    assert not (tmp_path / "no").exists()


def test_a_bundle_has_no_room_for_own_blocks(tmp_path):
    experts = {name: dict(EXPERTS[name], own_blocks=1) for name in ("fpn", "other")}
    model = ModelLevelMoE(BACKBONE, experts=experts)
    with pytest.raises(ValueError, match=r"own_blocks .*use --format onnx"):
        export(model, tmp_path / "bundle", format="onnx-sparse", size=SIZE)
    assert not (tmp_path / "bundle").exists()


def test_onnxruntime_folds_batch_norms_into_convolutions(sparse, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    for file in ("backbone_router.onnx", "expert_pranet.onnx"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # One level further, nodes that change the layout lie between the two.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / file)
        onnxruntime.InferenceSession(
            str(sparse[0] / file), options, providers=["CPUExecutionProvider"]
        )
        nodes = onnx.load(tmp_path / file).graph.node
        convolved = {out for node in nodes if node.op_type == "Conv" for out in node.output}
        norms = [node for node in nodes if node.op_type == "BatchNormalization"]
        assert convolved and not [norm.name for norm in norms if norm.input[0] in convolved]
