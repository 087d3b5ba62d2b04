"""Miniature data sets in the layouts in which the real ones are downloaded."""

import cv2
import numpy as np

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
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] * 5 // 8] = 255
    return image, mask


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
