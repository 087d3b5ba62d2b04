"""Reading of images and masks in whatever form they are stored."""

import os
import resource

import cv2
import numpy as np
import pytest
from damage import DAMAGES, FORMATS, damaged, encoded, tiff
from folders import disc
from PIL import ExifTags, Image, ImageOps

from codmoe.datasets import UnreadableFile
from codmoe.datasets.integrity import check_pairs
from codmoe.datasets.layouts import Pair
from codmoe.datasets.reading import (
    Mask,
    fits,
    has_plausible_header,
    orientation_of,
    peculiarities,
    read_image,
    read_mask,
    upright,
)
from codmoe.datasets.transforms import LoadCODPair

ROUNDS = int(os.environ.get("CODMOE_FUZZ_ROUNDS", "6"))


def load(tmp_path, image, mask, image_name="a.png", mask_name="m.png"):
    paths = {"img_path": str(tmp_path / image_name), "mask_path": str(tmp_path / mask_name)}
    cv2.imwrite(paths["img_path"], image)
    cv2.imwrite(paths["mask_path"], mask)
    return LoadCODPair()(paths)


def test_load_gives_rgb_and_binary_masks(tmp_path):
    image = np.zeros((5, 7, 3), np.uint8)
    image[..., 0] = 200  # blue, as OpenCV writes it
    mask = np.zeros((5, 7), np.uint8)
    mask[1:3, 2:6] = 1
    for truth in (mask, mask * 255, np.repeat(mask[..., None] * 255, 3, 2)):
        results = load(tmp_path, image, truth)
        assert results["img"][0, 0].tolist() == [0, 0, 200]
        assert results["gt_mask"].dtype == np.uint8 and (results["gt_mask"] == mask).all()
        assert results["gt_seg_map"] is not results["gt_mask"]
        assert results["ori_shape"] == results["img_shape"] == (5, 7)


TRUTH = disc(90, 120)[1]
INDICES = TRUTH.copy()
INDICES[60:80, 70:110] = 2  # a second object
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * (252 * 3) + [224, 224, 192]
RIM = cv2.dilate(TRUTH, np.ones((5, 5), np.uint8)) - TRUTH


def palette(indices, colours=VOC):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


def grey(values, dtype=np.uint8):
    return Image.fromarray(np.asarray(values, dtype))


def with_alpha(colours, alpha):
    return Image.merge("RGBA", [*Image.fromarray(colours).convert("RGB").split(), grey(alpha)])


def photo(seed=0):
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (120, 90), interpolation=cv2.INTER_CUBIC)


WHITE = np.full_like(TRUTH, 255)
BINARY = {
    "white": grey(TRUTH * 255),
    "one": grey(TRUTH),
    "class 7": grey(TRUTH * 7),
    "half grey": grey(TRUTH * 128),
    "1 bit": Image.fromarray(TRUTH > 0),
    "16 bits of 300": grey(TRUTH.astype(np.uint16) * 300, np.uint16),
    "16 bits of 26001": grey(TRUTH.astype(np.uint16) * 26001, np.uint16),
    "16 bits of 255": grey(TRUTH.astype(np.uint16) * 255, np.uint16),
    "16 bits": grey(TRUTH.astype(np.uint16) * 65535, np.uint16),
    "VOC's first class": palette(TRUTH),
    "two classes": palette(INDICES > 0),
    "a dark class": palette(TRUTH, [0, 0, 0, 64, 0, 0]),
    "a palette without colours": palette(TRUTH, [0] * 768),
    "transparent colour": palette(TRUTH),
    "red": Image.fromarray(np.dstack([TRUTH * 200, TRUTH * 0, TRUTH * 0])),
    "class 1 in colours": Image.fromarray(np.dstack([TRUTH, TRUTH * 0, TRUTH * 0])),
    "a red that looks black": Image.fromarray(np.dstack([TRUTH * 10, TRUTH * 0, TRUTH * 0])),
    "grey and alpha": Image.merge("LA", [grey(WHITE), grey(TRUTH * 255)]),
    "black and alpha": Image.merge("LA", [grey(WHITE * 0), grey(TRUTH * 255)]),
    "white and alpha": with_alpha(WHITE, TRUTH * 255),
    "opaque": with_alpha(TRUTH * 255, WHITE),
    "both": with_alpha(TRUTH * 255, TRUTH * 255),
    "cut out": with_alpha(photo(), TRUTH * 255),
}
TIFFS = {
    "float": grey(TRUTH, np.float32),
    "float of 255": grey(TRUTH * 255.0, np.float32),
    "integers": grey(TRUTH * 300.0, np.int32),
}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(n, "png") for n in BINARY] + [(n, "tif") for n in [*BINARY, *TIFFS]],
)
def test_one_value_beside_0_is_object_whatever_it_is(tmp_path, name, suffix):
    path = tmp_path / f"m.{suffix}"
    options = dict(transparency=0) if name == "transparent colour" and suffix == "png" else {}
    (BINARY | TIFFS)[name].save(path, **options)
    truth = INDICES > 0 if name == "two classes" else TRUTH
    assert (read_mask(str(path)).pixels == truth).all()


