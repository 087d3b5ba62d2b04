"""The contract of a backbone, and timm models with their pretrained weights."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from codmoe.messages import nearest, suggest
from codmoe.trust import read_pickle, read_safetensors, require_weights

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module, ABC):
    """Images (N, 3, H, W) → pyramid: four maps (N, C_i, ⌈H/s_i⌉, ⌈W/s_i⌉) at strides 4, 8, 16, 32.

    The pretrained part lives under ``body``, so that one config line gives it its own learning rate
    (``custom_keys={"backbone.body": dict(lr_mult=0.1)}``); what is new lives beside it.

    Attributes:
        channels: Channels of the four maps.
        size_divisor: Height and width of the images must be multiples of this.
    """

    channels: tuple[int, ...]
    size_divisor: int

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images whose sides divide by ``size_divisor`` → the four maps."""

    def begin(self, images: Tensor, own_blocks: int) -> list[Tensor]:
        """What all blocks but the last ``own_blocks`` make of images: all that :meth:`ending`
        reads, each (N, ...).
        """
        raise self._whole()

    def ending(self, own_blocks: int) -> nn.Module:
        """The last blocks, and all that comes after them: what :meth:`begin` gave → the four maps.

        Its modules are the backbone's; a copy is an expert's own (``own_blocks`` of an expert). As
        in the backbone, its pretrained part lives under ``body``.

        Raises:
            ValueError: The backbone has no such blocks, or does not tell where they begin.
        """
        raise self._whole()

    def _whole(self) -> ValueError:
        return ValueError(
            f"backbone {type(self).__name__} cannot be split, so no expert can have last blocks of "
            "its own; leave own_blocks out, or use ViTPyramid, or TimmPyramid with 'pvt_v2_b2'"
        )

    def check_own_blocks(self, own_blocks: int, most: int, what: str) -> None:
        """Raises:
        ValueError: Not 1 to ``most`` of ``what``, the backbone's blocks.
        """
        if not isinstance(own_blocks, int) or not 1 <= own_blocks <= most:
            raise ValueError(
                f"own_blocks={own_blocks!r}: the last {what} of the backbone that an expert can "
                f"have of its own are 1 to {most}"
            )


def checked_pyramid(backbone: Backbone, pyramid: list[Tensor], images: Tensor) -> list[Tensor]:
    """What a backbone made of images.

    Raises:
        ValueError: It is no pyramid of four maps of its channels at strides 4, 8, 16, 32.
    """
    name, found = type(backbone).__name__, tuple(level.shape[1] for level in pyramid)
    if found != tuple(backbone.channels):
        raise ValueError(
            f"{name} returned maps of {found} channels; return four of its channels, "
            f"{tuple(backbone.channels)}"
        )
    height, width = images.shape[-2:]
    sizes = [tuple(level.shape[2:]) for level in pyramid]
    wanted = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    if sizes != wanted:
        raise ValueError(
            f"{name} made maps of {_sides(sizes)} of images of {height}x{width}; return four at "
            f"strides 4, 8, 16, 32: {_sides(wanted)}"
        )
    return pyramid


def _sides(sizes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, size)) for size in sizes)


def laid_out_as(images: Tensor, pyramid: list[Tensor]) -> list[Tensor]:
    """The maps in the memory format of the images, channels last or not.

    timm's models end their stages in the contiguous format. Every convolution of every expert that
    reads a map would convert it anew.
    """
    last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return [level.contiguous(memory_format=layout) for level in pyramid]


def create_timm(name: str, *, pretrained: bool, checkpoint: str | None, **kwargs) -> Any:
    """``timm.create_model`` whose failures say what to do.

    Args:
        name: timm model name, optionally with a tag.
        pretrained: Whether to fetch timm's own weights from the hub.
        checkpoint: Local file with weights (.safetensors or .pth) in timm's key names, or in those
            of the original project where timm knows them (``pvt_v2_b2.pth``), any precision; takes
            the place of the download.
        **kwargs: Passed on to timm.

    Raises:
        ValueError: The name is unknown, or the checkpoint does not belong to this model.
        FileNotFoundError: The checkpoint is missing, or the download is not possible.
    """
    if not timm.is_model(name):
        raise ValueError(f"backbone.name={name!r} is not a timm model; " + _nearest_timm(name))
    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"backbone.checkpoint={checkpoint!r} does not exist")
        state = _read_state(path)
        # Not the file: timm would read it again, and run what a pickle says.
        kwargs["pretrained_cfg_overlay"] = dict(state_dict=state, source="", file=None)
        pretrained = True
    try:
        model = timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # the hub client raises a dozen kinds
        if checkpoint is not None:
            raise ValueError(
                f"backbone.checkpoint={checkpoint!r} does not fit {name!r}: {error}"
            ) from error
        if not pretrained or isinstance(error, (TypeError, RuntimeError)):
            raise
        raise FileNotFoundError(
            f"the pretrained weights of {name!r} are neither in the hub cache nor reachable; give "
            "backbone.checkpoint='FILE' (timm's key names, or PVT's) or backbone.pretrained=False"
        ) from error
    if checkpoint is not None:
        _check_loaded(model, name, str(path), state)
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a file in timm's forms, read without running code."""
    if path.suffix == ".safetensors":
        return read_safetensors(path, f"backbone.checkpoint={str(path)!r}")
    content = read_pickle(path)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"backbone.checkpoint={str(path)!r} holds no state dict")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise ValueError(f"backbone.checkpoint={str(path)!r} holds more than tensors by name")
    return timm.models.clean_state_dict(dict(content))


def _nearest_timm(name: str) -> str:
    close = nearest(name, timm.list_models())
    if close:
        return suggest(name, close)
    return f"see timm.list_models('*{name.split('_')[0]}*') for its names"


def _check_loaded(model: nn.Module, name: str, path: str, state: Mapping[str, Tensor]) -> None:
    # timm loads non-strictly once the classifier is dropped; `features_only` flattens dots, or puts
    # the whole model under `model`.
    require_weights(state, f"backbone.checkpoint={path!r}")
    stored = {key.replace(".", "_"): value for key, value in state.items()}
    own = model.named_parameters()
    wanted = {key.removeprefix("model.").replace(".", "_"): value for key, value in own}
    lacking = {key: value for key, value in wanted.items() if key not in stored}
    others = [value for key, value in stored.items() if key not in wanted]
    missing = sorted(set(lacking) - _renamed(lacking, others))
    if not missing:
        return
    fault = (
        f"{len(missing)} of {len(wanted)} parameters are not in it, e.g. {', '.join(missing[:3])}"
    )
    # What timm reshapes as it loads is not found either, hence "half" and not "any".
    if len(missing) > len(wanted) / 2:
        raise ValueError(f"backbone.checkpoint={path!r} does not fit {name!r}: {fault}")
    warnings.warn(
        f"backbone.checkpoint={path!r}: {fault}; they stay random unless timm has reshaped "
        "others into them",
        stacklevel=2,
    )


def _renamed(parameters: Mapping[str, Tensor], stored: list[Tensor]) -> set[str]:
    """Parameters that hold one of the stored tensors each, as where timm renames those of original
    projects, such as ``pvt_v2_b2.pth``, while it loads.
    """
    held = {}
    for key, parameter in parameters.items():
        for i, value in enumerate(stored):
            if value.shape == parameter.shape and torch.equal(value.to(parameter), parameter):
                held[key] = stored.pop(i)
                break
    # Norms and biases of any two fresh models are ones and zeros.
    return set(held) if any(value.ndim > 1 for value in held.values()) else set()
