import re
import subprocess
import sys

import pytest
from mmengine.registry import DefaultScope

from codmoe.registry import (
    DATASETS,
    METRICS,
    MODELS,
    TRANSFORMS,
    argument_faults,
    nearest,
    suggest,
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

    assert argument_faults(Child, ("type", "width", "depth", "_scope_")) == []
    assert argument_faults(Inherits, ("width",)) == []
    assert len(argument_faults(Child, ("widt", "depht"))) == 2
    assert len(argument_faults(Inherits, ("depth",))) == 1


def test_a_function_can_be_checked_too():
    def make(size, *, colour="red"):
        return size, colour

    assert argument_faults(make, ("size", "colour")) == []
    assert "'colour'" in argument_faults(make, ("color",))[0]


def test_nearest_does_not_mind_the_case():
    assert nearest("sinet", ["SINet", "PraNet"])[0] == "SINet"
    assert suggest("tetxure", ["texture", "edge"]) == "did you mean 'texture'?"
    assert suggest("qqq", ["b", "a"]) == "valid names: a, b"


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


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_nothing_has_to_be_imported_by_hand():
    done = run(
        "from codmoe.registry import MODELS\n"
        "combiner = MODELS.build(dict(type='ProbabilityCombiner', expert_names=('a',)))\n"
        "print(type(combiner).__name__)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ProbabilityCombiner")


def test_mmengine_finds_our_names_through_the_scope():
    done = run(
        "import codmoe.registry\n"
        "from mmengine.registry import MODELS, DefaultScope\n"
        "DefaultScope.get_instance('x', scope_name='codmoe')\n"
        "print(type(MODELS.build(dict(type='LogitCombiner', expert_names=('a',)))).__name__)\n"
        "print(type(MODELS.build(dict(type='codmoe.RouterZLoss'))).__name__)"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"LogitCombiner\s+RouterZLoss", done.stdout)
