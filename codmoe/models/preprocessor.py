"""From a list of images to one normalised batch on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor

from codmoe.registry import MODELS

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@MODELS.register_module()
class CODDataPreprocessor(BaseDataPreprocessor):
    """Stacks uint8 RGB images, moves them as bytes and normalises them on the device.

    Args:
        mean: Per channel, RGB, on the scale 0 to 255.
        std: Per channel, RGB, on the scale 0 to 255.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__(non_blocking=True)
        self.memory_format = torch.contiguous_format
        """Of the images that the model gets; the engine sets it together with the model's own."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Collated ``inputs`` and ``data_samples`` → the arguments of the model's forward.

        Adds ``targets``, float (N, 1, H, W), when they are stacked or every sample has its
        ``target``. The ground truth
        at original resolution stays where it is: metrics read it on the host.

        Raises:
            ValueError: The images of one batch differ in size.
        """
        inputs, samples = data["inputs"], data.get("data_samples")
        if not isinstance(inputs, torch.Tensor):
            sizes = {tuple(image.shape) for image in inputs}
            if len(sizes) > 1:
                raise ValueError(
                    f"one batch holds images of sizes {sorted(sizes)}; end the pipeline's geometry "
                    "with a fixed size (dict(type='Resize', scale=(448, 448)))"
                )
            inputs = self._stacked(inputs)
        # Laid out as bytes: a quarter of what it costs in float32.
        images = self.cast_data(inputs).contiguous(memory_format=self.memory_format)
        images = (images.float() - self.mean) / self.std
        batch = dict(inputs=images, data_samples=samples)
        targets = data.get("targets")  # stacked by a collate function
        if targets is None and samples and all("target" in sample for sample in samples):
            targets = self._stacked([sample.target for sample in samples])
        if targets is not None:
            batch["targets"] = self.cast_data(targets).float()
        return batch

    def _stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, ...); on the host in pinned memory, without which the copy waits for the device."""
        stacked = torch.stack(list(tensors))
        to_gpu = self.device.type == "cuda" and not stacked.is_cuda
        return stacked.pin_memory() if to_gpu else stacked
