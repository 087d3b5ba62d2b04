"""Unreadable samples are replaced, counted over all workers, and never in evaluation."""

import numpy as np
import pytest
from folders import add
from torch.utils.data import DataLoader

from codmoe.datasets import CODDataset, DatasetGroup, TolerantDataset, UnreadableFile

PIPELINE = [{"type": "LoadCODPair"}]


def folder(root, count=20, bad=()):
    add(root, "images", "masks", [f"{i:03d}" for i in range(count)])
    for i in bad:
        path = root / "images" / f"{i:03d}.jpg"
        path.write_bytes(path.read_bytes()[:100])
    return CODDataset(root, check_files=False, pipeline=PIPELINE)


def test_a_bad_sample_is_replaced_and_remembered(tmp_path):
    data = TolerantDataset(folder(tmp_path, bad=[4, 7]), max_share=0.1)
    np.random.seed(0)
    stems = [data[i]["stem"] for i in range(20)]
    assert [i for i in range(20) if stems[i] != f"{i:03d}"] == [4, 7] == data.unreadable()
    assert not {stems[4], stems[7]} & {"004", "007"}
    assert data.allowed == 2 and data.complaint() is None
    assert data.reason(4).endswith("images/004.jpg is unreadable: empty, truncated or not an image")


def test_the_list_above_the_share(tmp_path, monkeypatch):
    monkeypatch.setattr(np.random, "randint", lambda high: high - 1)
    data = TolerantDataset(folder(tmp_path, bad=range(7)), max_share=0.3)
    for i in range(6):
        data[i]
    assert data.allowed == 6 and data.complaint() is None
    data[6]
    text = data.complaint()
    assert text.startswith("7 of 20 training samples are unreadable, and max_unreadable=0.3 allows")
    assert "004.jpg" in text and "005.jpg" not in text and "and 2 more" in text


def test_workers_share_the_count(tmp_path):
    data = TolerantDataset(folder(tmp_path, bad=[0, 9, 19]), max_share=0.5)
    loader = DataLoader(data, 5, num_workers=2, collate_fn=list, persistent_workers=True)
    for _ in range(2):
        assert sum(len(batch) for batch in loader) == 20
        assert data.unreadable() == [0, 9, 19]


def test_other_errors_are_not_swallowed(tmp_path):
    def broken(results):
        raise ValueError("size=-1; it must be positive")

    source = CODDataset(folder(tmp_path).root, pipeline=[broken])
    with pytest.raises(ValueError, match="it must be positive"):
        TolerantDataset(source)[0]
    # A mask of class indices is no mask, and counts as a bad file.
    mask = tmp_path / "masks" / "003.png"
    mask.write_bytes(mask.read_bytes()[:60])
    data = TolerantDataset(CODDataset(tmp_path, check_files=False, pipeline=PIPELINE))
    assert data[3]["stem"] != "003" and data.unreadable() == [3]


def test_all_bad_ends(tmp_path):
    data = TolerantDataset(folder(tmp_path, 5, bad=range(5)))
    with pytest.raises(UnreadableFile, match=r"5 of 5 training samples are unreadable"):
        data[0]


def test_without_tolerance_and_in_a_worker_the_error_is_one_line(tmp_path):
    loader = DataLoader(folder(tmp_path, bad=[2]), 1, num_workers=1, collate_fn=list)
    with pytest.raises(UnreadableFile) as error:
        list(loader)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_of_a_group_and_what_came_back(tmp_path):
    folder(tmp_path / "a", bad=[1])
    folder(tmp_path / "b", bad=[0])
    configs = {
        name: dict(
            type="CODDataset", data_root=str(tmp_path / name), check_files=False, pipeline=PIPELINE
        )
        for name in ("a", "b")
    }
    data = TolerantDataset(DatasetGroup(configs), max_share=0.05)
    assert len(data) == 40 and data.get_data_info(20)["dataset"] == "b"
    data[1], data[20]
    assert data.unreadable() == [1, 20] and data.complaint() is None
    add(tmp_path / "b", "images", "masks", ["000"])
    assert "could not be read, but now it can" in data.reason(20)
    with pytest.raises(ValueError, match=r"max_unreadable=2; it is a share"):
        TolerantDataset(folder(tmp_path / "c"), max_share=2)


def test_a_bad_donor_of_copy_paste_does_not_blame_a_sound_sample(tmp_path):
    add(tmp_path, "images", "masks", [f"{i:03d}" for i in range(20)])
    (tmp_path / "images" / "004.jpg").write_bytes(b"junk")
    pipeline = [{"type": "LoadCODPair"}, {"type": "CopyPaste", "prob": 1.0}]
    data = TolerantDataset(CODDataset(tmp_path, check_files=False, pipeline=pipeline), 0.5)
    np.random.seed(0)
    for _ in range(5):
        for i in range(20):
            data[i]
    assert data.unreadable() == [4]
