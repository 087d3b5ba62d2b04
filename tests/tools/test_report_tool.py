from miniature import call


def test_a_folder_without_a_run_is_one_line(tmp_path, monkeypatch):
    said = call(monkeypatch, "analysis/report", tmp_path)
    assert said.startswith("error: ") and "table.json does not exist" in said
    assert not list(tmp_path.iterdir())
