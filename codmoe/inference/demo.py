"""A local page that shows what a model makes of an image, and why."""

from __future__ import annotations

import html
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
import torch
from PIL import Image
from starlette.middleware import Middleware
from torch import Tensor

from codmoe.datasets.reading import orientation_of, read_image, upright
from codmoe.datasets.synthetic.camouflage import SyntheticCamouflage
from codmoe.inference.inferencer import Inferencer, to_input
from codmoe.inference.prediction import Prediction
from codmoe.models.dispatch import PyramidBank, padded_to
from codmoe.visualization.overlays import overlay

SHOWN = 1024
"""Longer side in pixels of what the page shows; downloads have the image's own size."""
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""What a browser may load for the page: what comes from its own address alone."""
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
_CSS = """
.why { overflow-x: auto; }
.why table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.why :is(table, thead, tbody, tr) { border: 0 !important; }
.why :is(th, td) { text-align: right; padding: .25em .6em; vertical-align: top;
  border-width: 0 0 1px !important; border-color: var(--border-color-primary) !important; }
.why :is(th, td):is(:first-child, :last-child) { text-align: left; }
.why .bar { display: block; height: 5px; border-radius: 3px; margin-left: auto;
  background: #2b83c6; }
.why :is(small, p:last-child) { opacity: .75; }
#experts .grid-wrap { height: auto; min-height: 0; }
@media (max-width: 700px) {
  #experts .grid-container { grid-template-columns: 1fr 1fr !important; }
}
footer { display: none !important; }
"""
_STEPS = (
    "A branch that is switched off says what it says of an average image of the training. "
    "Probabilities are over all experts; those chosen share the mixture by their own."
)


@dataclass
class Choice:
    """What the router decides.

    Args:
        probabilities: ``{expert: probability}`` of all.
        chosen: Names, the best first.
    """

    probabilities: dict[str, float]
    chosen: list[str]


@dataclass
class Explanation:
    """What a model says about one image, and why.

    Args:
        prediction: The mixture's, with the upright image; maps of the experts are as large as the
            page shows them.
        choice: The router's.
        without: Its choices with one branch of evidence switched off, by the name of the branch;
            empty for a router that has none.
        seconds: What it took.
        files: Folder of what can be downloaded; it goes with its last owner.
    """

    prediction: Prediction
    choice: Choice
    without: dict[str, Choice]
    seconds: float
    files: tempfile.TemporaryDirectory | None = None

    @cached_property
    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Image and probability, as large as the page shows them."""
        assert self.prediction.image is not None
        return reduced(self.prediction.image), reduced(self.prediction.probability)


@torch.inference_mode()
def explain(infer: Inferencer, path: str | Path) -> Explanation:
    """Runs all experts on an image, and the router with all and with less evidence.

    Raises:
        ValueError: The file is no image; the message names it without its folder.
    """
    path, started, model = Path(path), time.monotonic(), infer.model
    try:
        image = upright(read_image(str(path)), orientation_of(path))
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
    (sample,) = infer.maps([image], experts=True)
    routing, size = sample.routing, reduced(image).shape[1::-1]
    names = routing["expert_names"]
    choice = _choice(names, routing["probabilities"], routing["indices"])
    weights = dict(zip(choice.chosen, routing["weights"].tolist(), strict=True))
    without: dict[str, Choice] = {}
    if less_evidence := getattr(model.router, "without", None):
        inputs = model.data_preprocessor(dict(inputs=[to_input(image, infer.size)]))["inputs"]
        padded = padded_to(inputs, model.backbone.size_divisor)
        pyramid = PyramidBank(padded, model.passes()).get(1.0, None)
        for name, logits in less_evidence(padded, pyramid).items():
            less = model.router.choose(logits)
            without[name] = _choice(names, less.probabilities[0], less.indices[0])
    prediction = Prediction(
        sample.pred_prob.numpy(),
        weights,
        path,
        expert_maps={
            name: cv2.resize(map_.numpy(), size, interpolation=cv2.INTER_AREA)
            for name, map_ in sample.expert_probs.items()
        },
        image=image,
    )
    return Explanation(prediction, choice, without, time.monotonic() - started)


def reduced(image: np.ndarray) -> np.ndarray:
    """The image with a longer side of at most :data:`SHOWN`."""
    scale = min(1.0, SHOWN / max(image.shape[:2]))
    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _choice(names: Sequence[str], probabilities: Tensor, indices: Tensor) -> Choice:
    by_name = dict(zip(names, probabilities.tolist(), strict=True))
    return Choice(by_name, [names[i] for i in indices.tolist()])


def reasons(found: Explanation) -> str:
    """A table of the router's probabilities with all and with less evidence, as HTML."""
    first, names = found.choice.chosen[0], list(found.choice.probabilities)
    whole = found.choice.probabilities
    rows = [_row("all evidence", found.choice, whole)]
    rows += [_row(f"without {name}", each, whole) for name, each in found.without.items()]
    changed = [
        f"without {name} it would choose {_spoken(each.chosen)}"
        for name, each in found.without.items()
        if set(each.chosen) != set(found.choice.chosen)
    ]
    told = f"The router chose {_spoken(found.choice.chosen)}"
    if found.without:
        falls = {n: whole[first] - c.probabilities[first] for n, c in found.without.items()}
        most = max(falls, key=falls.__getitem__)
        if falls[most] > 0.005:
            told += f"; {most} speaks most for {first}"
        told += f"; {', '.join(changed)}" if changed else "; no single branch changes the choice"
    elif len(names) > 1:
        told += "; it has no branches of evidence to switch off"
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in ("", *names, "chosen"))
    return (
        f"<div class=why><p>{html.escape(told)}.</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table><p>{_STEPS if found.without else ''}</p></div>"
    )


