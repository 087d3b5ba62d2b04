"""Configs are checked whole."""

import os
import subprocess
import sys

import pytest
import wrong_configs

from codmoe.engine.config import (
    load_config,
    parse_options,
    require_sections,
)
from codmoe.shipped import config_root, find_config


def write(folder, text, base="ensemble/stage3"):
    path = folder / "mine.py"
    path.write_text(f"_base_ = [{str(find_config(base))!r}]\n{text}\n")
    return path


def test_all_faults_are_listed_at_once(tmp_path):
    path = write(
        tmp_path,
        """
modle = dict()
model = dict(
    topk=1, router=dict(widht=8), backbone=dict(nmae="x"), experts=dict(sinet=dict(chanels=8)),
    mixture_loss=dict(type="StructureLos"), routing_losses=dict(z=dict(wieght=1)),
    combiner=dict(type="LogitCombiner", learn_temprature=True),
)
default_hooks = dict(best=dict(monitr="IoU"), logger=dict(intervall=2))
custom_hooks = [dict(type="EMAHok")]
train_dataloader = dict(dataset=dict(data_rot="x", pipeline=[dict(type="RandomFlipp")]))
val_evaluator = [dict(type="CODMetric", ful=False)]
test_dataloader = dict(
    dataset=dict(datasets=dict(COD10K=dict(pipeline=[dict(type="Resize", scal=(4, 4))]))))
""",
    )
    with pytest.raises(ValueError) as caught:
        load_config(path)
    first, *faults = str(caught.value).splitlines()
    expected = [
        ("modle", "did you mean 'model'?"),
        ("model", "no argument 'topk': did you mean 'top_k'"),
        ("model.router", "'width'"),
        ("model.backbone", "'name'"),
        ("model.experts.sinet", "'channels'"),
        ("model.mixture_loss", "'StructureLoss'"),
        ("model.routing_losses.z", "'weight'"),
        ("model.combiner", "'learn_temperature'"),
        ("default_hooks.best", "'monitor'"),
        ("default_hooks.logger", "'interval'"),
        ("custom_hooks[0]", "'EMAHook'"),
        ("train_dataloader.dataset", "'data_root'"),
        ("train_dataloader.dataset.pipeline[0]", "'RandomFlip'"),
        ("val_evaluator[0]", "'full'"),
        ("test_dataloader.dataset.datasets.COD10K.pipeline[0]", "'scale'"),
    ]
    assert first == f"{path} has {len(expected)} fault(s):"
    for where, hint in expected:
        (fault,) = [f for f in faults if f.startswith(f"  - {where}: ")]
        assert hint in fault


def test_an_expert_learns_from_data_sets_that_are_trained_on(tmp_path):
    text = """
model = dict(experts=dict(sinet=dict(learns_from=("CAMO", "Cam"))))
"""
    path = write(tmp_path, text, "ensemble/stage3_cod")
    with pytest.raises(
        ValueError, match=r"1 fault.*\n.*sinet.learns_from: no data set 'Cam' is .*"
    ):
        load_config(path)
    path = write(tmp_path, 'model = dict(experts=dict(sinet=dict(learns_from="CAMO")))')
    with pytest.raises(ValueError, match=r"learns_from='CAMO' is .*tuple\[str, ...\]"):
        load_config(path)


