"""Options of a training beside its config: what each sets there, and what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config

from codmoe.compiled.speed import speed_faults

BACKENDS = dict(
    tensorboard="TensorboardVisBackend", wandb="WandbVisBackend", mlflow="MLflowVisBackend"
)
"""mmengine's backends by the name of the package that each needs."""
MIN_DELTA = 1e-4
"""A validation that is better by less counts as no better, for ``--early-stop``."""


@dataclass(frozen=True)
class TrainingOptions:
    """What the command line asks of a training; each stage of a chain gets the same.

    Args:
        early_stop: Validations without a better one after which training ends.
        accumulate: Batches whose mean gradient makes a step of the optimiser.
        ema: Momentum of averaged weights, which are validated and kept.
        log: Packages that show curves, of :data:`BACKENDS`.
        auto_batch: Whether the batch is as large as the GPU takes.
    """

    early_stop: int | None = None
    accumulate: int | None = None
    ema: float | None = None
    log: Sequence[str] = ()
    auto_batch: bool = False

    @classmethod
    def of(cls, args: Any) -> TrainingOptions:
        """Of a parsed command line that has all of them."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def set_training(self, cfg: Config) -> None:
        """Write into a config what changes its training; a stage with other values starts afresh.

        Raises:
            ValueError: The config cannot take it.
        """
        hooks = cfg.setdefault("default_hooks", {})
        if self.early_stop:
            if not cfg.get("val_dataloader"):
                raise ValueError("--early-stop looks at validations, and val_dataloader is None")
            hooks["early_stopping"] = dict(
                type="EarlyStoppingHook",
                monitor=(hooks.get("best") or {}).get("monitor", "IoU"),
                rule="greater",
                min_delta=MIN_DELTA,
                patience=self.early_stop,
            )
        if self.ema:
            earlier = dict(hooks.get("ema") or dict(type="EMAHook", update_buffers=True))
            hooks["ema"] = dict(earlier, momentum=self.ema)
        if self.accumulate:
            cfg.optim_wrapper.accumulative_counts = self.accumulate
            for fault in speed_faults(cfg):
                raise ValueError(f"--accumulate: {fault}")

    def set_log(self, cfg: Config) -> None:
        """Add the backends to a config's visualizer.

        Raises:
            ValueError: A package is not installed.
        """
        for name in self.log:
            if find_spec(name) is None:
                raise ValueError(
                    f"--log {name} needs the package {name}, which is not installed here: "
                    f"pip install {name}"
                )
        visualizer = cfg.get("visualizer") or dict(type="Visualizer")
        backends = list(visualizer.get("vis_backends") or [dict(type="LocalVisBackend")])
        there = [backend["type"] for backend in backends]
        backends += [_backend(name) for name in self.log if BACKENDS[name] not in there]
        if self.log:
            cfg.visualizer = dict(visualizer, vis_backends=backends)

    def words(self) -> list[str]:
        """The command line that says the same."""
        values: list[tuple[str, Any]] = [
            ("--early-stop", self.early_stop),
            ("--accumulate", self.accumulate),
            ("--ema", self.ema),
            *(("--log", name) for name in self.log),
        ]
        words = [word for name, value in values if value for word in (name, str(value))]
        return [*words, *(["--auto-batch"] if self.auto_batch else [])]


def _backend(name: str) -> dict[str, Any]:
    backend: dict[str, Any] = dict(type=BACKENDS[name])
    if name == "wandb":
        backend["define_metric_cfg"] = [dict(name="*", step_metric="iter")]
    elif name == "mlflow":
        import mlflow

        # Otherwise mmengine takes a store of files, which MLflow refuses since 3.7.
        backend["tracking_uri"] = mlflow.get_tracking_uri()
    return backend