def _spoken(names: Sequence[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _row(title: str, choice: Choice, whole: dict[str, float]) -> str:
    cells = []
    for name, value in choice.probabilities.items():
        change = value - whole[name]
        small = f"<small>{change:+.2f}</small> " if abs(change) >= 0.005 else ""
        text = f"<b>{value:.2f}</b>" if name in choice.chosen else f"{value:.2f}"
        cells.append(f"<td>{small}{text}<span class=bar style='width:{value:.0%}'></span></td>")
    chosen = html.escape(", ".join(choice.chosen))
    return f"<tr><th scope=row>{html.escape(title)}</th>{''.join(cells)}<td>{chosen}</td></tr>"


def build(infer: Inferencer, folder: Path, name: str) -> gr.Blocks:
    """The page of a model called ``name``; ``folder`` takes the examples and what is downloaded."""

    def look(data: Any, threshold: float) -> list[Any]:
        path = uploaded(data, folder)
        nothing: list[Any] = [None, None, None, "", [], ""]
        if path is None:
            return nothing
        try:
            found = explain(infer, path)
        except ValueError as error:
            gr.Warning(html.escape(str(error)))
            return nothing
        gallery = []
        for expert, map_ in found.prediction.expert_maps.items():
            weight = found.prediction.weights.get(expert)
            told = f"{expert}, weight {weight:.2f}" if weight else f"{expert}, not chosen"
            gallery.append(((map_ * 255).round().astype(np.uint8), told))
        return [gr.skip(), found, *cut(found, threshold), gallery, reasons(found)]

    def cut(found: Explanation | None, threshold: float) -> list[Any]:
        if found is None:
            return [None, ""]
        image, probability = found.shown
        height, width = found.prediction.probability.shape
        share = replace(found.prediction, threshold=threshold).share
        told = f"{share:.1%} of {width} × {height} pixels are object · {found.seconds:.1f} s"
        return [(image, overlay(image, probability > threshold)), told]

    def save(found: Explanation | None, threshold: float) -> list[gr.DownloadButton]:
        if found is None:
            return [gr.DownloadButton(value=None, interactive=False) for _ in range(3)]
        made = replace(found.prediction, threshold=threshold)
        pictures = dict(
            mask=made.mask * 255,
            cutout=made.cutout(),
            probability=(made.probability * 255).round().astype(np.uint8),
        )
        found.files = tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)
        buttons = []
        for kind, pixels in pictures.items():
            path = Path(found.files.name) / f"{Path(made.path or 'image').stem}_{kind}.png"
            Image.fromarray(pixels).save(path, compress_level=1)
            buttons.append(gr.DownloadButton(value=str(path), interactive=True))
        return buttons

    with gr.Blocks(title="codmoe", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        state = gr.State(time_to_live=3600)
        size = " × ".join(map(str, infer.size))
        title = html.escape(f"Hidden objects, by the model {name} at {size} on {infer.device}.")
        gr.HTML(f"<h1>codmoe</h1><p>{title}</p>")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(label="image", sources=["upload", "clipboard"], height=300)
                gr.Examples(examples(folder), picture, label="examples, drawn for this page")
            with gr.Column(scale=2, min_width=320):
                slider = gr.ImageSlider(
                    label="image | object", interactive=False, format="jpeg", elem_id="overlay"
                )
                # Weights may hold one beyond the ends, which gradio would refuse at each look.
                first = min(max(infer.threshold, 0.01), 0.99)
                threshold = gr.Slider(
                    0.01, 0.99, first, step=0.01, label="threshold", elem_id="threshold"
                )
                told = gr.Markdown(elem_id="told")
                with gr.Row():
                    titles = ("mask", "cut-out", "probability")
                    buttons = [
                        gr.DownloadButton(f"{t}, PNG", interactive=False, size="sm", elem_id=t)
                        for t in titles
                    ]
        gallery = gr.Gallery(
            label="each expert, 0 (black) to 1 (white)", columns=4, height="auto",
            object_fit="contain", interactive=False, format="png", elem_id="experts",
        )  # fmt: skip
        why = gr.HTML(elem_id="why")
        shown: list[Any] = [picture, state, slider, told, gallery, why]
        settings: dict[str, Any] = dict(api_visibility="private")
        # gradio would open the file itself, and say less of what is wrong with it.
        made = picture.change(look, [picture, threshold], shown, preprocess=False, **settings)
        made.then(save, [state, threshold], buttons, **settings)
        moved = dict(settings, trigger_mode="always_last", show_progress="hidden")
        threshold.change(cut, [state, threshold], [slider, told], **moved)
        threshold.change(save, [state, threshold], buttons, **moved)
    return page


def uploaded(data: Any, folder: Path) -> Path | None:
    """The file that a browser names, if it lies in ``folder``, where all uploads are."""
    path = data.get("path") if isinstance(data, dict) else None
    file = Path(path).resolve() if isinstance(path, str) else None
    return file if file and file.is_relative_to(folder.resolve()) and file.is_file() else None


def examples(folder: Path) -> list[list[str]]:
    """One synthetic image of each kind, as files that a page may show."""
    images = SyntheticCamouflage(length=4, image_size=384, seed=4, part="demo", visibility=0.3)
    found = []
    for index in range(len(images)):
        image, _ = images.read_sample(index)
        path = folder / f"{images.get_data_info(index)['kind']}.png"
        Image.fromarray(image).save(path)
        found.append([str(path)])
    return found


class _Guard:
    """Tells browsers to load nothing for the page but what comes from its own address."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = dict(message, headers=[*message.get("headers", ()), header])
            await send(message)

        await self.app(scope, receive, guarded)


@contextmanager
def serving(
    infer: Inferencer, *, name: str, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """Serves the page while the block runs; its address.

    Nothing is sent or asked for elsewhere: no analytics, no share link, no fonts. Uploads and
    downloads lie in a temporary folder that is removed in the end.

    Raises:
        ValueError: The port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="codmoe-demo-") as folder:
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        page = build(infer, Path(folder), name)
        settings: dict[str, Any] = dict(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            max_file_size="200mb",
            theme=gr.themes.Base(font=list(_FONTS), font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
            app_kwargs=dict(middleware=[Middleware(_Guard)]),
        )
        try:
            _, address, _ = page.launch(**settings)
        except OSError as error:
            where = f"--port {port}" if port else "every port from 7860 on"
            raise ValueError(f"{where} of {host} is taken or not ours; give another") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def wait() -> None:
    """Until the user interrupts."""
    threading.Event().wait()
