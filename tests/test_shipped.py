"""Configs are found by name or path."""

import re

import pytest

from codmoe.shipped import find_config, list_configs


@pytest.mark.parametrize(
    "name", ["ensemble/stage3", "configs/ensemble/stage3", "configs/ensemble/stage3.py"]
)
def test_a_config_is_found_by_path_or_name_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = find_config(name)
    assert path.is_file() and path.parts[-3:] == ("configs", "ensemble", "stage3.py")
    mine = tmp_path / "ensemble"
    mine.mkdir()
    (mine / "own.py").write_text("")
    assert find_config("ensemble/own.py").samefile(mine / "own.py")


def test_a_misspelt_file_is_answered_with_the_one_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "joint_linear.py").write_text("")
    with pytest.raises(FileNotFoundError, match=r"exist; did you mean 'joint_linear\.py'"):
        find_config("joint_linaer.py")
    monkeypatch.chdir("/")
    near = re.escape(str(tmp_path / "joint_linear.py"))
    with pytest.raises(FileNotFoundError, match=f"did you mean '{near}'"):
        find_config(tmp_path / "joint_linaer")


def test_unknown_names_are_answered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'ensembel/stage3'.*did you mean 'ensemble/stage"):
        find_config("ensembel/stage3")
    with pytest.raises(FileNotFoundError, match=r"'experts/sinnet'.*'experts/sinet'"):
        find_config("experts/sinnet")
    with pytest.raises(FileNotFoundError, match=r"valid names: .*quickstart/stage1"):
        find_config("xyz")
    with pytest.raises(FileNotFoundError, match=r"'small' names weights; .* 'small/finetune'"):
        find_config("small")
    with pytest.raises(FileNotFoundError):
        find_config("_base_/default_runtime")  # a piece, not a config
    assert not any(name.startswith("_base_") for name in list_configs())
