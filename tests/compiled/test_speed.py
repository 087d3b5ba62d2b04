"""Memory format and compiled parts: the same numbers, the same names."""

import copy

import pytest
import torch
from miniature import ONE_EXPERT, TWO_EXPERTS, build, prepared, write_config
from timm.layers import fast_norm
from timm.models import checkpoint as timm_checkpoint
from torch import nn

from codmoe.compiled import speed
from codmoe.compiled.speed import (
    PARTS,
    InTraining,
    compile_options,
    compile_parts,
    compiled_parts,
    set_memory_format,
)
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.config import load_config
from codmoe.engine.launch import build_runner, settle, train
from codmoe.models.execution import backbone_pass, checkpointed


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    changes = dict(model=dict(router=dict(noise=0.0)), init_from=None)
    model = build(load_config(write_config(tmp_path, 3, changes))).train().double()
    model.router.float()  # computes in float32 whatever it is given
    return model


@pytest.fixture
def lone(tmp_path):
    torch.manual_seed(0)
    return build(load_config(write_config(tmp_path, 1, ONE_EXPERT))).train()


def step(model):
    """Loss and gradients of one step on bytes, as the data loader gives them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator).byte()
    targets = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    targets[..., 10:40, 20:50] = 1
    batch = model.data_preprocessor(dict(inputs=images, targets=targets))
    inputs = batch["inputs"].to(next(model.parameters()).dtype)
    loss = model.parse_losses(model(inputs, targets=batch["targets"], mode="loss"))[0]
    loss.backward()
    return inputs, loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_channels_last_gives_the_same_loss_and_gradients(model, tmp_path):
    other = copy.deepcopy(model)
    set_memory_format(other, "channels_last")
    assert other.state_dict().keys() == model.state_dict().keys()
    images, loss, gradients = step(model)
    images_last, loss_last, gradients_last = step(other)
    assert images.is_contiguous() and not images_last.is_contiguous()
    assert images_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(loss, loss_last, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == gradients_last.keys() and len(gradients) > 300
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(
            gradient, gradients_last[name], rtol=1e-3, atol=1e-3 * scale, msg=name
        )


def test_the_experts_get_a_pyramid_in_the_format_of_the_images(model):
    set_memory_format(model.float(), "channels_last")
    seen = []
    expert = model.experts["pranet"]
    expert.register_forward_pre_hook(lambda _, args: seen.extend(args[1][0]))
    step(model)
    assert len(seen) == 4
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in seen)


def test_weights_files_are_laid_out_alike(model, tmp_path):
    set_memory_format(model, "channels_last")
    save_weights(tmp_path / "w.pth", model, {}, "run")
    state = torch.load(tmp_path / "w.pth", weights_only=True)["state_dict"]
    assert all(value.is_contiguous() for value in state.values())


def test_the_runner_lays_out_the_model_and_the_optimisers_state(tmp_path):
    off = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    runner = train(prepared(write_config(tmp_path, 1, ONE_EXPERT, off), tmp_path / "work"))
    for parameter, state in runner.optim_wrapper.optimizer.state.items():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
        assert state["exp_avg"].stride() == parameter.stride()
    plain = prepared(write_config(tmp_path, 1, ONE_EXPERT), tmp_path / "p", memory_format=None)
    assert all(p.is_contiguous() for p in build_runner(settle(plain)).model.parameters())


def test_fast_norms_stay_in_half_precision(tmp_path):
    for on in (True, False):
        cfg = prepared(write_config(tmp_path, 1, ONE_EXPERT), tmp_path / str(on), fast_norm=on)
        model = build_runner(settle(cfg)).model.eval()
        norms = [m for n, m in model.backbone.named_modules() if n.endswith("norm1")]
        # What they do with it is timm's; on a CPU autocast leaves layer norms in half precision.
        assert norms and all(norm._fast_norm == on for norm in norms)
        assert not fast_norm.is_fast_norm()  # of models that others make afterwards
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        assert model(torch.randn(1, 3, 64, 64, device=device)).isfinite().all()
    with pytest.raises(ValueError, match="fast_norm='yes': give True or False"):
        load_config(write_config(tmp_path), {"fast_norm": "yes"})


def test_misspelt_keys_are_told(tmp_path):
    config = write_config(tmp_path)
    with pytest.raises(ValueError, match=r"memory_format='chanels_last'.*'channels_last'"):
        load_config(config, {"memory_format": "chanels_last"})
    with pytest.raises(ValueError, match=r"compile: no key 'bakbone'.*'backbone'"):
        load_config(config, {"compile.bakbone": True})
    with pytest.raises(ValueError, match=r"compile='all': give True, or a dict"):
        load_config(config, {"compile": "all"})
    with pytest.raises(ValueError, match=r"compile.experts='yes': give True or False"):
        load_config(config, {"compile.experts": "yes"})
    with pytest.raises(ValueError, match=r"compile.mode='reduce_over'.*'reduce-overhead'"):
        load_config(config, {"compile.mode": "reduce_over"})
    # The fix that mmengine names for a dict on top of a base's True compiled nothing.
    with pytest.raises(ValueError, match=r"compile: mode=None of no part; give True for some"):
        load_config(config, {"compile": dict(_delete_=True, mode=None)})
    with pytest.raises(ValueError, match=r"compile: mode=None of no part.*for all: compile=True"):
        load_config("quickstart/stage1", {"compile.mode": None})
    load_config("quickstart/stage1", {"compile": False})


@pytest.mark.parametrize("options", [{"train_graphs.experts": True}, {"train_graphs": True}])
def test_graphs_of_before_are_told_to_be_gone(tmp_path, options):
    config = write_config(tmp_path)
    with pytest.raises(ValueError, match=r"train_graphs is gone, leave it out: compile=True"):
        load_config(config, options)
    # As runs of before left it.
    off = dict(train_graphs=dict(backbone=False, experts=False))
    load_config(write_config(tmp_path, 1, ONE_EXPERT, off))


def test_gradients_of_captured_code_are_not_collected(tmp_path):
    config = write_config(tmp_path)
    collected = {"compile": True, "optim_wrapper.accumulative_counts": 2}
    with pytest.raises(ValueError, match=r"compile with .*accumulative_counts > 1.*mode=None"):
        load_config(config, collected)
    load_config(config, {**collected, "compile": False})
    load_config(config, {**collected, "compile": dict(experts=True, mode=None)})


def test_compile_means_all_parts_or_those_that_are_named(tmp_path):
    every = dict.fromkeys(PARTS, True)
    assert compile_options(True) == dict(every, mode="reduce-overhead")
    assert compile_options(dict(experts=True, losses=False)) == dict(
        experts=True, mode="reduce-overhead"
    )
    assert compile_options(dict(experts=True, mode=None)) == dict(experts=True, mode=None)
    both = {"compile": True, "compile.mode": None, "compile.losses": False}
    for options in (both, dict(reversed(both.items()))):
        found = compile_options(load_config("quickstart/stage1", options).compile)
        assert found == {**dict.fromkeys(PARTS[:-1], True), "mode": None}
    path = tmp_path / "off.py"
    path.write_text("_base_ = ['codmoe::experts/joint.py']\ncompile = None\n")
    assert compile_options(load_config(path).compile) == {}
    assert compile_options(load_config(path, {"compile": True}).compile) == compile_options(True)
    assert compile_options(False) == compile_options(None) == compile_options(dict(mode="x")) == {}


@pytest.mark.parametrize("execution", ["together", "sequential", "checkpoint"])
def test_experts_with_a_second_pass_or_one_of_their_own_are_not_captured(
    tmp_path, execution, monkeypatch
):
    said = []
    monkeypatch.setattr(speed, "print_log", lambda text, **_: said.append(text))
    again = dict(expert_execution=execution, checkpoint_backbone="extra")
    model = build(load_config(write_config(tmp_path, 1, TWO_EXPERTS, dict(model=again))))
    compile_parts(model, True)
    modes = {name: part.mode for name, part in compiled_parts(model).items()}
    # Losses of experts, too: they are computed within the same calls.
    without = {name for name, mode in modes.items() if mode is None}
    inner = {name for name in modes if name.startswith("experts.")}
    assert without == (set() if execution == "together" else inner) and len(inner) == 4
    assert modes["backbone"] == modes["combiner"] == "reduce-overhead"  # compiled as one with it
    told = [line for line in said if "without CUDA graphs" in line]
    assert told == [] if execution == "together" else len(told) == 1
    assert all(f"expert_execution='{execution}'; 'together' has them" in line for line in told)


@pytest.mark.parametrize(
    ("again", "scale", "captured"),
    [("all", 1.0, False), ("extra", 1.25, False), ("extra", 1.0, True), (None, 1.25, True)],
)
def test_a_backbone_that_is_called_again_is_not_captured(
    tmp_path, monkeypatch, again, scale, captured
):
    said = []
    monkeypatch.setattr(speed, "print_log", lambda text, **_: said.append(text))
    # It has batch norms, for which no block is computed again by itself.
    resnet = dict(_delete_=True, type="TimmPyramid", name="resnet18")
    expert = dict(experts=dict(sinet=dict(input_scale=scale)))
    changes = dict(model=dict(backbone=resnet, checkpoint_backbone=again, **expert))
    model = build(load_config(write_config(tmp_path, 1, ONE_EXPERT, changes)))
    compile_parts(model, dict(backbone=True))
    assert compiled_parts(model)["backbone"].mode == ("reduce-overhead" if captured else None)
    told = f"backbone: compiled, without CUDA graphs because of checkpoint_backbone={again!r}"
    assert [line.startswith(told) for line in said] == ([] if captured else [True])


def test_experts_without_losses_of_their_own_are_captured(tmp_path):
    without = dict(expert_execution="checkpoint", expert_loss_weight=0.0)
    changes = dict(init_from=None, model=without)
    model = build(load_config(write_config(tmp_path, 3, TWO_EXPERTS, changes)))
    compile_parts(model, dict(experts=True))
    assert {part.mode for part in compiled_parts(model).values()} == {"reduce-overhead"}


class Dropped(nn.Module):
    """Half of its weights, as chance has it: their gradients say which."""

    grad_checkpointing = False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(64, 64) + 1)

    def forward(self, x):
        if self.grad_checkpointing:
            return timm_checkpoint(self.drop, x)
        return self.drop(x)

    def drop(self, x):
        return nn.functional.dropout(x * self.weight)


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_computed_again_has_the_same_random_numbers(inside):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, x = Dropped().to(device), torch.ones(64, 64, device=device)
    module._compiled_call_impl = InTraining(module, "dropped", "reduce-overhead")
    outputs = []
    for _ in range(4):  # on a GPU torch warms up, captures, and runs what it captured
        torch.compiler.cudagraph_mark_step_begin()
        module.zero_grad()
        again = (
            backbone_pass(module, module, x) if inside else checkpointed(module, x, module=module)
        )
        outputs.append(again.detach().clone())
        again.sum().backward()
        torch.testing.assert_close(module.weight.grad * module.weight, outputs[-1])
    assert not module._compiled_call_impl.failed
    assert not any(outputs[-1].equal(other) for other in outputs[:-1])


def test_compiled_parts_keep_names_and_numbers_and_leave_evaluation_alone(lone, monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend="eager", dynamic=False))
    other = copy.deepcopy(lone)
    assert compile_parts(other, dict(backbone=False, experts=True)) == ["experts.sinet"]
    assert other.state_dict().keys() == lone.state_dict().keys()
    loss, loss_compiled = step(lone)[1], step(other)[1]
    torch.testing.assert_close(loss, loss_compiled, rtol=1e-5, atol=1e-6)
    assert not other.experts["sinet"]._compiled_call_impl.failed
    copied = copy.deepcopy(other)  # as EMA makes one
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert step(copied)[1].item() == pytest.approx(step(lone)[1].item(), rel=1e-2)
    other.experts["sinet"]._compiled_call_impl.compiled = None
    other.eval()(torch.zeros(1, 3, 64, 64))


def test_a_part_that_cannot_be_compiled_runs_all_the_same(lone, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend=broken, dynamic=False))
    expected = step(copy.deepcopy(lone))[1]
    compile_parts(lone, dict(experts=True))
    torch.testing.assert_close(step(lone)[1], expected)
    assert lone.experts["sinet"]._compiled_call_impl.failed
