"""Parameters, operations and time of a model: part by part, and beside its figures of quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from codmoe.evaluation.conventions import MIXTURE, UNIFORM
from codmoe.evaluation.timing import side_by_side
from codmoe.messages import note
from codmoe.models.dispatch import PyramidBank
from codmoe.models.moe import ModelLevelMoE

UNIT = "GFLOPs (1 multiply-add = 2)"
NOTES = (
    "Operations are those of convolutions and matrix products, attention included; normalisation, "
    "activations, resizing and FFT are not counted.",
    "A route is what one image runs: backbone, router, combiner and its top-k experts, with the "
    "further image scales that these read.",
)


@contextmanager
def _countable(module: nn.Module) -> Iterator[None]:
    """Evaluation without gradients and without the fused kernels that the counter does not know."""
    fused, training = torch.backends.mha.get_fastpath_enabled(), module.training
    # The counter's hooks ask for gradient functions of parameters that are passed as inputs.
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        module.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in trained:
            parameter.requires_grad_(True)
        module.train(training)


def count_flops(module: nn.Module, run: Callable[[], Any] | Tensor) -> tuple[int, Any]:
    """Operations of one call of a module, a multiply-add counting as two, and what it returned;
    ``run`` is its input, or a function that calls it. It is in evaluation mode meanwhile.
    """
    call = run if callable(run) and not isinstance(run, Tensor) else lambda: module(run)
    with _countable(module), FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def summarise(model: ModelLevelMoE, size: int = 448) -> dict[str, Any]:
    """Parameters and operations of a model.

    Args:
        model: The model. It runs once, part by part, on the shapes of one image alone; for real
            only if a part needs values.
        size: Side of that image in pixels.

    Returns:
        Plain values: ``parts`` (rows with ``part``, ``parameters``, ``flops``; those of further
        image scales also with ``scale``), ``total`` (sums of these), ``active_parameters`` and
        ``route_flops`` (``min``, ``max``, ``mean`` over all choices of ``top_k`` experts, and who
        they are), ``size``, ``top_k``, ``unit``, ``notes``.
        Numbers are single parameters and operations, not millions.

    Raises:
        ValueError: ``size`` is not a multiple of the backbone's ``size_divisor``.
    """
    divisor = model.backbone.size_divisor
    if size < divisor or size % divisor:
        near = max(round(size / divisor), 1) * divisor
        raise ValueError(f"size={size} is not a multiple of {divisor}, the backbone's; use {near}")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _measure(model, size)
    except RuntimeError as error:  # also NotImplementedError and what fake tensors raise
        note(f"running for real, since shapes do not suffice: {str(error).splitlines()[0][:80]}")
        return _measure(model, size)


def _measure(model: ModelLevelMoE, size: int) -> dict[str, Any]:
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)

    passes = model.passes()
    bank = PyramidBank(image, passes)
    backbone, pyramid = count_flops(model, partial(bank.get, 1.0, None))
    router, decision = count_flops(model, lambda: model.router(image, pyramid))
    rows = [
        _row("backbone", model.backbone, backbone),
        _row("router", model.router, router),
    ]
    scales: dict[float, int] = {}
    experts: dict[str, int] = {}
    outputs = {}
    for name, expert in model.expert_parts.items():
        for scale in sorted(set(expert.input_scales) - {1.0}):
            # The bank keeps what it makes: a second expert of the same scale costs nothing here, as
            # in a run.
            make = partial(bank.get if expert.backbone is None else bank.begun, scale, None)
            flops, _ = count_flops(model, make)
            scales[scale] = scales.get(scale, 0) + flops
        with torch.no_grad():
            pyramids = bank.pyramids(expert, None)
        experts[name], outputs[name] = count_flops(model, partial(expert, image, pyramids))
        if expert.backbone is not None:
            own, _ = count_flops(model, partial(bank.pyramids, expert, None))
            experts[name] += own
        rows.append(_row(name, expert, experts[name]))
    for scale, flops in scales.items():
        users = [n for n, e in model.expert_parts.items() if scale in e.input_scales]
        rows.append(
            dict(
                part=f"{', '.join(users)} backbone at {scale:g}×",
                parameters=0,
                flops=flops,
                scale=scale,
            )
        )
    combiner, _ = count_flops(model, lambda: model.combiner(outputs, decision, (size, size)))
    rows.append(_row("combiner", model.combiner, combiner))

    always = [model.backbone, model.router, model.combiner]
    fixed = sum(_parameters(part) for part in always)
    routes = []
    shared = {model.expert_names[index] for index in model.router.shared}
    for names in combinations(experts, model.router.top_k):
        if not shared <= set(names):
            continue
        read = {scale for name in names for scale in model.expert_parts[name].input_scales}
        routes.append(
            dict(
                experts=list(names),
                parameters=fixed + sum(_parameters(model.experts[name]) for name in names),
                flops=backbone
                + router
                + combiner
                + sum(experts[name] for name in names)
                + sum(flops for scale, flops in scales.items() if scale in read),
            )
        )
    return dict(
        size=size,
        unit=UNIT,
        top_k=model.router.top_k,
        parts=rows,
        total={key: sum(row[key] for row in rows) for key in ("parameters", "flops")},
        active_parameters=_range(routes, "parameters"),
        route_flops=_range(routes, "flops"),
        notes=list(NOTES),
    )


def _row(part: str, module: nn.Module, flops: int) -> dict[str, Any]:
    return dict(part=part, parameters=_parameters(module), flops=flops)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _range(routes: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    low, high = (choose(routes, key=lambda route: route[key]) for choose in (min, max))
    return dict(
        min=low[key],
        max=high[key],
        mean=sum(route[key] for route in routes) / len(routes),
        min_experts=low["experts"],
        max_experts=high["experts"],
    )


@torch.no_grad()
def measure_cost(
    model: ModelLevelMoE,
    size: tuple[int, int],
    chosen: Mapping[tuple[str, ...], int],
    *,
    repeats: int = 7,
) -> dict[str, Any]:
    """Parameters, operations and milliseconds of each source of a result, on one image.

    Args:
        model: In evaluation mode.
        size: Height and width of its input.
        chosen: ``{experts: number of images}`` as the router chose them.
        repeats: Rounds of timing.

    Returns:
        ``sources``: of each expert alone, of all with equal weights (``"uniform"``) and of the
        mixture ``parameters``, ``active`` (those that one image runs through), ``flops`` and
        ``ms`` (median); the mixture's operations and active parameters are means over ``chosen``,
        its time is that of the commonest choice. And where and how it was measured.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *size, device=parameter.device)
    sizes = {name: _parameters(part) for name, part in model.experts.items()}
    backbone, images = _parameters(model.backbone), sum(chosen.values())
    always = backbone + _parameters(model.router) + _parameters(model.combiner)
    routes = {(name,): model.on_route([name]) for name in sizes} | {
        tuple(sizes): model.on_route(list(sizes))
    }
    routed = {names: model.on_route(names, run_router=True) for names in chosen}
    flops = {k: count_flops(m, partial(m.mixture, image))[0] for k, m in routes.items()}
    found = {
        UNIFORM if len(names) > 1 else names[0]: dict(
            parameters=(own := backbone + sum(sizes[name] for name in names)),
            active=own,
            flops=flops[names],
        )
        for names in routes
    }
    found[MIXTURE] = dict(
        parameters=_parameters(model),
        active=always + sum(n * sizes[k] for names, n in chosen.items() for k in names) // images,
        flops=sum(
            n * count_flops(m, partial(m.mixture, image))[0]
            for m, n in zip(routed.values(), chosen.values(), strict=True)
        )
        // images,
    )
    calls = dict(zip(found, (partial(m.mixture, image) for m in routes.values()), strict=False))
    commonest = max(chosen, key=chosen.__getitem__)
    calls[MIXTURE] = partial(routed[commonest].mixture, image)
    for name, sample in side_by_side(calls, parameter.device, repeats=repeats).items():
        found[name]["ms"] = sample.figures(1)["median_ms"]
    return dict(
        sources=found,
        size=list(size),
        unit="operations of one image, a multiply-add counting as two",
        device=torch.cuda.get_device_name(parameter.device)
        if parameter.is_cuda
        else f"CPU, threads: {torch.get_num_threads()}",
        precision=str(parameter.dtype).removeprefix("torch."),
    )
