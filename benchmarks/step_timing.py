"""Times the training steps of one process group: what ``scaling.py`` starts and reads."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch.utils.data import DataLoader, Dataset

from benchmarks.step_profile import StepProfile
from codmoe.compiled.graphs import captured_anew
from codmoe.compiled.speed import compiled_parts
from codmoe.engine.checkpoints import load_parts
from codmoe.engine.config import load_config
from codmoe.engine.ddp import bare_model
from codmoe.engine.hooks.compiling import CompileHook
from codmoe.engine.launch import build_runner, prepare, settle, stop_workers
from codmoe.engine.own_data import set_data
from codmoe.engine.runner import CODRunner
from codmoe.files import save_json
from codmoe.models.build import skip_pretrained
from codmoe.structures import CODDataSample

PROBES = 4  # steps after the timed ones: three that DDP times itself, one that reports its waits
PROFILED = 2  # after these, where a profile is asked for


class _Finished(Exception):
    """Ends the training loop."""


class SyntheticBatches(Dataset):
    """The same few batches of random images and blobs in turn, made once, on the device.

    Args:
        length: Number of batches that are given out.
        batch: Images in each.
        size: Height and width in pixels.
        seed: Of the random numbers; another one for each process.
    """

    def __init__(self, length: int, batch: int, size: tuple[int, int], seed: int):
        self.length = length
        device = get_device()
        generator = torch.Generator().manual_seed(seed)
        self.batches = []
        for _ in range(4):
            images = torch.randint(0, 256, (batch, 3, *size), generator=generator)
            coarse = torch.randn(batch, 1, 8, 8, generator=generator)
            masks = (F.interpolate(coarse, size, mode="bilinear") > 0.3).to(device, torch.float32)
            samples = [CODDataSample(target=mask) for mask in masks]
            batch_of = dict(inputs=images.to(device, torch.uint8), data_samples=samples)
            self.batches.append(batch_of)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batches[index % len(self.batches)]


class LoaderClock(Hook):
    """Before everything else: when the batch had come, and the peak of the device's memory."""

    priority = "HIGHEST"

    def __init__(self):
        self.came = 0.0
        self.peak: int | None = None
        self.reserved: int | None = None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self.came = time.perf_counter()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        # mmengine resets the peak whenever it logs, which it does after this.
        if torch.cuda.is_available():
            self.peak = max(self.peak or 0, torch.cuda.max_memory_allocated())
            self.reserved = max(self.reserved or 0, torch.cuda.max_memory_reserved())


class StepTimer(Hook):
    """After everything else: waits for the device and notes the time; ends the run.

    Writes ``timing begins`` and ``timing ended``, so that other jobs can be stopped in between.

    Args:
        loader: Notes when batches came.
        warmup: Steps that are not counted.
        steps: Steps that are.
        profiled: Steps after those that are profiled.
        keep: Called before them: what was measured so far should not be lost with a profiler.

    Attributes:
        profile: Of these, as :func:`~benchmarks.step_profile.read_trace` gives it.
    """

    priority = "LOWEST"

    def __init__(
        self,
        loader: LoaderClock,
        warmup: int,
        steps: int,
        profiled: int = 0,
        keep: Callable[[], None] = lambda: None,
    ):
        self.loader, self.warmup, self.steps, self.profiled = loader, warmup, steps, profiled
        self.keep = keep
        self.profile: dict[str, Any] | None = None
        self.profiling: StepProfile | None = None
        self.first: float | None = None
        self.first_loss: float | None = None
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self.loads: list[torch.Tensor] = []
        self.syncs: Counter[str] = Counter()
        self.done = 0
        self.timing = False
        self.last = 0.0

    def watch(self, module, args, decision) -> None:
        """Forward hook of the router: images that each expert was chosen for."""
        if self.warmup <= self.done < self.warmup + self.steps and module.training:
            self.loads.append(decision.indices[:, : decision.top_k].detach())

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: with the router, which has its hook, it goes to a process that compiles."""
        return {}

    def before_train(self, runner) -> None:
        self.last = time.perf_counter()

    def say(self, timing: bool) -> None:
        """Write which of the two begins, if that is new."""
        if timing != self.timing and is_main_process():
            print("timing begins" if timing else "timing ended", flush=True)
        self.timing = timing

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.first is None:
            loss = (outputs or {}).get("loss")
            self.first, self.first_loss = time.time(), None if loss is None else loss.item()
        if self.warmup <= self.done < self.warmup + self.steps:
            self.seconds.append(now - self.last)
            self.waits.append(max(self.loader.came - self.last, 0.0))
        self.done += 1
        if self.done == self.warmup:
            self.say(True)
        after = self.done - self.warmup - self.steps
        if after == 0 and is_model_wrapper(runner.model):
            runner.model._set_ddp_runtime_logging_sample_rate(1)
        if after == PROBES + self.profiled:
            self.say(False)
            if self.profiling is not None:
                self.profile = self.profiling.stop(self.profiled)
            raise _Finished
        if after == PROBES:
            self.keep()
            self.profiling = StepProfile(runner)
            self.profiling.start()
        if after == PROBES - 1 and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        self.last = time.perf_counter()


class FirstGradients:
    """Sums of the first step's gradients with random signs, by part: what two runs of the same
    weights and images are compared by, where all gradients would be hundreds of megabytes.

    Args:
        model: Whose.
        optimizer: Its first step has the gradients that count.
    """

    SUMS = 256

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.model = model
        self.sums: dict[str, list[float]] = {}
        self.handle = optimizer.register_step_pre_hook(self.take)

    @torch.no_grad()
    def take(self, *_) -> None:
        """Hook of the optimiser's step."""
        self.handle.remove()
        sums: dict[str, torch.Tensor] = {}
        for number, (name, parameter) in enumerate(self.model.named_parameters()):
            if parameter.grad is None:
                continue
            part = ".".join(name.split(".")[: 2 if name.startswith("experts.") else 1])
            flat = parameter.grad.float().flatten()
            generator = torch.Generator(flat.device).manual_seed(number)
            signs = torch.randint(
                0, 2, flat.shape, generator=generator, device=flat.device, dtype=torch.int8
            )
            padded = F.pad(flat * (2 * signs - 1), (0, -len(flat) % self.SUMS))
            place = sums.setdefault(part, flat.new_zeros(self.SUMS))
            place += padded.view(-1, self.SUMS).sum(0)
        self.sums = {part: place.tolist() for part, place in sums.items()}


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the training images that a config's pipeline makes."""
    dataset = cfg.train_dataloader.dataset
    for transform in reversed(list(dataset.get("pipeline") or ())):
        size = transform.get("size") or transform.get("scale")
        if isinstance(size, (list, tuple)) and all(isinstance(side, int) for side in size):
            return tuple(size)
    side = dataset.get("image_size", 448)
    return (side, side)


