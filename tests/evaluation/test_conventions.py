from codmoe.evaluation.conventions import AGGREGATE_KEYS, CONVENTIONS, LOWER_IS_BETTER


def test_every_number_has_its_convention():
    assert set(CONVENTIONS) == set(AGGREGATE_KEYS)
    assert all("\n" not in line for line in CONVENTIONS.values())
    for key, line in CONVENTIONS.items():
        if key != "n":  # what; normalised or not, and threshold; averaged over what; resolution
            assert "normalised" in line and "resolution" in line, key
            assert ("lower is better" in line) == (key in LOWER_IS_BETTER), key
            assert ("pixels of all images" in line) == key.endswith("_pooled"), key