def test_several_objects_and_rims(tmp_path):
    path = tmp_path / "m.png"
    palette(INDICES).save(path)
    read = read_mask(str(path))
    assert (read.pixels == (INDICES > 0)).all() and "classes" in peculiarities(read)
    values = np.array([[0] * 100, [128] + [0] * 99, [129] + [255] * 99], np.uint8)
    for soft in (values, values.astype(np.uint16) * 257):
        cv2.imwrite(str(path), soft)  # PySODMetrics' limit
        assert read_mask(str(path)).pixels.sum(1).tolist() == [0, 0, 100]
    for quality in (20, 60, 100):
        for size in ((120, 90), (9, 7)):
            small = cv2.resize(TRUTH * 255, size, interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(tmp_path / "m.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, quality])
            read = read_mask(str(tmp_path / "m.jpg")).pixels
            assert ((read > 0) != (small > 128)).mean() < 0.01


def pieces(*values, dtype=np.uint8):
    return np.repeat(np.array(values, dtype), 30)[:, None].repeat(40, 1)


@pytest.mark.parametrize(
    "values, reason",
    [
        (TRUTH + 255 * RIM, "areas of 1 beside 0 and 255"),  # a border of 255
        (INDICES, "3 values up to 2, as class indices"),
        (pieces(0, 1, 2, 255), "areas of 1, 2"),
        (pieces(0, 128, 255), "areas of 128"),
        (pieces(0, 85, 170, 255), "areas of 85, 170"),
        (pieces(0, 300, 600, dtype=np.uint16), "values up to 600"),
        (pieces(0, 30000, 65535, dtype=np.uint16), "areas of 30000"),
        (pieces(7), "value 7 everywhere"),
        (pieces(128), "value 128 everywhere"),
        (pieces(1, 2), "values up to 2"),
        (pieces(0, np.nan, 1, dtype=np.float32), "NaN"),
        (pieces(-1, 1, dtype=np.float32), "values from -1"),
        (pieces(0, 0.5, 1, dtype=np.float32), "areas of 0.5"),
        (photo()[..., 0], "picture of greys"),
        (photo(), "picture of greys|values up to"),
    ],
)
def test_what_is_not_two_valued_is_refused(tmp_path, values, reason):
    path = str(tmp_path / ("m.tif" if values.dtype == np.float32 else "m.png"))
    cv2.imwrite(path, values)
    with pytest.raises(UnreadableFile, match=rf"m\.(png|tif) .*({reason})"):
        read_mask(path)


@pytest.mark.parametrize(
    "image, reason",
    [
        (palette(np.where(RIM > 0, 255, TRUTH)), "VOC's border"),
        (palette(INDICES, [255, 255, 255, 128, 0, 0, 0, 128, 0]), "none of which is black"),
        (palette(INDICES, [0, 0, 0, 12, 0, 0, 0, 128, 0]), "areas of colours that are all but"),
        (Image.fromarray(photo() * TRUTH[..., None]), "picture of greys on black"),
        (with_alpha(WHITE - TRUTH * 255, TRUTH * 255), "one mask in its colours and another"),
    ],
)
def test_colours_that_do_not_tell_are_refused(tmp_path, image, reason):
    image.save(tmp_path / "m.png")
    with pytest.raises(UnreadableFile, match=reason):
        read_mask(str(tmp_path / "m.png"))


def test_what_lossy_formats_do_to_masks(tmp_path):
    grey(TRUTH).save(tmp_path / "m.jpg", quality=90)
    with pytest.raises(UnreadableFile, match=r"is a JPEG of values up to \d, and its noise"):
        read_mask(str(tmp_path / "m.jpg"))
    grey(TRUTH * 255).convert("RGB").save(tmp_path / "m.webp", quality=80)
    read = read_mask(str(tmp_path / "m.webp"))
    assert (read.pixels != TRUTH).mean() < 0.01 and "classes" not in read.traits


def test_what_is_peculiar_about_a_mask():
    def of(pixels):
        return peculiarities(Mask(pixels))

    dot = TRUTH * 0
    dot[3, 4] = 1
    assert of(TRUTH) == [] and of(dot) == ["tiny"] and of(TRUTH * 0) == ["empty"]
    assert of(1 - TRUTH) == ["inverted"] and of(WHITE // 255) == ["whole"]
    tall = TRUTH * 0
    tall[:, 10:110] = 1  # large, and at two borders
    assert of(tall) == []


def test_which_sizes_fit():
    assert fits((400, 600), (398, 603)) and fits((7, 9), (8, 9)) and fits((9, 7), (9, 7))
    assert not fits((400, 600), (600, 400)) and not fits((400, 600), (400, 540))
    assert not fits((9, 7), (9, 9)) and not fits((400, 600), (200, 300))


def test_tiffs_that_opencv_misreads(tmp_path):
    colours = photo()
    with_alpha(colours, TRUTH * 100 + 100).save(tmp_path / "a.tif")
    assert (read_image(str(tmp_path / "a.tif")) == colours).all()
    Image.merge("LA", [grey(colours[..., 0]), grey(TRUTH * 9)]).save(tmp_path / "b.tif")
    assert (read_image(str(tmp_path / "b.tif")) == colours[..., :1]).all()
    for channels in (2, 5, 8):
        (tmp_path / "c.tif").write_bytes(tiff(np.zeros((8, 9, channels), np.uint8)))
        with pytest.raises(UnreadableFile, match=rf"c\.tif has {channels} channels; expected 1"):
            read_image(str(tmp_path / "c.tif"))


@pytest.mark.parametrize("kind", ["float64", "uint32", "uint16", "int16", "int8", "float32"])
def test_values_of_a_tiff(tmp_path, kind):
    whole = tiff(TRUTH[..., None].astype(kind))
    (tmp_path / "m.tif").write_bytes(whole)
    assert (read_mask(str(tmp_path / "m.tif")).pixels == TRUTH).all()
    (tmp_path / "m.tif").write_bytes(whole[:9000])
    with pytest.raises(UnreadableFile, match=r"m\.tif is unreadable"):
        read_mask(str(tmp_path / "m.tif"))


@pytest.mark.parametrize("kind", ["float16", "uint64", "complex64"])
def test_values_of_a_tiff_that_are_not_read(tmp_path, kind):
    (tmp_path / "m.tif").write_bytes(tiff(TRUTH[..., None].astype(kind)))
    with pytest.raises(UnreadableFile, match=r"is a TIFF of \d+-bit \w+ values, which are not"):
        read_mask(str(tmp_path / "m.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_no_format_turns_a_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    (tmp_path / "a.tif").write_bytes(tiff(photo(), orientation))
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=exif)
    for name in ("a.tif", "a.png"):
        assert (read_image(str(tmp_path / name)) == photo()).all()
        grey(TRUTH).save(tmp_path / "m.png")
        check_pairs([Pair("a", tmp_path / name, tmp_path / "m.png")])


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp", "a.gif"])
def test_one_picture_a_file(tmp_path, name):
    first, second = Image.fromarray(photo()), Image.fromarray(photo(1))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    for read in (read_image, read_mask):
        with pytest.raises(UnreadableFile, match="holds several pictures"):
            read(str(tmp_path / name))
    first.save(tmp_path / name, save_all=True)
    assert read_image(str(tmp_path / name)).shape == photo().shape


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "the file is empty"),
        (bytes(4) + b"ftypheic", "a photo in HEIC; convert"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\n<!DOCTYPE html>", "a page of HTML"),
        (b"%PDF", "truncated or not an image"),
    ],
)
def test_what_is_no_image_is_told(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"a\.jpg is unreadable: .*{reason}"):
        read_image(str(tmp_path / "a.jpg"))


def test_16_bits_that_hold_8(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), photo().astype(np.uint16))
    assert (read_image(str(tmp_path / "a.png")) == photo()[..., ::-1]).all()


def test_grey_alpha_and_16_bit_images(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    mask = np.zeros((6, 5), np.uint8)
    grey = load(tmp_path, rgb[..., 0], mask)["img"]
    assert grey.shape == (6, 5, 3) and (grey == rgb[..., :1]).all()
    alpha = np.dstack([rgb[..., ::-1], np.full((6, 5), 9, np.uint8)])
    assert (load(tmp_path, alpha, mask)["img"] == rgb).all()
    deep = rgb[..., ::-1].astype(np.uint16) * 257
    assert (load(tmp_path, deep, mask)["img"] == rgb).all()
    assert load(tmp_path, rgb, mask)["img"].dtype == np.uint8


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_unreadable_and_truncated_files_name_the_path(tmp_path, extension, keep):
    path = tmp_path / f"bad.{extension}"
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"bad\.(jpg|png) is unreadable"):
        LoadCODPair()({"img_path": str(path)})


def test_mask_of_another_size_names_both(tmp_path):
    with pytest.raises(ValueError, match=r"m\.png .*\(5x4, its image is 7x6\)"):
        load(tmp_path, np.zeros((6, 7, 3), np.uint8), np.zeros((4, 5), np.uint8))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UnreadableFile, match=r"gone\.png cannot be read: No such file"):
        read_image(str(tmp_path / "gone.png"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UnreadableFile, match=r"folder\.png cannot be read"):
        read_mask(str(tmp_path / "folder.png"))


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
@pytest.mark.parametrize("name", FORMATS)
def test_only_value_errors_that_name_the_file(tmp_path, name):
    rng = np.random.default_rng(list(name.encode()))
    path = tmp_path / f"picture.{name}"
    whole = encoded(name)
    path.write_bytes(whole)
    assert read_image(str(path)).shape == (32, 40, 3)
    refused = dict.fromkeys(DAMAGES, 0)
    for _ in range(ROUNDS):
        for how in DAMAGES:
            path.write_bytes(damaged(whole, how, rng))
            try:
                image = read_image(str(path))
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            except ValueError as error:
                assert isinstance(error, UnreadableFile) and str(error).startswith(str(path))
                refused[how] += 1
            try:
                assert set(np.unique(read_mask(str(path)).pixels)) <= {0, 1}
            except ValueError as error:
                assert isinstance(error, UnreadableFile) and str(error).startswith(str(path))
            try:
                check_pairs([Pair("picture", path, path)], workers=1)
            except ValueError as error:
                assert str(path) in str(error)
    assert refused["empty"] == refused["garbage"] == ROUNDS
    # A bitmap or the end of some others may lose bytes that say nothing; the common two may not.
    if name.endswith(("jpg", "png")):
        assert refused["truncated"] == ROUNDS


def test_damage_does_not_cost_gigabytes(tmp_path):
    """Lengths and sizes in a damaged header are promises that OpenCV would allocate for."""
    png, jpg = bytearray(encoded("png")), bytearray(encoded("jpg"))
    chunk = png.copy()
    chunk[8] = 0x70  # the first chunk claims 1.8 GB
    size = png.copy()
    size[16:24] = bytes([0, 0, 0x7F, 0xFF] * 2)  # 32,767 x 32,767 pixels
    start = jpg.index(b"\xff\xc0") + 5
    huge = jpg.copy()
    huge[start : start + 4] = b"\x7f\xff\x7f\xff"
    assert has_plausible_header(png) and has_plausible_header(jpg)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in (("chunk.png", chunk), ("size.png", size), ("size.jpg", huge)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableFile, match=name):
            read_image(str(tmp_path / name))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.jpg", {"quality": 1}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {"compression": "group4"}),
    ],
)
def test_an_even_area_packs_tightly_and_is_fine(tmp_path, name, options):
    image = Image.new("1" if name.endswith(("png", "tif")) else "RGB", (3000, 3000))
    image.save(tmp_path / name, **options)
    assert read_image(str(tmp_path / name)).shape == (3000, 3000, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_viewers_show(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert orientation_of(tmp_path / "a.png") == orientation
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upright(pixels, orientation), shown)
    np.testing.assert_array_equal(upright(pixels[..., 0], orientation), shown[..., 0])
    assert orientation_of(tmp_path / "absent.png") == orientation_of(None) == 1