def test_weights_do_not_bear_the_name_of_an_expert_that_is_not_there(tmp_path):
    text = 'model = dict(experts=dict(_delete_=True, linear=dict(type="FPNExpert")))'
    named = "\ndefault_hooks = dict(best=dict(name={!r}))"
    path = write(tmp_path, text, "experts/sinet")
    with pytest.raises(ValueError, match=r"best.name='expert_sinet'.*'sinet', .*'expert_linear'"):
        load_config(path)
    for name in ("expert_linear", "expert_sinet_without"):
        write(tmp_path, text + named.format(name), "experts/sinet")
        assert load_config(path).default_hooks.best.name == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_dataloader.batchsize": 4}, "train_dataloader: .*'batchsize'.*'batch_size'"),
        ({"train_cfg.max_epoch": 4}, "train_cfg: .*'max_epoch'.*'max_epochs'"),
        ({"optim_wrapper.optimiser.lr": 1.0}, "optim_wrapper: .*'optimiser'.*'optimizer'"),
        ({"optim_wrapper.optimizer.learning_rate": 1.0}, "optim_wrapper.optimizer: .*'learning_r"),
        ({"optim_wrapper.type": "OptimWraper"}, "optim_wrapper: .*'OptimWrapper'"),
        ({"init_from.fil": "x.pth"}, "init_from: .*'fil'.*'file'"),
        ({"param_scheduler.1.eta_min_ration": 1}, r"param_scheduler\[1\]: .*'eta_min_ratio'"),
    ],
)
def test_misspelt_overrides_are_told(options, words):
    with pytest.raises(ValueError, match=words):
        load_config("ensemble/stage3", options)


def test_variables_of_a_config_are_no_faults(tmp_path):
    cfg = load_config(write(tmp_path, "my_size = 3\npipelines = []"))
    assert cfg.my_size == 3 and cfg.config_file == str(tmp_path / "mine.py")


def test_an_expert_is_switched_off_in_three_lines(tmp_path):
    path = write(tmp_path, "model = dict(experts=dict(ujsc=None))")
    assert len(path.read_text().split("\n")[:-1]) <= 3
    experts = load_config(path).model.experts
    assert {name for name, cfg in experts.items() if cfg} == {"sinet", "pranet", "zoomnet"}
    from codmoe import create_model

    model = create_model(path, backbone=dict(name="pvt_v2_b0"))
    assert model.expert_names == ("pranet", "sinet", "zoomnet")


def test_options_of_the_command_line():
    pairs = ["a.b=3", "lr=5e-5", "on=true", "off=False", "none=none", "text=bf16", "eq=x=y"]
    pairs += ["use=('experts','router')", "dict={'a': 1}", "empty="]
    assert parse_options(pairs) == {
        "a.b": 3,
        "lr": 5e-5,
        "on": True,
        "off": False,
        "none": None,
        "text": "bf16",
        "eq": "x=y",
        "use": ("experts", "router"),
        "dict": {"a": 1},
        "empty": "",
    }
    assert parse_options(None) == {}
    with pytest.raises(ValueError, match="'train_cfg' is not key=value"):
        parse_options(["train_cfg"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("SIMAE,HCE", ["SIMAE", "HCE"]),
        ("[SIMAE, HCE]", ["SIMAE", "HCE"]),
        ("(experts,router)", ["experts", "router"]),
        ("[SIMAE]", ["SIMAE"]),
        ("a,2,none", ["a", 2, None]),
        ("1,2", (1, 2)),
        ("'a,b'", "a,b"),
        ("/data/a,b", "/data/a,b"),
        ("cam_\\d{1,3}", "cam_\\d{1,3}"),
        ("[a-c]{2,3}", "[a-c]{2,3}"),
        ("a b,c", "a b,c"),
    ],
)
def test_words_between_commas_are_a_list(text, value):
    """As users of mmengine write them, who mean no path and no pattern."""
    assert parse_options([f"key={text}"]) == dict(key=value)


def test_options_reach_the_config():
    options = parse_options(["train_cfg.max_epochs=2", "model.top_k=1", "param_scheduler.0.end=2"])
    cfg = load_config("ensemble/stage3", options)
    assert cfg.train_cfg.max_epochs == 2 and cfg.train_cfg.val_interval == 1
    assert cfg.model.top_k == 1 and cfg.param_scheduler[0].end == 2


