"""Miniature data sets in the layouts in which the real ones are downloaded, and single samples."""

from pathlib import Path

import cv2
import numpy as np

from codmoe.datasets.doctor import examine

PIPELINE = [{"type": "LoadCODPair"}, {"type": "PackCODInputs", "keep_original": True}]

COD10K_TRAIN = [f"COD10K-CAM-1-Aquatic-3-Crab-{i}" for i in range(20)]
COD10K_TEST = [f"COD10K-CAM-2-Terrestrial-5-Frog-{i}" for i in range(3)]
CAMO_TRAIN = [f"camourflage_{i:05d}" for i in range(10)]
CAMO_TEST = [f"camourflage_{i:05d}" for i in range(10, 12)]
CHAMELEON = ["animal-1", "animal-2"]
NC4K = ["10", "11", "12"]


def picture(seed, size=(24, 32)):
    """A textured image that no other seed resembles, and the mask of a box."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    mask = np.zeros(size, np.uint8)
    (top, left), (height, width) = rng.integers(1, np.array(size) // 3, (2, 2))
    mask[top : top + height + size[0] // 6, left : left + width + size[1] // 6] = 255
    image[mask > 0] = image[mask > 0] // 2 + 127 * (image[mask > 0].mean() < 128)
    return image, mask


def disc(height=120, width=160, centre=(0.25, 0.5), radius=18, value=255):
    """A disc on black: image (H, W, 3) and mask (H, W)."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (int(width * centre[0]), int(height * centre[1])), radius, 1, -1)
    return np.repeat(mask[..., None] * value, 3, axis=2), mask


def write(path, size=(24, 32)):
    """Writes an even white image in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(size, 255, np.uint8))
    return path


def add(root, image_dir, mask_dir, stems, size=(24, 32), empty=False):
    """Writes an image and a mask for each stem; the picture depends on the stem alone."""
    for folder in (root / image_dir, root / mask_dir):
        folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        image, mask = picture(list(stem.encode()), size)
        cv2.imwrite(str(root / image_dir / f"{stem}.jpg"), image)
        cv2.imwrite(str(root / mask_dir / f"{stem}.png"), mask * (not empty))
    return root


def cod10k_v3(root, others=4):
    """COD10K-v3 with ``others`` images without camouflage in each subset."""
    for subset, stems in (("Train", COD10K_TRAIN), ("Test", COD10K_TEST)):
        add(root / subset, "Image", "GT_Object", stems)
        non = [f"COD10K-NonCAM-5-{subset}-{i}" for i in range(others)]
        add(root / subset, "Image", "GT_Object", non, empty=True)
        for name in ("GT_Edge", "GT_Instance"):
            add(root / subset, "Image", name, stems)
    (root / "Info").mkdir()
    return root


def separate_downloads(root):
    """COD10K-v3, CAMO, CHAMELEON and NC4K, each as it is released."""
    cod10k_v3(root / "COD10K-v3")
    camo = root / "CAMO-V.1.0-CVIU2019"
    add(camo, "Images/Train", "GT", CAMO_TRAIN)
    add(camo, "Images/Test", "GT", CAMO_TEST)
    add(root / "CHAMELEON", "Image", "GT", CHAMELEON)
    add(root / "NC4K", "Imgs", "GT", NC4K)
    (root / "NC4K" / "Instance").mkdir()
    return root


def common_tree(root, image_dir="Imgs", mask_dir="GT"):
    """The same images as TrainDataset and TestDataset."""
    add(root / "TrainDataset", image_dir, mask_dir, COD10K_TRAIN + CAMO_TRAIN)
    (root / "TrainDataset" / "Edge").mkdir()
    tests = {"COD10K": COD10K_TEST, "CAMO": CAMO_TEST, "CHAMELEON": CHAMELEON, "NC4K": NC4K}
    for name, stems in tests.items():
        add(root / "TestDataset" / name, image_dir, mask_dir, stems)
    return root


LAYOUTS = {"separate": separate_downloads, "tree": common_tree}


def stems(dataset):
    """Stems of all samples, sorted."""
    return sorted(dataset.get_data_info(i)["stem"] for i in range(len(dataset)))


def look(root, **options):
    """The doctor's report."""
    return examine(root, workers=2, progress=False, **options)


def found(report, level=None):
    """``{check: names of files}`` of the doctor's findings."""
    return {
        f.check: [tuple(Path(p).name for p in row) for row in f.files]
        for f in report.findings
        if level in (None, f.level)
    }
