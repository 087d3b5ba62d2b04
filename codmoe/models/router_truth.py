"""Tells how good each expert is on each training image, by copies that did not train on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codmoe.structures import CODDataSample


class RouterTruth:
    """IoU of every expert on every image, out of files, for the losses of the router.

    On their own training images all experts look equally good. So copies of them are trained on
    folds of the training set (``split.folds``), and each is tested on the fold that it has not
    seen: ``codmoe test CONFIG WEIGHTS --experts --json fold0.json``. Experts, heads and router
    then learn from the same images.

    Args:
        files: Results of ``codmoe test --experts``, which together hold every training image.
        expert_names: Experts in the order of the model.
        centred: Whether every expert's mean over a file is taken from its IoUs. Copies that trained
            for a short time rank the experts as those rank that learn fast; what is left says on
            which images an expert is better than elsewhere.
    """

    def __init__(self, files: Sequence[str], *, expert_names: Sequence[str], centred: bool = False):
        self.files = [files] if isinstance(files, str) else list(files)
        self.centred = centred
        self.expert_names = tuple(expert_names)
        # Read when training asks for it: a trained model is used without these files.
        self._table: dict[str, list[float]] | None = None

    def of(self, data_samples: Sequence[CODDataSample] | None, device: torch.device) -> Tensor:
        """IoU (N, E) of the images that the annotations name by ``stem``.

        Raises:
            FileNotFoundError: A file is not there.
            ValueError: An expert or an image is in none of the files, or the batch has no names.
        """
        if self._table is None:
            self._table = self._read()
        if not data_samples or any(sample.get("stem") is None for sample in data_samples):
            raise ValueError(
                "model.router_truth needs the name of every image: give data_samples with 'stem', "
                "as PackCODInputs does"
            )
        absent = [s.stem for s in data_samples if s.stem not in self._table]
        if absent:
            raise ValueError(
                f"model.router_truth: image {absent[0]!r} is in none of {', '.join(self.files)}; "
                "test the copy of every fold on the part of the training set that it has not seen"
            )
        return torch.tensor([self._table[s.stem] for s in data_samples], device=device)

    def _read(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for file in self.files:
            path = Path(file).expanduser()
            if not path.is_file():
                raise FileNotFoundError(
                    f"model.router_truth: {file} does not exist; it is what codmoe test "
                    "--experts --json writes for the copy of one fold"
                )
            for name, sources in json.loads(path.read_text(encoding="utf-8"))["table"].items():
                missing = [expert for expert in self.expert_names if expert not in sources]
                if missing:
                    raise ValueError(
                        f"model.router_truth: {file} has no {missing[0]!r} on {name}, but "
                        f"{', '.join(sources)}; test with --experts and the same experts"
                    )
                images = [sources[expert]["images"] for expert in self.expert_names]
                table = np.array([[part[stem]["IoU"] for part in images] for stem in images[0]])
                if self.centred:
                    table -= table.mean(0) - table.mean()
                found.update(zip(images[0], table.tolist(), strict=True))
        return found
