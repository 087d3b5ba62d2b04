"""Times other people's models beside ours, in turns in one process:
python -m benchmarks.peers ensemble/stage3 small --peer timm:create_model model_name=resnet50
--peer ~/PraNet:lib.PraNet_Res2Net:PraNet --executions eager compiled prepared --json peers.json"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.model import training_step
from codmoe import cli
from codmoe.commands.benchmark_command import SHARED
from codmoe.commands.options import model as config_name
from codmoe.commands.options import option, whole
from codmoe.compiled.graphs import reason_of
from codmoe.compiled.speed import FORMATS, set_memory_format
from codmoe.engine.config import load_config, parse_options
from codmoe.evaluation.cost import count_flops, summarise
from codmoe.evaluation.timing import Call
from codmoe.inference.benchmark import (
    COLUMNS,
    PRECISIONS,
    Case,
    Costs,
    build,
    call_of,
    check,
    check_routes,
    device_of,
    executed,
    experts_of,
    images_of,
    measure,
    tell,
)
from codmoe.messages import suggest
from codmoe.models.moe import ModelLevelMoE
from codmoe.shipped import SHIPPED

OWN = "prepared"
"""The execution that only our models have."""
OUR_COLUMNS = dict(
    model="of ours the config, of theirs what made it",
    what="inference, or train for one training step",
    layout="memory format of images and weights",
    **{key: text for key, text in COLUMNS.items() if key not in ("experts", "top_k")},
)
OUR_COLUMNS["route"] = "experts that each image of ours takes; the router runs all the same"
NOTES = (
    "From normalised images on the device to what the model returns; loading and resizing are not "
    "in it. Weights are random unless a peer loads its own.",
    "All rows of one batch are timed in turns, in random order; training steps among themselves.",
    "A training step of ours is the config's, with its losses and its optimiser; of theirs, AdamW "
    "on the cross-entropy of every map that they return. Its working memory is beyond weights, "
    "gradients and the optimiser's state.",
    "cudnn_benchmark is off for all, but for CUDA graphs of the prepared model; --cudnn-benchmark "
    "has the fastest algorithms of convolutions chosen for all.",
)


class Peer:
    """Somebody's model: ``[FOLDER:]MODULE:CALLABLE``, called with ``KEY=VALUE`` arguments.

    What the callable returns takes normalised images, (N, 3, H, W), and returns tensors, in lists,
    tuples or dicts, too.

    Args:
        words: The text, and the arguments.

    Raises:
        ValueError: The text is none, there is no such module or callable, or the call fails.
    """

    def __init__(self, words: Sequence[str]):
        text, *pairs = words
        self.said = f"--peer {' '.join(words)}"
        folder, self.module, self.factory = ["", "", *text.rsplit(":", 2)][-3:]
        if not (self.module and self.factory):
            raise ValueError(f"{self.said}: give MODULE:CALLABLE, e.g. timm:create_model")
        self.folder = Path(folder).expanduser().resolve() if folder else None
        if self.folder and not self.folder.is_dir():
            raise ValueError(f"{self.said}: {self.folder} is no folder; give that of the checkout")
        wrong = [pair for pair in pairs if "=" not in pair]
        if wrong:
            raise ValueError(f"{self.said}: {wrong[0]!r} is not KEY=VALUE")
        self.arguments = parse_options(pairs)
        values = ", ".join(str(value) for value in self.arguments.values())
        self.name = f"{self.module}:{self.factory}" + (f"({values})" if values else "")
        self._modules: dict[str, ModuleType] = {}
        self.make = self._found()
        self.build()

    @contextmanager
    def imported(self) -> Iterator[None]:
        """What lies in the peer's folder can be imported meanwhile, and hides what bears the same
        name: more than one checkout calls its package ``lib``.
        """
        if self.folder is None:
            yield
            return
        tops = {path.stem for path in self.folder.iterdir()}
        hidden = _modules_of(tops)
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            self._modules = _modules_of(tops)
            for name in self._modules:
                del sys.modules[name]
            sys.modules.update(hidden)

    def _found(self) -> Callable[..., Any]:
        where = "" if self.folder else ", or FOLDER:MODULE:CALLABLE for code in a folder"
        try:
            with self.imported():
                found: Any = import_module(self.module)
        except Exception as error:
            fix = f"give a module that can be imported{where}"
            raise ValueError(f"{self.said}: {reason_of(error)}; {fix}") from error
        for name in self.factory.split("."):
            names = [each for each in dir(found) if callable(getattr(found, each, None))]
            if name not in names:
                raise ValueError(
                    f"{self.said}: {self.module} has no callable {self.factory!r}; "
                    f"{suggest(name, [each for each in names if each[0] != '_'])}"
                )
            found = getattr(found, name)
        return found

    def build(self) -> Callable[[Tensor], Any]:
        """A fresh model, on the CPU."""
        try:
            with self.imported():
                made = self.make(**self.arguments)
        except Exception as error:
            fix = "give the callable's arguments as KEY=VALUE behind it"
            raise ValueError(f"{self.said}: {reason_of(error)}; {fix}") from error
        if not callable(made):
            raise ValueError(
                f"{self.said}: it returns a {type(made).__name__}; give what returns a model that "
                "takes images (N, 3, H, W)"
            )
        return made

    def first(self, make: Callable[[], Call]) -> Call:
        """A call that has run once where its modules can be imported, as compiling does."""
        with self.imported():
            call = make()
            call()
        return call


def _modules_of(tops: set[str]) -> dict[str, ModuleType]:
    return {name: each for name, each in sys.modules.items() if name.partition(".")[0] in tops}


def placed(made: Callable[[Tensor], Any], device: torch.device, layout: str) -> Any:
    """A peer's model on the device; what is no module stays as it is."""
    if isinstance(made, nn.Module):
        made.to(device).to(memory_format=FORMATS[layout])  # type: ignore[call-overload]
    return made


