"""Keeps what frozen parts compute for an image, so that it is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codmoe.structures import ExpertOutput

Outputs = tuple[list[Tensor], dict[str, ExpertOutput]]
Kind = tuple[int, int, torch.dtype]  # height, width and precision of what is computed
DTYPES = dict(float16=torch.float16, float32=torch.float32)
GB = 1e9


@dataclass(frozen=True)
class _Piece:
    """Where one tensor of an image lies in the image's row, and how it looked."""

    group: str  # "pyramid" or "logits"
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def length(self) -> int:
        return math.prod(self.shape)


class FrozenCache:
    """Pyramids and experts' maps by image and view.

    Valid as long as backbone and experts are frozen, batch-norm statistics included: each image's
    result then depends on that image alone. Kept are the pyramid and each expert's prediction at
    its own resolution, as one row of numbers an image. What does not fit into the
    limit is computed anew each time; nothing is evicted.

    Args:
        limit_gb: Most memory of this process to use, in GB (10⁹ bytes).
        dtype: ``"float16"`` rounds to 11 bits and takes half the memory of ``"float32"``.
        device: Where to keep it: ``"cpu"``, or ``"cuda"``, which saves the copy of a batch to the
            device in each step.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, limit_gb: float = 8.0, dtype: str = "float16", device: str = "cpu"):
        if limit_gb <= 0:
            raise ValueError(f"frozen_cache.limit_gb={limit_gb} must be above 0; None is no cache")
        if dtype not in DTYPES:
            raise ValueError(f"frozen_cache.dtype={dtype!r}; use 'float16' or 'float32'")
        if device not in ("cpu", "cuda"):
            raise ValueError(f"frozen_cache.device={device!r}; use 'cpu' or 'cuda'")
        self.limit_gb = limit_gb
        self.dtype = DTYPES[dtype]
        self.device = device if torch.cuda.is_available() else "cpu"
        self.filling = True
        """Whether new results are kept; off while what is computed will not be asked for again."""
        self.clear()

    def clear(self) -> None:
        """Forget everything: the frozen parts have other weights now."""
        self._rows: dict[Hashable, Tensor] = {}
        self._layouts: dict[Kind, list[_Piece]] = {}
        self.bytes = 0
        self.hits = self.misses = self.refused = self.overflows = 0

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def through(
        self,
        keys: Sequence[Hashable],
        images: Tensor,
        compute: Callable[[Tensor], Outputs],
    ) -> Outputs:
        """The results for a batch: from memory where it is known, else computed and kept.

        Args:
            keys: One key an image; images of equal key are equal.
            images: Normalised images, (N, 3, H, W).
            compute: Images → pyramid and the output of every expert, without gradient.

        Returns:
            Pyramid of four maps (N, C_i, h_i, w_i), and per expert its logits; side
            maps and what only an expert's own loss reads are left out.
        """
        # Another size of the same view is another image (a collate function may draw sizes), and
        # what autocast computed is not what validation is measured by.
        kind = (*images.shape[-2:], _precision(images.device.type))
        keys = [(key, kind) for key in keys]
        known = [row for row, key in enumerate(keys) if key in self._rows]
        missing = [row for row, key in enumerate(keys) if key not in self._rows]
        self.hits += len(known)
        self.misses += len(missing)
        if not missing:
            return self._assemble(self._read(keys, kind, images.device))
        part = images if not known else images[torch.tensor(missing, device=images.device)]
        fresh = self._rounded(self._computed(part, compute))
        # Autocast would have a say in which precisions may be put together.
        with torch.autocast(images.device.type, enabled=False):
            self._keep([keys[row] for row in missing], kind, fresh)
            if not known:
                return self._assemble(fresh)
            stored = self._read([keys[row] for row in known], kind, images.device)
            order = torch.tensor(known + missing, device=images.device).argsort()
            return self._assemble(
                {piece: torch.cat([stored[piece], value])[order] for piece, value in fresh.items()}
            )

    def _computed(
        self, images: Tensor, compute: Callable[[Tensor], Outputs]
    ) -> dict[_Piece, Tensor]:
        """What the frozen parts say, all of it finite.

        Weights that were trained in bfloat16 or float32 can leave half precision's range, and no
        loss scale helps a forward pass: one infinity would be NaN in the router from then on.
        """
        fresh = _pieces(*compute(images))
        broken = _not_finite(fresh)
        if not broken:
            return fresh
        device = images.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                wide = _pieces(*compute(images))
            self.overflows += len(images)
            broken = _not_finite(wide)
            fresh = {
                piece: value.clamp(-(top := torch.finfo(piece.dtype).max), top).to(piece.dtype)
                for piece, value in zip(fresh, wide.values(), strict=True)
            }
        if broken:
            raise ValueError(
                f"the frozen parts give NaN or infinity, in float32 too: {', '.join(broken)}; the "
                "weights that this stage starts from (init_from) are broken, or the images are"
            )
        return fresh

    def _rounded(self, fresh: dict[_Piece, Tensor]) -> dict[_Piece, Tensor]:
        """As it will be read: a run that is resumed, with nothing kept, is to see the same."""
        largest = torch.finfo(self.dtype).max

        def kept(value: Tensor) -> Tensor:
            # Beyond the range of half precision lies nothing that a router tells images apart by.
            rounded = value.float().clamp(-largest, largest).to(self.dtype).to(value.dtype)
            return rounded.contiguous()  # what reads channels last adds up in another order

        return {piece: kept(value) for piece, value in fresh.items()}

    def _keep(self, keys: list[Hashable], kind: Kind, fresh: dict[_Piece, Tensor]):
        self._layouts[kind] = list(fresh)
        if not self.filling:
            return
        length = sum(piece.length for piece in fresh)
        row_bytes = length * self.dtype.itemsize
        room = int((self.limit_gb * GB - self.bytes) // row_bytes)
        fitting = min(room, len(keys))
        self.refused += len(keys) - fitting
        if fitting < 1:
            return
        flat = [value[:fitting].flatten(1).to(self.dtype) for value in fresh.values()]
        rows = torch.cat(flat, dim=1).to(self.device)
        # One image twice in a batch (samplers fill up the last one) is kept, and counted, once.
        kept = dict(zip(keys[:fitting], rows, strict=True))
        self._rows.update(kept)
        self.bytes += len(kept) * row_bytes

    def _read(self, keys: list[Hashable], kind: Kind, device: torch.device) -> dict[_Piece, Tensor]:
        rows = [self._rows[key] for key in keys]
        pinned = device.type == "cuda" and self.device == "cpu"
        batch = torch.empty(
            len(rows), len(rows[0]), dtype=self.dtype, device=rows[0].device, pin_memory=pinned
        )
        torch.stack(rows, out=batch)
        batch = batch.to(device, non_blocking=True)
        layout = self._layouts[kind]
        parts = batch.split([piece.length for piece in layout], dim=1)
        return {
            piece: part.reshape(len(rows), *piece.shape).to(piece.dtype)
            for piece, part in zip(layout, parts, strict=True)
        }

    @staticmethod
    def _assemble(values: dict[_Piece, Tensor]) -> Outputs:
        pyramid = [value for piece, value in values.items() if piece.group == "pyramid"]
        return pyramid, {
            piece.name: ExpertOutput(logits=value)
            for piece, value in values.items()
            if piece.group == "logits"
        }

    def summary(self, images: int) -> str:
        """One line about what is kept, of ``images`` that there are in all."""
        where = "device" if self.device == "cuda" else "host"
        text = (
            f"frozen cache: {len(self):,} of {images:,} image views, "
            f"{self.bytes / GB:.3g} GB of {where} memory in {str(self.dtype).split('.')[-1]} "
            f"(limit {self.limit_gb:g} GB)"
        )
        if self.refused and self._rows:
            need = self.bytes / len(self) * images / GB
            text += (
                f"; the limit is reached, the rest is computed anew each time: all would take "
                f"{need:.1f} GB (frozen_cache.limit_gb), or fewer frozen_cache.views"
            )
        return text


def _pieces(pyramid: list[Tensor], outputs: dict[str, ExpertOutput]) -> dict[_Piece, Tensor]:
    found = [("pyramid", str(level), value) for level, value in enumerate(pyramid)]
    found += [("logits", name, output.logits) for name, output in outputs.items()]
    return {
        _Piece(group, name, tuple(value.shape[1:]), value.dtype): value
        for group, name, value in found
    }


def _not_finite(values: dict[_Piece, Tensor]) -> list[str]:
    """Names of the pieces that hold NaN or infinity; one wait for the device."""
    finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
    return [f"{p.group} {p.name}" for p, good in zip(values, finite, strict=True) if not good]


def _precision(device: str) -> torch.dtype:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
