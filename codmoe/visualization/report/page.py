"""One HTML file that says what a run of all stages did, to look at or to attach to a mail."""

from __future__ import annotations

import os
from pathlib import Path

from codmoe.files import replacing
from codmoe.visualization.report.data import RunRecord, load_run
from codmoe.visualization.report.differences import difference_section, key_lines
from codmoe.visualization.report.images import attribute_section
from codmoe.visualization.report.markup import (
    Markup,
    figures,
    heading,
    notes,
    page,
    paragraph,
    picture,
    text,
)
from codmoe.visualization.report.notes import note_section
from codmoe.visualization.report.plots import learning_curves
from codmoe.visualization.report.results import result_section, routing_section
from codmoe.visualization.report.setup import setup_section


def write_report(work_dir: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Writes the report of what ``tools/run_stages.py`` left in a work directory.

    The page loads nothing: style, plots and pictures are within it. A section for which nothing is
    there is left out. An earlier report is kept under a dated name.

    Args:
        work_dir: Folder with ``table.json``.
        out: HTML file; ``<work_dir>/report.html`` by default.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no ``table.json``.
        ValueError: It is not what ``tools/run_stages.py`` writes.
    """
    run = load_run(work_dir)
    path = Path(out) if out else run.folder / "report.html"
    document = render(run)
    with replacing(path) as temporary:
        temporary.write_text(document, encoding="utf-8")
    return path


def render(run: RunRecord) -> str:
    """The page as text."""
    made = ((key, name, make(run)) for key, name, make in SECTIONS)
    sections = [(key, name, body) for key, name, body in made if body]
    sets = ", ".join(run.table)
    lead = Markup(
        f'<p class="lead">{text(run.folder.resolve().name)}, tested {run.written:%Y-%m-%d %H:%M}'
        f"</p>{key_lines(run)}"
    )
    return page(f"Mixture of experts on {sets}", lead, sections)


def curve_section(run: RunRecord) -> Markup:
    """Losses, validation and learning rate of every stage."""
    parts = []
    for stage in run.stages:
        plots = learning_curves(stage.training, run.expert_names)
        if plots:
            again = stage.training.resumed
            more = f", resumed {again} time{'s' if again > 1 else ''}" if again else ""
            parts += [heading(f"{stage.title}: {stage.config}{more}"), figures(plots)]
    if not parts:
        return Markup()
    hint = (
        "Loss of a part: the sum of its terms as they enter the total, divided by the first entry; "
        "some terms grow by design, such as ZoomNet's uncertainty loss. Validation IoU: per image "
        "at 0.5; oracle: best expert of each image."
    )
    return Markup("".join(parts) + notes([hint]))


def picture_section(run: RunRecord) -> Markup:
    """What the test step drew of the images with the highest, middle and lowest IoU."""
    extremes = run.ensemble.get("extremes") or {}
    parts = []
    for dataset, found in (extremes.get("datasets") or {}).items():
        path = run.folder / str(extremes.get("folder", "")) / str(found.get("file", ""))
        if path.is_file():
            parts += [heading(dataset), picture(path, f"best, median and worst of {dataset}")]
    if not parts:
        return Markup()
    lead = (
        "By the ensemble's IoU on each image. From the left: image, truth, each expert after stage "
        "3, the ensemble, and the weights its router gave."
    )
    return Markup(paragraph(lead) + "".join(parts))


SECTIONS = (
    ("setup", "What was run", setup_section),
    ("results", "Results", result_section),
    ("differences", "Is the ensemble better?", difference_section),
    ("curves", "Learning curves", curve_section),
    ("routing", "Routing", routing_section),
    ("attributes", "Which expert where", attribute_section),
    ("pictures", "Best, median and worst images", picture_section),
    ("notes", "To be aware of", note_section),
)