def peer_training_step(
    model: Callable[[Tensor], Any], images: Tensor, precision: str, *, compiled: bool = False
) -> Call:
    """A call that is one training step of a peer: AdamW on the mean cross-entropy of its outputs.

    Args:
        model: Trained meanwhile.
        images: Normalised images, (N, 3, H, W).
        precision: fp16 with a scaled loss, bf16, or fp32.
        compiled: By ``torch.compile``.

    Raises:
        ValueError: It has no parameters, or fp16 or bf16 is asked for without a GPU.
    """
    half = precision != "fp32"
    if half and not images.is_cuda:
        raise ValueError(f"training in {precision} needs a GPU")
    if not isinstance(model, nn.Module):
        raise ValueError("it is no torch module, and has no parameters to train")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=images.is_cuda)
    scaler = torch.amp.GradScaler(images.device.type, enabled=precision == "fp16")
    run = torch.compile(model.train(), dynamic=False) if compiled else model.train()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(len(images), 1, 8, 8, generator=generator)
    mask = (F.interpolate(coarse, images.shape[-2:], mode="bilinear") > 0.3).float()
    mask = mask.to(images.device)

    def step() -> Tensor:
        with torch.autocast(images.device.type, PRECISIONS[precision], enabled=half):
            maps = maps_of(run(images))
        losses = [
            F.binary_cross_entropy_with_logits(
                found.float(), F.interpolate(mask, found.shape[-2:]).expand_as(found)
            )
            for found in maps
        ]
        loss = torch.stack(losses).mean()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        return loss

    return step


def maps_of(output: Any) -> list[Tensor]:
    """Every floating-point tensor with gradients in what a model returns, as maps (N, C, h, w).

    Raises:
        ValueError: There is none.
    """
    found = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
    if not found:
        raise ValueError("it returns no tensor that depends on its parameters")
    return [x if x.ndim == 4 else x.reshape(len(x), -1, 1, 1) for x in found]


