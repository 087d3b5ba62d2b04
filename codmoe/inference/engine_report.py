"""The engine's whole check in one run, printed as it goes."""

from __future__ import annotations

import statistics
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from codmoe.engine.checkpoints import load_parts
from codmoe.engine.speed import set_memory_format
from codmoe.evaluation.tables import save_json
from codmoe.inference import engine_check as check
from codmoe.inference.engine import CompiledMoE
from codmoe.inference.sections import Sections
from codmoe.inference.timing import reserved, side_by_side, warmed, working_memory
from codmoe.inference.zoo import create_model

Results = dict[str, Any]


def run(
    config: str,
    *,
    checkpoint: str | None = None,
    size: int = 448,
    large: int = 16,
    dtype: str = "auto",
    inductor: bool | str = False,
    repeats: int = 20,
    budget: float = 190.0,
    device: str | None = None,
    json_file: str | Path | None = None,
    options: dict[str, Any] | None = None,
) -> Results:
    """Latency, throughput, parity on every route, host waits, memory and the time of each piece, of
    the engine and of the model itself in one process.

    Args:
        config: Config of the model.
        checkpoint: Weights; without, random ones with the batch statistics of trained ones.
        size: Side of the images in pixels.
        large: Batch of the throughput.
        dtype: Precision; see :class:`CompiledMoE`.
        inductor: Also the ``"inductor"`` backend, last: compiling takes minutes. ``"only"`` leaves
            all else out but the speed of the engine beside it.
        repeats: Calls that count.
        budget: Seconds; what has not begun by then is left out.
        device: The first GPU if there is one.
        json_file: Where the figures go.
        options: Overrides of the config's ``model``.

    Raises:
        FileNotFoundError, ValueError: Config or checkpoint are missing or do not fit.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    model = create_model(config, **(options or {})).to(where)
    if checkpoint is None:
        check.as_if_trained(model, size)
    else:
        load_parts(model, checkpoint)
    model.eval().requires_grad_(False)
    card = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    print(f"{config} on {card}, torch {torch.__version__}, {size} × {size}", flush=True)
    results: Results = dict(config=config, card=card, torch=torch.__version__, size=size)
    run_ = _Run(model, where, size, repeats, results)
    sections = Sections(budget)
    engine = run_.engine("engine", dtype=dtype)
    if inductor != "only":
        _everything(run_, sections, engine, large, dtype)
    if inductor:
        with sections.begin("variant inductor", 900):
            run_.compiled(engine, large, dtype=dtype, backend="inductor")
    sections.end()
    print("\n" + engine.report, flush=True)
    if json_file is not None:
        print(f"wrote {save_json(json_file, results)}")
    return results


def _everything(
    run_: _Run, sections: Sections, engine: CompiledMoE, large: int, dtype: str
) -> None:
    kind, size, results = engine.frozen.dtype, run_.size, run_.results
    with sections.begin("one image", 90):
        run_.speed(1, {"": engine}, eager=True)
    with sections.begin(f"parity in {kind}, {len(check.routes_of(run_.model))} routes", 60):
        run_.parity(engine)
    with sections.begin(f"{large} images", 100):
        run_.speed(large, {"": engine}, eager=True)
    with sections.begin("host waits and memory", 30):
        run_.waits_and_memory(engine, large)
    with sections.begin("pieces by themselves", 30):
        for batch in (1, large):
            times = check.piece_times(engine, batch, size)
            results[f"pieces_{batch}"] = times
            print(f"batch {batch}: " + ", ".join(f"{k} {v:.2f} ms" for k, v in times.items()))
    if kind != "fp32":
        with sections.begin("parity in fp32, without TF32", 60), check.exact_products():
            run_.parity(run_.engine("fp32", dtype="fp32"))
    others = dict(contiguous=dict(memory_format="contiguous"), apart=dict(overlap=False))
    others |= dict(fp16=dict(dtype="fp16")) if kind == "bf16" else {}
    for name, changes in others.items():
        with sections.begin(f"variant {name}: {changes}", 60):
            other = run_.engine(name, **{"dtype": dtype, **changes})
            run_.speed(1, {name: other}, eager=False)
            run_.speed(large, {name: other}, eager=False)
            if name == "fp16":
                run_.parity(other)


class _Run:
    def __init__(self, model, device: torch.device, size: int, repeats: int, results: Results):
        self.model, self.device, self.size, self.repeats = model, device, size, repeats
        self.results = results
        self.reserved = reserved(device)
        names = model.expert_names
        further = [n for n in names if set(model.experts[n].input_scales) - {1.0}]
        plain = [n for n in names if n not in further]
        k = model.router.top_k
        self.routes: dict[str, tuple[str, ...] | None] = {"router's choice": None}
        chosen = [tuple(plain[:k]), tuple(plain[-k:])] if len(plain) >= k else []
        chosen += [(*plain[: k - 1], *further[:1])] if further else []
        self.routes |= {" + ".join(route): route for route in chosen}

    def engine(self, name: str, **options: Any) -> CompiledMoE:
        return CompiledMoE(self.model, **options)

    def images(self, batch: int) -> torch.Tensor:
        return check.pictures(batch, self.size, self.device)

    def speed(self, batch: int, engines: dict[str, CompiledMoE], *, eager: bool) -> None:
        """Prints median, 90th percentile and images/s of every route."""
        images, calls = self.images(batch), {}
        kind = next(iter(engines.values())).frozen.dtype
        model, x = self.model, images
        if eager:
            model = deepcopy(self.model)
            set_memory_format(model, "channels_last")
            x = images.contiguous(memory_format=torch.channels_last)
        for route, names in self.routes.items():
            if eager:
                calls[route, "eager"] = check.eager_call(model, x, kind, names)
            for label, engine in engines.items():
                calls[route, f"engine {label}".strip()] = lambda e=engine, n=names: e(
                    images, names=n
                )
        for call in calls.values():
            warmed(call, self.device, 4)
        for (route, what), sample in side_by_side(calls, self.device, repeats=self.repeats).items():
            row = sample.figures(batch)
            self.results.setdefault("speed", []).append(
                dict(batch=batch, route=route, names=self.routes[route], what=what, **row)
            )
            print(
                f"batch {batch:2d}  {route:20s} {what:18s} median {row['median_ms']:8.2f} ms  "
                f"p90 {row['p90_ms']:8.2f} ms  {row['images_per_second']:8.1f} images/s",
                flush=True,
            )
        for label, engine in engines.items():
            seconds = sum(piece.seconds for piece in engine.pieces)
            print(f"engine {label}: {len(engine.pieces)} pieces, {seconds:.1f} s to prepare so far")

    def compiled(self, engine: CompiledMoE, large: int, **options: Any) -> None:
        """A further backend beside the engine, with the time of its pieces."""
        other = self.engine(options["backend"], **options)
        # The router's choice makes groups of many sizes, each of which takes a minute to compile.
        self.routes = {label: names for label, names in self.routes.items() if names}
        for batch in (large, 1):
            self.speed(batch, {"": engine, options["backend"]: other}, eager=False)
        self.parity(other, batch=large, routes=list(self.routes.values()))
        times = check.piece_times(other, large, self.size)
        self.results[f"pieces_{large}_{options['backend']}"] = times
        print(f"batch {large}: " + ", ".join(f"{k} {v:.2f} ms" for k, v in times.items()))

    def parity(self, engine: CompiledMoE, batch: int = 2, routes: list | None = None) -> None:
        kind = engine.frozen.dtype
        rows = check.parity(self.model, engine, self.images(batch), routes)
        key = f"parity_{kind}" + ("" if routes is None else f"_{batch}")
        self.results[key] = {" + ".join(k) or "router": v for k, v in rows.items()}
        for route, row in rows.items():
            print(
                f"{' + '.join(route) or 'router':20s} engine: max {row['max']:.1e} mean "
                f"{row['mean']:.1e} mask {row['mask']:.1e}   autocast: max {row['eager_max']:.1e} "
                f"mean {row['eager_mean']:.1e}",
                flush=True,
            )
        worst = max(row["max"] for row in rows.values())
        mean = statistics.fmean(row["mean"] for row in rows.values())
        print(f"worst of a probability in {kind}: {worst:.2e}; mean {mean:.2e}")

    def waits_and_memory(self, engine: CompiledMoE, batch: int) -> None:
        images = self.images(batch)
        calls = dict(eager=check.eager_call(self.model, images, engine.frozen.dtype, None))
        calls["engine"] = lambda: engine(images)
        for name, call in calls.items():
            warmed(call, self.device, 1)
            waits, memory = check.host_waits(call, self.device), working_memory(call, self.device)
            self.results[f"waits_{name}"], self.results[f"memory_{name}"] = waits, memory
            print(
                f"{name}: host waits in a batch {dict(waits)}, {memory:.0f} MiB beyond what lies "
                "there"
            )
        if self.device.type == "cuda":
            held = reserved(self.device) - self.reserved
            print(f"engine: {held:.0f} MiB for weights, buffers and what graphs compute with")
            self.results["engine_mb"] = held