def measure(spec: dict[str, Any], launcher: str) -> dict[str, Any]:
    """Trains ``spec["warmup"] + spec["steps"]`` steps with the Runner that trains for real.

    Args:
        spec: ``config``, ``options``, ``data`` ("synthetic" or "config"), ``size``, ``data_root``,
            ``checkpoint``, ``steps``, ``warmup``, ``work_dir``, ``started`` (when this process was
            started, by ``time.time()``), ``profile`` (whether steps after them are profiled).
        launcher: As of ``tools/train.py``.

    Returns:
        Figures of all processes, each list in the order of the ranks.
    """
    cfg = load_config(spec["config"], spec["options"])
    set_data(cfg, spec.get("data_root"))
    profiled = PROFILED if spec.get("profile") else 0
    total = spec["warmup"] + spec["steps"] + PROBES + profiled
    for key in "init_from val_cfg val_dataloader val_evaluator test_cfg test_dataloader".split():
        cfg.pop(key, None)
    cfg.pop("test_evaluator", None)
    cfg.train_cfg.max_epochs = total  # more than enough: an epoch has a step at least
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.best = None
    cfg.default_hooks.pop("warmup", None)  # the steps after it are those that last
    cfg.default_hooks.pop("frozen_cache", None)
    skip_pretrained(cfg.model)  # the speed does not depend on them
    size = (spec["size"],) * 2 if spec.get("size") else image_size(cfg)
    if spec["data"] == "synthetic":  # the Runner builds a data set, which need not be there
        cfg.train_dataloader.dataset = dict(type="SyntheticCamouflage", image_size=max(size))
    prepare(cfg, launcher=launcher, work_dir=spec["work_dir"])
    plan = settle(cfg)
    runner = build_runner(plan)
    model = bare_model(runner)
    if spec.get("checkpoint"):
        load_parts(model, spec["checkpoint"])
    if spec["data"] == "synthetic":
        batches = SyntheticBatches(total, cfg.train_dataloader.batch_size, size, runner.rank)
        # Each item is a batch already.
        runner._train_dataloader = DataLoader(batches, batch_size=1, collate_fn=_only)
    loader = LoaderClock()

    def figures() -> dict[str, Any]:
        found = _figures(runner, timer, plan.precision)
        found["start_seconds"] = timer.first and timer.first - spec.get("started", timer.first)
        found["first_loss"], found["profile"] = timer.first_loss, timer.profile
        found["first_gradients"] = gradients[0].sums if gradients else None
        return found | _compiled(runner)

    def keep() -> None:
        if "out" in spec:
            save_json(spec["out"], figures())

    timer = StepTimer(loader, spec["warmup"], spec["steps"], profiled, keep)
    runner.register_hook(loader)
    runner.register_hook(timer)
    model.router.register_forward_hook(timer.watch)
    # Not under DDP, whose gradients are a mean over other images.
    gradients = []
    if runner.world_size == 1:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        gradients = [FirstGradients(model, runner.optim_wrapper.optimizer)]
    try:
        with noting_waits(timer.syncs):
            runner.train()
    except _Finished:
        pass
    finally:
        timer.say(False)
        stop_workers(runner)
    return figures()


