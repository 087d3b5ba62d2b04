"""Messages: nearest names, and lists that are cut short."""

import pytest
from miniature import STRANGE

from codmoe.messages import listed, nearest, printable, suggest


def test_nearest_names_come_first_and_case_does_not_count():
    assert nearest("sinetexpert", ["PraNetExpert", "SINetExpert"])[0] == "SINetExpert"
    assert suggest("pranat", ["pranet", "sinet"]) == "did you mean 'pranet'?"
    assert suggest("xyz", ["b", "a"]) == "valid names: a, b"


def test_lists_are_cut_and_the_rest_is_counted():
    assert listed([]) == "nothing"
    assert listed(["a", "b"], show=repr) == "'a', 'b'"
    assert listed([str(i) for i in range(1200)], shown=2) == "0, 1 and 1,198 more"
    assert listed(["a", "b", "c"], shown=2, separator="; ") == "a; b; and 1 more"


def test_only_what_is_shown_is_written_out():
    seen = []
    listed([1, 2, 3], shown=1, show=lambda item: seen.append(item) or str(item))
    assert seen == [1]


@pytest.mark.parametrize("name", STRANGE)
def test_names_of_strangers_are_one_line_of_text(name):
    shown = printable(name)
    assert shown.isprintable() and shown.encode()
    assert printable("a\nb", keep="\n") == "a\nb" and printable("é 漢 ≥ 😀") == "é 漢 ≥ 😀"