def peer_cases(
    peer: Peer,
    images: Tensor,
    layout: str,
    precisions: Sequence[str],
    executions: Sequence[str],
    train: bool,
) -> Iterator[Case]:
    """A case for each precision and execution of a peer."""
    device = images.device
    model: Any = peer.build()
    shared: dict[str, Any] = dict(model=peer.name)
    if isinstance(model, nn.Module):
        shared["active_parameters"] = sum(p.numel() for p in model.parameters())
        shared["weights_mb"] = _megabytes(model)
        if not train:
            placed(model, device, layout).eval()
            try:
                with peer.imported():
                    shared["gflops"] = count_flops(model, images[:1])[0] / 1e9
            except Exception:  # its rows will say what it does not take
                pass
    for precision, execution in itertools.product(precisions, executions):
        if execution == OWN or (train and execution == "cudagraph"):
            continue
        row = dict(shared, precision=precision, execution=execution)

        def make(precision: str = precision, execution: str = execution) -> Call:
            if not train:
                return executed(model, images, precision, execution)
            own = placed(peer.build(), device, layout)
            return peer_training_step(own, images, precision, compiled=execution == "compiled")

        yield row, partial(peer.first, make)


def our_cases(
    model: ModelLevelMoE,
    images: Tensor,
    summary: Mapping[str, Any],
    routes: Sequence[str],
    precisions: Sequence[str],
    executions: Sequence[str],
) -> Iterator[Case]:
    """A case for each route, precision and execution of a model of ours, its router included."""
    costs = Costs(model, summary)
    for route in routes or extremes(summary):
        cost = costs.route(route, images)
        if route != "auto":
            cost = {key: cost[key] + value for key, value in costs.part("router").items()}
        row = dict(cost, route=route, weights_mb=_megabytes(model))
        for precision, execution in itertools.product(precisions, executions):
            if execution == "cudagraph":  # the prepared model is in CUDA graphs
                continue
            make = partial(_our_call, model, images, route, precision, execution)
            yield dict(row, precision=precision, execution=execution), make


def extremes(summary: Mapping[str, Any]) -> list[str]:
    """The routes of fewest and of most operations."""
    routes = summary["route_flops"]
    return list(dict.fromkeys(",".join(routes[f"{end}_experts"]) for end in ("min", "max")))


def _our_call(
    model: ModelLevelMoE, images: Tensor, route: str, precision: str, execution: str
) -> Call:
    if execution == OWN or route == "auto":
        return call_of(model, images, route, precision, execution)
    # A peer is timed whole, so the router runs here, too.
    routed = model.on_route(experts_of(route, model.expert_names), run_router=True)
    return executed(routed, images, precision, execution)