def _compiled(runner: CODRunner) -> dict[str, Any]:
    """What was compiled before the first step, and what torch's cache had of it then."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CompileHook)]
    if not hooks:
        return {}
    counts = torch._dynamo.utils.counters
    parts = compiled_parts(bare_model(runner)).values()
    return dict(
        compiling=hooks[0].figures,
        not_compiled=[part.name for part in parts if part.failed],
        captured_anew=captured_anew(),
        calls_uncompiled={part.name: part.unknown for part in parts if part.unknown},
        cache={
            name: counts[group][name]
            for group, names in (
                ("aot_autograd", ("autograd_cache_hit", "autograd_cache_miss")),
                ("inductor", ("fxgraph_cache_hit", "fxgraph_cache_miss")),
            )
            for name in names
        },
    )


def _figures(runner: CODRunner, timer: StepTimer, precision: str) -> dict[str, Any]:
    model, cuda = bare_model(runner), torch.cuda.is_available()
    names = list(model.expert_names)
    loads = [torch.bincount(i.flatten().cpu(), minlength=len(names)) for i in timer.loads]
    own = dict(
        seconds=timer.seconds,
        waits=timer.waits,
        loads=[load.tolist() for load in loads],
        peak_allocated=timer.loader.peak,
        peak_reserved=timer.loader.reserved,
    )
    ranks = all_gather_object(own)
    trained = [p for p in model.parameters() if p.requires_grad]
    return dict(
        processes=runner.world_size,
        batch_per_process=runner.cfg.train_dataloader.batch_size,
        device=torch.cuda.get_device_name() if cuda else "CPU",
        backend=dist.get_backend() if dist.is_initialized() else None,
        precision=precision,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        parameters_trained=sum(p.numel() for p in trained),
        expert_names=names,
        host_waits=dict(timer.syncs.most_common()) if cuda else None,
        ddp=_ddp_figures(runner.model) if is_model_wrapper(runner.model) else None,
        **{key: [rank[key] for rank in ranks] for key in own},
    )


def _ddp_figures(model) -> dict[str, Any]:
    """What DDP knows of itself; times in ms, of one of the last steps, where it took any."""
    data = model._get_ddp_logging_data()
    listed = str(data.get("rebuilt_bucket_sizes") or data.get("bucket_sizes") or "")
    buckets = [int(size) for size in listed.replace(",", " ").split()]
    times = {
        key: data[f"{key}_time"] / 1e6
        for key in (
            "forward_compute",
            "backward_compute",
            "backward_comm",
            "backward_compute_comm_overlap",
        )
        if data.get(f"{key}_time", 0) > 0
    }
    flags = ("find_unused_parameters", "broadcast_buffers", "gradient_as_bucket_view")
    return dict(
        bucket_bytes=buckets,
        bytes_per_step=sum(buckets),
        milliseconds=times,
        options={key: bool(data[key]) for key in (*flags, "static_graph") if key in data},
    )


def work(spec_file: str, launcher: str) -> None:
    """Entry of a process: measure what the file says, leave result or error in ``spec["out"]``."""
    spec = json.loads(Path(spec_file).read_text())
    out = Path(spec["out"])
    try:
        result = measure(spec, launcher)
    except Exception as error:  # whatever it is, it belongs into the table
        traceback.print_exc()
        if not out.exists() and os.environ.get("RANK", "0") == "0":
            save_json(out, dict(error=f"{type(error).__name__}: {_first_line(error)}"))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # others may wait for this process in a collective: nothing to tear down
    if is_main_process():
        out.unlink(missing_ok=True)  # as it was before the profile
        save_json(out, result)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""


@contextmanager
def noting_waits(counts: Counter[str]) -> Iterator[None]:
    """Counts torch's warnings of a host that waits for the device, by the line that made it."""

    def note(message, category, filename, lineno, file=None, line=None) -> None:
        if "synchronizing CUDA operation" not in str(message):
            return earlier(message, category, filename, lineno, file, line)
        frames = [
            f for f in traceback.extract_stack()[:-1] if not f.filename.endswith("warnings.py")
        ]
        outer = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename] or frames
        where = f"{_short(outer[-1].filename)}:{outer[-1].lineno}"
        counts[where] += 1
        return None

    earlier = warnings.showwarning
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        warnings.showwarning = note
        yield


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-3:])
