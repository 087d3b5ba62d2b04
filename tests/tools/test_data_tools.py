import pytest
from miniature import call, write_config

BROWSE = "data/browse"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


def test_browse_writes_samples_and_attributes(config, tmp_path, monkeypatch, capsys):
    out, page = tmp_path / "samples.png", tmp_path / "attributes.png"
    arguments = (config, "--out", out, "--attributes", page, "--count", 3, "--part", "test")
    assert call(monkeypatch, BROWSE, *arguments) is None
    assert out.stat().st_size > 5000 and page.stat().st_size > 5000
    said = capsys.readouterr().out
    assert "3 samples" in said and "5 samples" in said
    assert "give --out FILE" in call(monkeypatch, BROWSE, config)
    assert "does not exist" in call(monkeypatch, BROWSE, "quickstrat/stage1", "--out", out)
    assert "--count 0" in call(monkeypatch, BROWSE, config, "--out", out, "--count", 0)
