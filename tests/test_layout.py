"""The package's layout: a module name occurs once."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATED = {"__init__", "base"}


def test_a_module_name_occurs_once():
    names = Counter(path.stem for path in (ROOT / "codmoe").rglob("*.py"))
    assert names, "no module found"
    assert [name for name, count in names.items() if count > 1 and name not in REPEATED] == []