def test_delete_is_no_argument_where_there_was_nothing_to_delete():
    """Stage 1 has no loss on the mixture; in stage 2 the same option replaces one."""
    loss = dict(type="SoftIoULoss", weight=2.0)
    for name in ("quickstart/stage1", "quickstart/stage2"):
        cfg = load_config(name, {"model.mixture_loss": dict(loss, _delete_=True)})
        assert cfg.model.mixture_loss == loss
    with pytest.raises(ValueError, match=r"1 fault.*\n.*no argument 'wieght'"):
        load_config(
            "quickstart/stage1", {"model.mixture_loss": dict(loss, _delete_=True, wieght=1)}
        )


@pytest.mark.parametrize(
    "option, hint", [("max_epochs", "train_cfg.max_epochs"), ("data_root", "--data-root")]
)
def test_an_override_without_effect_is_told(option, hint):
    with pytest.raises(ValueError, match=rf"{option}: has no effect; use {hint}"):
        load_config("ensemble/stage3", {option: 3})


def test_a_variable_of_a_base_that_is_set_in_vain_is_told(tmp_path):
    """The base has used it: the pipelines would keep 448 px, and the data sets their folder."""
    path = tmp_path / "mine.py"
    path.write_text("_base_ = ['codmoe::experts/joint.py']\nsize = (64, 64)\ndata_root = '/mine'\n")
    with pytest.raises(ValueError, match=r"2 fault.*\n.* size: .* no effect(.*\n)*.*--data-root"):
        load_config(path)
    path.write_text(
        "_base_ = ['codmoe::experts/joint.py']\nsize = 64\n"
        "pipeline = [dict(type='LoadCODPair'), dict(type='Resize', scale=size)]\n"
        "val_dataloader = dict(dataset=dict(pipeline=pipeline))\n"
    )
    assert load_config(path).val_dataloader.dataset.pipeline[1].scale == 64


def test_what_is_set_in_vain_in_a_file_that_another_inherits_is_told(tmp_path):
    base, mine = tmp_path / "base.py", tmp_path / "mine.py"
    base.write_text("_base_ = ['codmoe::experts/joint.py']\nsize = (64, 64)\nlr = 1e-3\n")
    mine.write_text(
        "_base_ = ['./base.py']\noptim_wrapper = dict(optimizer=dict(lr={{_base_.lr}}))"
    )
    with pytest.raises(ValueError, match=r"1 fault.*\n.*/base\.py: size: has no effect"):
        load_config(mine)


@pytest.mark.parametrize("read", ["_base_.count", "_base_['count']", "{{_base_.count}}"])
def test_a_variable_that_only_a_file_above_reads_is_no_fault(tmp_path, read):
    """It was called one without effect, though the file that inherits it goes by it."""
    low, base, middle, mine = (
        tmp_path / f"{name}.py" for name in ("low", "base", "middle", "mine")
    )
    low.write_text("_base_ = ['codmoe::experts/joint.py']\ncount = 2\nwork_dir = str(count)\n")
    base.write_text("_base_ = ['./low.py']\ncount = 96\n")
    middle.write_text("_base_ = ['./base.py']\nnote = 'of mine'\n")
    mine.write_text(f"_base_ = ['./middle.py']\ntrain_dataloader = dict(batch_size={read})\n")
    assert load_config(mine).train_dataloader.batch_size == 96
    with pytest.raises(ValueError, match=r"base\.py: count: has no effect"):
        load_config(middle)


def test_a_base_may_be_named_by_the_folder_or_the_environment(tmp_path, monkeypatch):
    """mmengine fills these in before it reads a file, and no such base was found afterwards."""
    (tmp_path / "base.py").write_text("_base_ = ['codmoe::experts/joint.py']\n")
    monkeypatch.setenv("RATE", "0.5")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "_base_ = ['{{ fileDirname }}/{{$BASE:base}}.py']\n"
        "optim_wrapper = dict(optimizer=dict(lr={{'$RATE:0.1'}}))\n"
    )
    assert load_config(mine).optim_wrapper.optimizer.lr == 0.5


