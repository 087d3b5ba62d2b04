"""The cache gives what the files give, once for all, and never what they gave before."""

import multiprocessing
import os
import pickle

import cv2
import numpy as np
import pytest
from folders import PIPELINE

from codmoe.datasets import CODDataset
from codmoe.datasets.cache import SampleCache

SIZES = [(24, 32), (61, 33), (40, 90)]


def write(folder, stem, size, seed=0):
    """An image of smooth noise and a mask of where it is bright."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "images" / f"{stem}.jpg"), image)
    cv2.imwrite(str(folder / "masks" / f"{stem}.png"), (image[..., 1] > 127).astype(np.uint8) * 255)


@pytest.fixture
def tree(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i, size in enumerate(SIZES * 2):
        write(tmp_path / "data", f"{i}", size, seed=i)
    return tmp_path / "data"


@pytest.fixture(params=["ram", "file"])
def cache(request, tmp_path):
    return True if request.param == "ram" else {"dir": str(tmp_path / "cache")}


def build(tree, cache=False, **changes):
    return CODDataset(tree, **{"pipeline": PIPELINE, "cache": cache, **changes})


def same(a, b):
    ours, theirs = a["data_samples"], b["data_samples"]
    return (
        (a["inputs"] == b["inputs"]).all()
        and (ours.target == theirs.target).all()
        and ours.gt_mask.equal(theirs.gt_mask)
        and ours.metainfo == theirs.metainfo
    )


def files(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def test_results_are_identical_with_and_without(tree, cache):
    plain, cached = build(tree), build(tree, cache)
    expected = list(plain)
    for path in (tree / "images").iterdir():
        path.unlink()  # whatever comes now comes from the cache
    with pytest.raises(ValueError, match="cannot be read"):
        plain[0]
    assert all(same(a, b) for a, b in zip(expected, cached, strict=True))
    assert same(cached.get_subset([4])[0], expected[4])


def test_what_one_reader_writes_never_reaches_the_next(tree, cache):
    def spoil(results):
        for key in ("img", "gt_seg_map", "gt_mask"):
            results[key][:] = 7
        return results

    data = build(tree, cache)
    expected = data[2]
    data.pipeline.transforms.insert(1, spoil)
    assert (data[2]["inputs"] == 7).all()
    data.pipeline.transforms.pop(1)
    assert same(data[2], expected)


def test_subsets_and_pool_read_the_same_block(tree, cache):
    data = build(tree, cache)
    subset = data.get_subset([4, 1])
    assert same(subset[0], data[4]) and subset._cache is data._cache
    image, mask = data.read_sample(3)
    assert np.array_equal(image.transpose(2, 0, 1), data[3]["inputs"])
    assert np.array_equal(mask, data[3]["data_samples"].gt_mask)
    assert all(
        np.array_equal(a, b) for a, b in zip(build(tree).read_sample(3), (image, mask), strict=True)
    )


@pytest.mark.parametrize("where", ["ram", "file"])
def test_reduced_images_keep_the_truth_at_original_resolution(tree, tmp_path, where):
    folder = str(tmp_path / "cache") if where == "file" else None
    plain, reduced = build(tree), build(tree, dict(dir=folder, max_side=48))
    for i, size in enumerate(SIZES * 2):
        a, b = plain[i]["data_samples"], reduced[i]["data_samples"]
        assert a.gt_mask.equal(b.gt_mask) and b.ori_shape == size
        shrink = min(1, 48 / max(size))
        assert b.img_shape == tuple(round(side * shrink) for side in size)
        assert tuple(reduced[i]["inputs"].shape[1:]) == tuple(b.target.shape[1:]) == b.img_shape
        small = b.target[0].numpy()
        back = cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST)
        both = (back & a.gt_mask.numpy()).sum() / (back | a.gt_mask.numpy()).sum()
        assert both > 0.85


def test_a_file_is_used_again_and_a_changed_image_is_not_served_stale(tree, tmp_path):
    folder = tmp_path / "cache"
    first = build(tree, {"dir": folder})
    (name,) = files(folder)
    before = os.stat(folder / name).st_mtime_ns
    build(tree, {"dir": folder})
    assert files(folder) == [name] and os.stat(folder / name).st_mtime_ns == before
    old = first[1]
    write(tree, "1", SIZES[1], seed=99)
    second = build(tree, {"dir": folder})
    assert len(files(folder)) == 2
    assert not (second[1]["inputs"] == old["inputs"]).all() and same(second[1], build(tree)[1])
    # Another size is another file, too.
    build(tree, {"dir": folder, "max_side": 48})
    assert len(files(folder)) == 3


def test_an_interrupted_build_leaves_nothing_and_is_cleared_away(tree, tmp_path, monkeypatch):
    folder = tmp_path / "cache"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("codmoe.datasets.cache.read_pair", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(tree, {"dir": folder})
    assert files(folder) == []
    data = build(tree, {"dir": folder})
    (name,) = files(folder)
    # As a killed process leaves it.
    (folder / name).rename(folder / f".{name.removesuffix('.codcache')}.0badc0de")
    assert same(build(tree, {"dir": folder})[0], data[0]) and files(folder) == [name]


def _build_and_sum(tree, folder, queue):
    data = build(tree, {"dir": folder})
    queue.put(int(sum(int(item["inputs"].sum()) for item in data)))


def test_ranks_that_build_at_once_make_one_file(tree, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (tree, tmp_path / "cache", queue)
    ranks = [context.Process(target=_build_and_sum, args=arguments) for _ in range(3)]
    for rank in ranks:
        rank.start()
    sums = {queue.get(timeout=60) for _ in ranks}
    for rank in ranks:
        rank.join(60)
    assert sums == {int(sum(int(item["inputs"].sum()) for item in build(tree)))}
    assert len(files(tmp_path / "cache")) == 1


def test_forked_workers_share_the_ram():
    cache = SampleCache()
    cache._data = np.zeros(0, np.uint8)
    cache.fill([])
    base = cache._data.base  # the mapping itself

    def write_into():
        memoryview(base).cast("B")[0] = 42

    worker = multiprocessing.get_context("fork").Process(target=write_into)
    worker.start()
    worker.join(60)
    assert memoryview(base).cast("B")[0] == 42


def test_pickled_for_a_spawned_worker(tree, cache):
    data = build(tree, cache)
    again = pickle.loads(pickle.dumps(data._cache))
    path = data.get_data_info(5)["img_path"]
    assert np.array_equal(again.results(path)["img"], data._cache.results(path)["img"])
    if isinstance(cache, dict):
        # The file is mapped again, not sent.
        assert len(pickle.dumps(data._cache)) < 4000


def test_unreadable_files_meet_their_error_where_they_are_used(tree, cache):
    bad = tree / "images" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    (tree / "masks" / "4.png").write_bytes(b"no image")
    data = build(tree, cache, check_files=False)
    for index in (2, 4):
        with pytest.raises(ValueError, match=rf"{index}\.(jpg|png) is unreadable"):
            data[index]
    assert same(data[5], build(tree, check_files=False)[5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folder": "x"}, "cache has no key 'folder'; .*dir"),
        ({"max_side": 8}, r"cache\.max_side=8"),
        ("ram", r"cache='ram'.*dict\(dir=, max_side=\)"),
    ],
)
def test_mistakes_are_named(tree, wrong, message):
    with pytest.raises(ValueError, match=message):
        build(tree, wrong)


def test_a_finished_file_is_read_without_writing(tree, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    expected = build(tree, {"dir": str(folder)})[0]

    def refused(*args, **kwargs):
        raise AssertionError("wrote where nothing had to be written")

    monkeypatch.setattr("codmoe.datasets.cache._alone", refused)
    assert same(build(tree, {"dir": str(folder)})[0], expected)


def test_a_folder_that_cannot_be_written_is_named(tree, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cache.dir .*file cannot be written: File exists; free"):
        build(tree, {"dir": str(tmp_path / "file")})
    assert (tmp_path / "file").read_text() == "mine"