def our_training_cases(
    cfg: Config,
    model: ModelLevelMoE,
    images: Tensor,
    layout: str,
    precisions: Sequence[str],
    executions: Sequence[str],
) -> Iterator[Case]:
    """A case for each precision and execution of a config's training step; ``model`` is its, and is
    left as it is.
    """
    row: dict[str, Any] = dict(route="auto", weights_mb=_megabytes(model))
    row["active_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape: dict[str, Any] = dict(batch=len(images), size=images.shape[-1], layout=layout)
    for precision, execution in itertools.product(precisions, executions):
        if execution not in ("eager", "compiled"):
            continue

        def make(precision: str = precision, execution: str = execution) -> Call:
            own, compiled = build(cfg, None, images.device), execution == "compiled"
            return training_step(cfg, own, precision=precision, compiled=compiled, **shape)

        yield dict(row, precision=precision, execution=execution), make


def _megabytes(model: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


def benchmark(
    configs: Sequence[str],
    peers: Sequence[Sequence[str]] = (),
    *,
    batch_sizes: Sequence[int] = (1, 8),
    sizes: Sequence[int] = (448,),
    routes: Sequence[str] = (),
    precisions: Sequence[str] = ("fp32",),
    executions: Sequence[str] = ("eager",),
    layouts: Sequence[str] = ("channels_last",),
    train: bool = False,
    cudnn_benchmark: bool = False,
    repeats: int = 30,
    warmup: int = 5,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
    json_file: str | Path | None = None,
) -> dict[str, Any]:
    """Measures configs of ours and models of others, prints a table and writes JSON.

    Args:
        configs: Of ours: paths or names.
        peers: Of others: what :class:`Peer` takes, each.
        batch_sizes, sizes, precisions, repeats, warmup, device: As of
            :func:`codmoe.inference.benchmark.benchmark`.
        routes: As there, of ours; by default those of fewest and of most operations.
        executions: As there; only others have ``"cudagraph"``, only ours ``"prepared"``.
        layouts: Memory formats, of images and weights.
        train: Also time training steps.
        cudnn_benchmark: Have the fastest algorithm of each convolution chosen first.
        options: Overrides of our configs.
        json_file: As there.

    Returns:
        As there.

    Raises:
        FileNotFoundError: No such config.
        ValueError: A config has faults, a peer cannot be made, or something asked for is not known.
    """
    if not configs and not peers:
        raise ValueError("nothing to time: give configs of ours, and others by --peer")
    where = device_of(device)
    executions = check(locals())
    for name in layouts:
        if name not in FORMATS:
            raise ValueError(f"layouts: {name!r} is unknown; {suggest(name, FORMATS)}")
    theirs = [Peer(words) for words in peers]
    cfgs = {name: load_config(SHIPPED.get(name, name), options) for name in configs}
    models = {name: build(cfg, None, where) for name, cfg in cfgs.items()}
    for model in models.values():
        check_routes(routes, model.expert_names)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = cudnn_benchmark
    rows: list[dict[str, Any]] = []
    try:
        for layout, size in itertools.product(layouts, sizes):
            for model in models.values():
                set_memory_format(model, layout)
            summaries = {name: summarise(model, size) for name, model in models.items()}
            for batch, step in itertools.product(batch_sizes, (False, True) if train else (False,)):
                images = images_of(batch, size, where, layout)
                chosen = (precisions, executions)
                cases: list[Case] = []
                for name, model in models.items():
                    found = our_cases(model, images, summaries[name], routes, *chosen)
                    if step:
                        found = our_training_cases(cfgs[name], model, images, layout, *chosen)
                    cases += [(dict(model=name, **row), make) for row, make in found]
                for peer in theirs:
                    cases += peer_cases(peer, images, layout, *chosen, step)
                here = dict(layout=layout, size=size, batch=batch)
                here["what"] = "train" if step else "inference"
                rows += [here | row for row in measure(cases, images, repeats, warmup)]
    finally:
        torch.backends.cudnn.benchmark = before
    return tell(rows, OUR_COLUMNS, NOTES, ", ".join(configs), None, where, json_file)


NOT_SHARED = ("config", "--routes", "--sizes", "--checkpoint")
"""Options of ``codmoe benchmark`` that mean something else here, or nothing."""
OPTIONS = (
    option("configs", nargs="*", type=config_name, help="ours: config files or names, or small"),
    option(
        "--peer",
        dest="peers",
        action="append",
        nargs="+",
        default=[],
        metavar=("[FOLDER:]MODULE:CALLABLE", "KEY=VALUE"),
        help="what makes another model, and its arguments; may be given several times",
    ),
    option("--routes", nargs="+", default=[], help="of ours; by default the cheapest and dearest"),
    option("--layouts", nargs="+", default=["channels_last"], help="channels_last contiguous"),
    option("--train", action="store_true", help="also time training steps"),
    option("--cudnn-benchmark", action="store_true", help="choose algorithms of convolutions"),
    option("--sizes", nargs="+", type=whole(most=16_384), default=[448], help="of images (448)"),
    *(each for each in SHARED if each[0][0] not in NOT_SHARED),
)


def run(args) -> None:
    """Entry of the command line."""
    no_argument = ("debug", "quiet", "words")
    settings = {name: value for name, value in vars(args).items() if name not in no_argument}
    settings["options"] = parse_options(settings["options"])
    benchmark(settings.pop("configs"), settings.pop("peers"), **settings)


def main() -> None:
    cli.main(run, *OPTIONS, description=__doc__ or "")


if __name__ == "__main__":
    main()