def test_a_variable_called_like_a_key_is_told(tmp_path):
    """Training went on at the base's rate and batch size."""
    path = tmp_path / "mine.py"
    path.write_text(
        "_base_ = ['codmoe::experts/joint.py']\n"
        "lr, batch_size, max_epochs, width = 1e-4, 4, 9, 8\nname = 'a trial'\n"
        "model = dict(experts=dict(sinet=dict(channels=width)))\n"
    )
    with pytest.raises(ValueError) as error:
        load_config(path)
    assert [line.strip(" -") for line in str(error.value).splitlines()[1:]] == [
        "lr: a variable that nothing reads; set optim_wrapper.optimizer.lr",
        "batch_size: a variable that nothing reads; set train_dataloader.batch_size, "
        "val_dataloader.batch_size and 1 more",
        "max_epochs: a variable that nothing reads; use train_cfg.max_epochs",
    ]
    # As a run leaves its config, what was read is written beside where it went.
    (tmp_path / "whole.py").write_text("channels = 8\nbackbone = dict(channels=8)\n")
    whole = load_config("quickstart/stage1")
    whole.size = whole.train_dataloader.batch_size
    whole.batch_size = 8
    whole.dump(tmp_path / "whole.py")
    assert load_config(tmp_path / "whole.py").train_dataloader.batch_size == whole.size


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("model = dict(experts=dict(ujcs=None))", "ujsc"),
        ("model = dict(routing_losses=dict(balence=None, Z=None))", "balance"),
        ("default_hooks = dict(router_wach=None)", "router_watch"),
        ("test_dataloader = dict(dataset=dict(datasets=dict(Cod10K=None)))", "COD10K"),
    ],
)
def test_a_misspelt_part_that_is_switched_off_is_told(tmp_path, text, right):
    """It was passed over, and the part that is meant stayed on."""
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = ['codmoe::router/stage2.py']\n{text}\n")
    with pytest.raises(ValueError, match=rf"=None switches nothing off; did you mean '{right}'"):
        load_config(path)
    key, _, _ = text.replace(" = dict(", ".").replace("=dict(", ".").partition("=None")
    with pytest.raises(ValueError, match=rf"{key}=None switches nothing off; did you .*'{right}'"):
        load_config("router/stage2", {key: None})
    # What is off already, and what is called like nothing there, is off.
    path.write_text(
        "_base_ = ['codmoe::router/stage2.py']\n"
        "model = dict(experts=dict(ujsc=None, other=None))\ndefault_hooks = dict(ema=None)\n"
    )
    assert load_config(path, {"model.experts.ujsc": None}).model.experts.ujsc is None


