"""The pages that are made when the site is built."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from codmoe import registry
from codmoe.registry import accepted_arguments

for needed in ("griffe", "mkdocs"):
    pytest.importorskip(needed, reason="pip install 'codmoe[docs]'")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs/hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(hook):
    return hook.config_reference()


def test_the_reference_has_every_type_with_the_keys_that_the_check_of_configs_takes(
    reference, hook
):
    sections = dict(
        re.findall(r"^### \[`(\w+)`\]\S+ \{ #\w+ \}\n(.*?)(?=^##|\Z)", reference, re.M | re.S)
    )
    for kind in ("MODELS", "DATASETS", "TRANSFORMS", "METRICS", "HOOKS"):
        known = getattr(registry, kind)
        known.import_from_location()
        for name, found in known.module_dict.items():
            if not found.__module__.startswith("codmoe."):
                continue  # of another test
            told = re.findall(r"^\| `(\w+)` \|", sections[name], re.M)
            takes = set(accepted_arguments(found) or told) - set(hook.FILLED_IN)
            assert set(told) <= takes, name
            left_out = takes - set(told)  # those of mmengine's bases alone
            if "__init__" in vars(found):
                assert not left_out & set(inspect.signature(found).parameters), name


def test_the_reference_has_values_and_comments_of_the_base_configs(reference):
    assert "| <code>amp</code> | <code>True</code> | Mixed precision:" in reference
    assert (
        "| <code>optim_wrapper.<wbr>clip_grad</code> | <code>dict(max_norm=5.0)</code> |"
        in reference
    )
    assert "| `parts` | <code>tuple[str, ...] &#124; None</code> |" in reference


def test_options_that_help_hides_are_on_no_page(hook):
    assert "SUPPRESS" not in hook.command_reference()


def test_a_role_becomes_a_link_where_there_is_one_thing_of_that_name(hook):
    text = hook.linked("See :class:`Expert` and :func:`nowhere_at_all`.")
    assert text == "See [`Expert`][codmoe.models.experts.base.Expert] and `nowhere_at_all`."
