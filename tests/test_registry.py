import re
import subprocess
import sys

import pytest
from mmengine.registry import DefaultScope

from codmoe.registry import (
    DATASETS,
    METRICS,
    MODELS,
    REMOVED,
    TRANSFORMS,
    argument_faults,
)

CHANNELS = (8, 16, 24, 32)


def test_an_unknown_type_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"type='SINetExprt' is not a registered.*'SINetExpert'"):
        MODELS.build(dict(type="SINetExprt", in_channels=CHANNELS))
    with pytest.raises(ValueError, match="'ProbabilityCombiner'"):
        MODELS.build(dict(type="probabilitycombiner", expert_names=("a",)))


def test_a_type_near_to_nothing_is_answered_with_our_own_names():
    with pytest.raises(ValueError, match="valid names:") as caught:
        MODELS.build(dict(type="Qqqq"))
    message = str(caught.value)
    assert "EvidenceRouter" in message and "PraNetExpert" in message
    assert "AmpOptimWrapper" not in message and len(message) < 2000


@pytest.mark.parametrize(("name", "instead"), REMOVED.items())
def test_a_name_that_is_gone_is_answered_with_what_to_use(name, instead):
    with pytest.raises(ValueError, match=f"type='{name}' was removed.* use {instead}"):
        MODELS.build(dict(type=name))
    for part in re.findall("'(.*)'", instead):
        MODELS.get(part)


def test_mmengines_own_names_are_found():
    built = MODELS.build(dict(type="Conv2d", in_channels=1, out_channels=1, kernel_size=1))
    assert type(built).__name__ == "Conv2d"


def test_a_misspelt_argument_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"SINetExpert takes no argument 'chanels'.*'channels'"):
        MODELS.build(dict(type="SINetExpert", in_channels=CHANNELS, chanels=16))


def test_all_faults_are_told_at_once():
    cfg = dict(type="EvidenceRouter", in_channels=CHANNELS, expert_names="ab", top_k=1)
    with pytest.raises(ValueError) as caught:
        MODELS.build(dict(**cfg, widht=16, nois=0.0))
    assert "'widht'" in str(caught.value) and "'nois'" in str(caught.value)
    assert "'width'" in str(caught.value) and "'noise'" in str(caught.value)


def test_a_misspelt_argument_inside_the_model_names_its_section():
    cfg = dict(type="ModelLevelMoE", backbone="pvt_v2_b0")
    with pytest.raises(ValueError, match=r"experts\.eye: .*'chanels'.*'channels'"):
        MODELS.build(dict(**cfg, experts=dict(eye=dict(type="SINetExpert", chanels=16))))
    with pytest.raises(ValueError, match=r"experts\.eye: .*'SINetExprt'.*'SINetExpert'"):
        MODELS.build(dict(**cfg, experts=dict(eye=dict(type="SINetExprt"))))
    with pytest.raises(ValueError, match=r"takes no argument 'topk'.*'top_k'"):
        MODELS.build(dict(**cfg, topk=2))


def test_arguments_are_united_along_the_base_classes():
    class Base:
        def __init__(self, width=1):
            self.width = width

    class Child(Base):
        def __init__(self, depth=1, **kwargs):
            super().__init__(**kwargs)

    class Open(dict):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)

    class Inherits(Base):
        pass

    assert argument_faults(Child, dict.fromkeys(("type", "width", "depth", "_scope_"))) == []
    assert argument_faults(Inherits, dict.fromkeys(("width",))) == []
    assert len(argument_faults(Child, dict.fromkeys(("widt", "depht")))) == 2
    assert len(argument_faults(Inherits, dict.fromkeys(("depth",)))) == 1


def test_a_function_can_be_checked_too():
    def make(size, *, colour="red"):
        return size, colour

    assert argument_faults(make, dict.fromkeys(("size", "colour"))) == []
    assert "'colour'" in argument_faults(make, dict.fromkeys(("color",)))[0]


@pytest.mark.parametrize("scope", ["mmengine", "somebody_else"])
def test_works_under_another_default_scope(scope):
    with DefaultScope.overwrite_default_scope("mmengine"):
        if scope != "mmengine":
            DefaultScope.get_instance("theirs", scope_name=scope)
        with DefaultScope.overwrite_default_scope(scope):
            expert = MODELS.build(dict(type="SINetExpert", in_channels=CHANNELS, channels=16))
            assert type(expert).__name__ == "SINetExpert"
            with pytest.raises(ValueError, match="'SINetExpert'"):
                MODELS.build(dict(type="SINetExprt"))


def test_kinds_are_kept_apart():
    with pytest.raises(ValueError, match="not a registered"):
        TRANSFORMS.build(dict(type="SINetExpert"))
    assert {r.scope for r in (MODELS, DATASETS, TRANSFORMS, METRICS)} == {"codmoe"}


def test_nothing_has_to_be_imported_by_hand():
    """In a process of its own: mmengine finds our models by the scope, we our transforms."""
    code = """
import sys
import codmoe.registry
from mmengine.registry import MODELS, DefaultScope
loaded = [name for name in sys.modules if name.startswith(("codmoe.models", "codmoe.datasets"))]
DefaultScope.get_instance("x", scope_name="codmoe")
print(loaded, type(MODELS.build(dict(type="LogitCombiner", expert_names=("a",)))).__name__)
print(type(MODELS.build(dict(type="codmoe.RouterZLoss"))).__name__)
print(type(codmoe.registry.MODELS.build(dict(type="RouterZLoss"))).__name__)
print(type(codmoe.registry.TRANSFORMS.build(dict(type="PackCODInputs"))).__name__)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = ["[] LogitCombiner", "RouterZLoss", "RouterZLoss", "PackCODInputs"]
    assert done.stdout.splitlines()[-4:] == expected