def test_custom_imports_of_the_command_line_are_made():
    """The config in the weights named modules that were never imported, and could not be read."""
    with pytest.raises(ValueError, match="custom_imports 'no_such_module'"):
        load_config("experts/joint", {"custom_imports.imports": ["no_such_module"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = 'x'", "model='x' is of the wrong type"),
        ("model = dict(backbone=5)", "model: ModelLevelMoE: backbone=5 is of the wrong type"),
        ("model = dict(router='a.b')", "router='a.b' is of the wrong type"),
        ("model = dict(_delete_=True, type='SINetExpert')", "is one expert; .*'ModelLevelMoE'"),
        ("model = dict(experts=[1])", r"experts=\[1\] is of the wrong type; it takes .*Mapping"),
        ("model = dict(experts=dict(sinet=3))", "experts.sinet=3 is of the wrong type"),
        ("model = dict(router=dict(width='8'))", "EvidenceRouter: width='8' .* it takes int"),
        ("model = dict(frozen='backbone')", "frozen='backbone' is of the wrong type"),
        ("train_cfg = 3", "train_cfg=3 is of the wrong type; it takes dict"),
        ("test_evaluator = 'x'", "test_evaluator='x' is of"),
        ("custom_hooks = [dict(type='EMAHook'), 3]", r"custom_hooks\[1\]=3 is of the wrong type"),
        ("default_hooks = dict(logger='x')", "default_hooks.logger='x' is of the wrong type"),
        ("train_dataloader = dict(batch_size='x')", "batch_size='x' is of the wrong type"),
        ("train_dataloader = dict(sampler=dict(type='DefaultSamplr'))", "'DefaultSampler'"),
        ("optim_wrapper = dict(optimizer=dict(lr='x'))", "AdamW: lr='x' is of the wrong type"),
        ("optim_wrapper = dict(paramwise_cfg=dict(norm_decay=0))", "'norm_decay_mult'"),
        ("optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(a=1)))", "a=1 is of the wrong"),
        ("randomness = dict(sed=1)", "randomness: .*'seed'"),
        ("env_cfg = dict(mp_cfg=dict(mp_start_method='x'))", "env_cfg.mp_cfg: .*'spawn'"),
        ("log_level = 'LOUD'", "log_level='LOUD'.*'DEBUG'"),
        ("model = dict(router=dict(type=['x']))", r"model.router: type=\['x'\] is no name"),
        ("checkpoint_dir = __import__('pathlib').Path('w')", "give 'w', a string"),
        ("optim_wrapper = dict(clip_grad=dict(max_norm=float('inf')))", "max_norm: inf cannot be"),
        ("model = dict(router=dict(width=lambda: 8))", "model.router.width: <function .*> cannot"),
    ],
)
def test_values_of_the_wrong_type_are_told_with_their_key(tmp_path, text, words):
    with pytest.raises(ValueError, match=rf"mine\.py has \d fault\(s\):\n(.|\n)*({words})"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_evaluator.0.sources": ["sinte"]}, r"test_evaluator\.0\.sources: no .* 'sinet'"),
        ({"val_evaluator.0.sources": "orcale"}, r"val_evaluator\.0\.sources: no .* 'oracle'"),
        (
            {"val_evaluator.0.sources": "all", "model.evaluate_all_experts": False},
            r"val_evaluator\.0\.sources=.*needs model\.evaluate_all_experts=True",
        ),
        ({"tta": dict(scales=[0])}, r"tta: scales=\[0\]: give factors"),
        ({"tta": dict(filp=True)}, r"tta: AugmentedMoE takes no argument 'filp'"),
    ],
)
def test_what_only_an_evaluation_would_trip_over_is_told(options, words):
    with pytest.raises(ValueError, match=words):
        load_config("ensemble/stage3", options)
    load_config("ensemble/stage3", {"test_evaluator.0.sources": ["sinet", "uniform"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = dict(a=1", r"mine\.py:3: '\(' was never closed: y = dict\(a=1"),
        ("x = 1\ny = undefined", r"mine\.py:3: .*NameError: name 'undefined' is not defined"),
        ("custom_imports = dict(imports=['no_such_module'])", "mine.py.*no_such_module"),
        ("import no_such_module", r"mine\.py:2: .*No module named 'no_such_module'"),
        ("_base_ = ['other.py']", r"mine\.py: its _base_ .*other\.py does not exist; one"),
        ("_base_ = ['mien.py']", r"mine\.py: its _base_ .*mien.*; did you mean '.*/mine\.py'\?"),
        ("_base_ = ['mine.py']", r"mine\.py: its _base_ files lead back to each other"),
        ("val_dataloader = 3\nval_evaluator = dict(a=1)", "val_evaluator=.*_delete_"),
        ("_base_ = ['broken.py']", r"broken\.py:1: .*never closed"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_sentence(tmp_path, text, words):
    (tmp_path / "broken.py").write_text("a = (1")
    path = write(tmp_path, text)
    if text.startswith("_base_"):
        path.write_text(text)
    if "val_evaluator" in text:
        path = write(tmp_path, text, base="quickstart/stage1")
    with pytest.raises(ValueError, match=words) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("beside", [True, False])
def test_own_modules_lie_beside_the_config_or_in_the_current_folder(tmp_path, beside):
    """Of the command, which has neither on its path; not the checkout's root, where tests run."""
    (tmp_path / "configs").mkdir()
    name = f"own_expert_{beside}"
    module = (tmp_path / "configs" if beside else tmp_path) / f"{name}.py"
    module.write_text("from codmoe.registry import MODELS\nMODELS.register_module('Own')(dict)\n")
    text = f"custom_imports = dict(imports=['{name}'], allow_failed_imports=False)"
    path = write(tmp_path / "configs", text)
    code = (
        "import sys; sys.path.remove(''); from codmoe.engine.config import load_config;"
        f"load_config('{path}'); from codmoe.registry import MODELS; assert 'Own' in MODELS"
    )
    env = dict(os.environ, PYTHONPATH=str(config_root().parent))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=100)


def test_own_modules_that_fail_are_told_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text, words in (
        ("fails_a", "x = 1\nundefined", r"fails_a\.py:2: NameError: name 'undefined'"),
        ("fails_b", "x = 1\ny = (", r"fails_b\.py:2: SyntaxError: '\(' was never closed$"),
        ("fails_c", "import no_such", r"fails_c\.py:1: ModuleNotFoundError: .*'no_such'$"),
        ("absent_d.part", None, r"No module named 'absent_d'; it is looked for .* current folder"),
    ):
        if text is not None:
            (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(ValueError, match=rf"mine\.py: custom_imports '{name}': .*{words}"):
            load_config(write(tmp_path, f"custom_imports = dict(imports='{name}')"))
    with pytest.warns(UserWarning, match="absent_e failed to import and is ignored"):
        text = "custom_imports = dict(imports=['absent_e'], allow_failed_imports=True)"
        load_config(write(tmp_path, text))
    with pytest.raises(ValueError, match=r"is no list of module names, nor dict\(imports="):
        load_config(write(tmp_path, "custom_imports = dict(import_=['absent_e'])"))


def test_a_config_of_another_folder_inherits_one_that_ships(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("_base_ = ['codmoe::small/finetune.py']\nmodel = dict(top_k=1)\n")
    mine, base = load_config(path), load_config("small/finetune")
    assert mine.model == dict(base.model, top_k=1) and mine.train_cfg == base.train_cfg
    path.write_text("_base_ = 'codmoe::small/finetun.py'\n")
    with pytest.raises(ValueError, match=r"finetun\.py does .* mean 'codmoe::small/finetune\.py'"):
        load_config(path)


def test_files_that_are_no_config(tmp_path):
    for name, content in (("a.py", b"\xff\x00"), ("a.json", b"[1]"), ("a.txt", b""), ("a.py", b"")):
        (tmp_path / name).write_bytes(content)
        if content:
            with pytest.raises(ValueError, match=rf"{name}.*cannot be read"):
                load_config(tmp_path / name)
    with pytest.raises(ValueError, match=r"--cfg-options cannot be merged .*Index 9"):
        load_config("ensemble/stage3", {"param_scheduler.9.end": 1})


def test_variables_that_no_config_can_hold_are_left_out(tmp_path):
    path = write(tmp_path, "from pathlib import Path\nhome = Path('x')\nload_from = str(home)")
    cfg = load_config(path)
    assert cfg.load_from == "x" and "home" not in cfg and "Path" not in cfg


def test_no_wrong_value_is_a_traceback():
    assert wrong_configs.main(60, ["quickstart/stage3"]) == {}


def test_a_config_that_lacks_a_section_is_told(tmp_path):
    (tmp_path / "mine.py").write_text("model = dict(type='ModelLevelMoE')\ntrain_cfg = None\n")
    cfg = load_config(tmp_path / "mine.py")
    with pytest.raises(ValueError, match=r"mine\.py has no train_dataloader, train_cfg; inherit"):
        require_sections(cfg, "model", "train_dataloader", "train_cfg")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("val_dataloader.sampler", ["x"], r"val_dataloader\.sampler=\['x'\] is no dict with a"),
        ("train_dataloader.collate_fn.size", 2, "stack_collate takes no argument 'size'"),
    ],
)
def test_what_a_loader_would_stumble_over_in_its_first_batch(key, value, words):
    with pytest.raises(ValueError, match=words):
        load_config("quickstart/stage1", {key: value})
