"""Saving and loading a model as a folder, local or on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from mmengine.config import Config
from safetensors.torch import save
from torch import Tensor, nn

from codmoe import __version__
from codmoe.files import keep_old, replacing
from codmoe.models.build import skip_pretrained
from codmoe.registry import MODELS, building
from codmoe.trust import check_received, read_safetensors, require_weights

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
CARD_DATA: dict[str, Any] = dict(
    library_name="codmoe", pipeline_tag="image-segmentation", tags=["camouflaged-object-detection"]
)
"""What the head of every model card says."""
# Parts of a training config by which an Inferencer finds the size of the images.
SIZES = ("val_dataloader", "test_dataloader")


class HubModel(ModelHubMixin, **deepcopy(CARD_DATA)):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of huggingface_hub.

    A folder holds ``config.json``, the constructor's arguments as plain values, and
    ``model.safetensors``, the weights in float32, which is a checkpoint by itself:
    ``create_model(checkpoint=...)`` and ``codmoe predict --checkpoint`` take it.
    """

    cfg: Config | None = None
    """The whole config that the model is from; :func:`create_model` and :meth:`from_pretrained`
    set it."""

    def save_pretrained(
        self, save_directory: str | Path, *, card: str | None = None, **kwargs: Any
    ) -> str | None:
        """Write the folder; files already in it are kept under dated names.

        Args:
            save_directory: Is made if it does not exist.
            card: What ``codmoe.inference.model_card.model_card`` wrote. Without it a card that is
                there stays, and a new one says that nothing is known of the weights.
            **kwargs: See huggingface_hub: ``push_to_hub``, ``repo_id``.

        Raises:
            ValueError: An argument that the model was built with is no plain value.
        """
        folder = Path(save_directory).expanduser()
        self._plain_config()
        keep_old(folder / CONFIG)  # huggingface_hub would delete it
        if card is not None:
            keep_old(folder / CARD)
            kwargs["model_card_kwargs"] = dict(card=card)
        return super().save_pretrained(folder, **kwargs)

    def push_to_hub(self, repo_id: str, *, card: str | None = None, **kwargs: Any) -> str:
        """Upload the folder that :meth:`save_pretrained` writes.

        Args:
            repo_id: Repository on the hub, ``"you/your-model"``; is made if it does not exist.
            card: What ``codmoe.inference.model_card.model_card`` wrote.
            **kwargs: See huggingface_hub: ``private``, ``token``, ``commit_message``, ``branch``.

        Returns:
            The address of the commit.

        Raises:
            ValueError: There is no card; said before anything is sent.
        """
        card = card or (kwargs.pop("model_card_kwargs", None) or {}).get("card")
        if not card:
            raise ValueError(
                "card is not given; weights that others are to use need one. Write it with "
                "codmoe.inference.model_card.model_card(model, 'RESULTS.json', name=..., data=..., "
                "license=...)"
            )
        self._plain_config()
        return super().push_to_hub(repo_id, model_card_kwargs=dict(card=card), **kwargs)

    def generate_model_card(self, card: str | None = None) -> ModelCard:
        """The card that was given, or one that says how to load the model and nothing else."""
        if card is None:
            head, experts = ModelCardData(**CARD_DATA).to_yaml(), cast(Any, self).expert_names
            card = (
                f"---\n{head}\n---\n\n# A codmoe model\n\nExperts: {', '.join(experts)}. Load it "
                "with `codmoe.ModelLevelMoE.from_pretrained(FOLDER)`.\n\nWho saved it said neither "
                "what it was trained on, nor what it scores, nor under which licence it is.\n"
            )
        return ModelCard(card)

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any):  # type: ignore[override]
        """A model in evaluation mode, from a folder or the hub.

        Args:
            source: Folder that :meth:`save_pretrained` wrote, or name of a repository.
            **kwargs: Arguments of the model instead of the stored ones, e.g. ``top_k=1``; those of
                huggingface_hub: ``revision``, ``cache_dir``, ``local_files_only``, ``token``.

        Raises:
            FileNotFoundError: There is no such folder, or it lacks a file.
            ValueError: The weights do not fit the config, or it names types that are no part of
                this project.
        """
        folder = Path(source).expanduser()
        if folder.is_dir():
            for name in (CONFIG, WEIGHTS):
                if not (folder / name).is_file():
                    raise FileNotFoundError(f"{folder / name} does not exist; save_pretrained it")
            try:
                held = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{folder / CONFIG} is no JSON file ({error})") from None
            if not isinstance(held, Mapping):
                raise ValueError(f"{folder / CONFIG} holds a {type(held).__name__}, not a dict")
        elif folder.is_absolute() or str(source).startswith((".", "~")) or len(folder.parts) > 2:
            raise FileNotFoundError(f"folder {source} does not exist")
        with building(str(source)):
            return super().from_pretrained(folder if folder.is_dir() else str(source), **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = self._plain_config()
        sizes = {key: config[key] for key in SIZES if key in config}
        section = {key: config[key] for key in self._hub_mixin_init_parameters if key in config}
        text = Config(dict(model=dict(type=type(self).__name__, **section), **sizes)).pretty_text
        meta = dict(
            config=text,
            expert_names=list(cast(Any, self).expert_names),
            codmoe=__version__,
            threshold=config.get("threshold"),
        )
        state = {k: _stored(v) for k, v in cast(nn.Module, self).state_dict().items()}
        require_weights(state, "this model")
        with replacing(save_directory / WEIGHTS) as temporary:
            temporary.write_bytes(save(state, metadata=dict(format="pt", meta=json.dumps(meta))))
        config["codmoe_version"] = __version__
        with replacing(save_directory / CONFIG) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **model_kwargs: Any,
    ):
        if Path(model_id).is_dir():
            path = str(Path(model_id) / WEIGHTS)
        else:
            path = hf_hub_download(
                model_id,
                WEIGHTS,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        MODELS.import_from_location()
        stored = config or {}
        built = {key: value for key, value in stored.items() if key not in SIZES}
        check_received(built, MODELS.module_dict, str(Path(model_id) / CONFIG), key="config")
        backbone = model_kwargs.get("backbone")
        if isinstance(backbone, Mapping):  # the weights come with the folder, from nowhere else
            model_kwargs["backbone"] = dict(backbone)
            skip_pretrained(model_kwargs)
        model: Any = cls(**model_kwargs)
        state = read_safetensors(path)
        require_weights(state, path, model.state_dict())
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit the config beside it: {' '.join(str(error).split()[:40])}"
            ) from error
        sizes = {key: _sizes_in(stored[key]) for key in SIZES if key in stored}
        model.cfg = Config(dict(model=dict(type=cls.__name__, **model_kwargs), **sizes))
        model.cfg.threshold = stored.get("threshold")
        return model.eval()

    def _plain_config(self) -> dict[str, Any]:
        """What the model was built with, without its backbone's pretrained weights."""
        config = dict(cast(Mapping[str, Any], self._hub_mixin_config or {}))
        cfg = self.cfg or {}
        sizes = {key: _sizes_in(cfg.get(key)) for key in SIZES}
        config.update({key: found for key, found in sizes.items() if found})
        if cfg.get("threshold") is not None:
            config["threshold"] = cfg["threshold"]
        config = _plain(config, "")
        skip_pretrained(config)
        return config


def _stored(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).contiguous()


def _sizes_in(node: Any) -> Any:
    """What is left of a section when all goes that tells no image size: paths of somebody's data
    have no business in a folder that is published.
    """
    if isinstance(node, Mapping):
        found = {key: _sizes_in(value) for key, value in node.items()}
        found = {key: value for key, value in found.items() if value}
        if node.get("type") == "Resize" and node.get("scale"):
            found.update(type="Resize", scale=node["scale"])
        if node.get("image_size"):
            found["image_size"] = node["image_size"]
        return found
    if isinstance(node, (list, tuple)):
        return [found for found in map(_sizes_in, node) if found]
    return None


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, key) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"{key}={value!r} is no plain value and cannot be saved; give types by their names"
    )
