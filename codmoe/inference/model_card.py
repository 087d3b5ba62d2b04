"""The model card: what a reader of published weights has to know, filled from result files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from codmoe import __version__
from codmoe.console import markdown_text
from codmoe.evaluation.compare import load_methods
from codmoe.evaluation.conventions import COMBINED, LOWER_IS_BETTER, MIXTURE
from codmoe.evaluation.cost import UNIT, summarise
from codmoe.evaluation.intervals import FEW
from codmoe.evaluation.tables import format_value, result_rows, result_table
from codmoe.inference.summary import side_of, summary_table
from codmoe.messages import listed, suggest
from codmoe.models.hub import CARD_DATA
from codmoe.models.moe import ModelLevelMoE

METRICS = ("IoU", "mDice", "Sm", "wFm", "meanEm", "MAE")
Table = Mapping[str, Mapping[str, Mapping[str, Any]]]


def model_card(
    model: ModelLevelMoE,
    results: str | os.PathLike | Sequence[str | os.PathLike] = (),
    *,
    name: str,
    data: str,
    license: str,
    limits: str = "",
    citation: str = "",
) -> str:
    """A model card for the Hugging Face hub, as Markdown with its YAML head.

    ``save_pretrained(folder, card=...)`` and ``push_to_hub(name, card=...)`` take it. Figures, cost
    and the comparison with the best expert are read and counted; what only the author can know is
    asked for, and what is left out is said in a sentence.

    Args:
        model: The model; its operations are counted at the size that its config tests at.
        results: JSON of ``codmoe test --json`` with this model, one or several data sets.
        name: Repository on the hub (``"you/your-model"``), or what to call the folder.
        data: What it was trained on, and the terms of these data.
        license: Of the weights, by the hub's identifier: ``"apache-2.0"``, ``"cc-by-nc-4.0"``.
        limits: Where it fails, and what it is not made for.
        citation: How to cite these weights.

    Raises:
        FileNotFoundError: A result file does not exist.
        ValueError: ``name``, ``data`` or ``license`` is empty or no identifier; a file is no result
            file, or of another model.
    """
    for key, value in dict(name=name, data=data).items():
        if not value.strip():
            raise ValueError(f"{key} is empty; a model card says it")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"license={license!r} is no identifier of the hub; give one such as 'apache-2.0', "
            "'cc-by-4.0' or 'cc-by-nc-4.0' (the terms of the training data may ask for it)"
        )
    paths = [results] if isinstance(results, (str, os.PathLike)) else list(results)
    table = _results(model, paths) if paths else {}
    sections = {
        "Use": _use(name),
        "Training data": data.strip(),
        "Figures": _figures(table),
        "Cost": _cost(model),
        "Limits": "\n".join([*([limits.strip(), ""] if limits.strip() else []), *_limits(table)]),
        "Licence": f"The weights: `{license}`. The code that runs them, codmoe: Apache-2.0.",
        "Citation": _citation(model, citation),
    }
    head = ModelCardData(
        license=license,
        model_name=name,
        eval_results=_for_the_hub(table) or None,
        **CARD_DATA,
    )
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{head.to_yaml()}\n---\n\n# {markdown_text(name)}\n\n{_task(model)}\n\n{body}\n"


def _results(model: ModelLevelMoE, paths: Sequence[str | os.PathLike]) -> Table:
    table: dict[str, dict[str, Mapping[str, Any]]] = {}
    known = (*model.expert_names, *COMBINED)
    for method in load_methods(paths, sources=["all"]):
        if method.source not in known:
            raise ValueError(
                f"{method.path} has results of {method.source!r}, which is no part of this model; "
                + suggest(method.source, known)
            )
        for dataset, row in method.rows.items():
            if method.source in table.setdefault(dataset, {}):
                raise ValueError(f"{method.path}: data set {dataset!r} is in another file, too")
            table[dataset][method.source] = row
    for dataset, rows in table.items():
        table[dataset] = dict(sorted(rows.items(), key=lambda row: row[0] != MIXTURE))
        if MIXTURE not in rows:
            raise ValueError(
                f"data set {dataset!r} has results of {listed(list(rows))} and none of the model "
                "as a whole; give what codmoe test --json wrote"
            )
    return table


def _task(model: ModelLevelMoE) -> str:
    names = model.expert_names
    backbone = getattr(model.backbone, "name", type(model.backbone).__name__)
    text = (
        "Camouflaged object detection: from an RGB image to the probability of each pixel that it "
        "belongs to an object which blends into its surroundings. "
    )
    if len(names) == 1:
        return (
            f"{text}One decoder ({names[0]}) on the backbone {backbone}, made with codmoe "
            f"{__version__}."
        )
    return (
        f"{text}A mixture of {len(names)} complete decoders ({', '.join(names)}) on one backbone "
        f"({backbone}): for each image a router picks {model.router.top_k} of them and weighs "
        f"their maps. Made with codmoe {__version__}."
    )


def _use(name: str) -> str:
    return (
        f"```python\nfrom codmoe import Inferencer, ModelLevelMoE\n\n"
        f"infer = Inferencer(ModelLevelMoE.from_pretrained({name!r}))\n"
        'prediction = infer("photo.jpg")[0]\n'
        "prediction.mask, prediction.probability, prediction.weights\n```\n\n"
        "The maps have the photo's size. No code comes with the weights."
    )


def _figures(table: Table) -> str:
    if not table:
        return (
            "None: these weights were published without a result file. `codmoe test CONFIG "
            "CHECKPOINT --experts --json FILE` writes one."
        )
    rows = [
        {key: value for key, value in row.items() if key in ("dataset", "source", "n", *METRICS)}
        for row in result_rows(table)
    ]
    text = result_table(rows).markdown().rstrip()
    return f"`mixture` is this model as it predicts, `n` the number of images.\n\n{text}"


def _cost(model: ModelLevelMoE) -> str:
    side = side_of(model, model.cfg)
    table = summary_table(summarise(model, side)).markdown().rstrip()
    return f"One image of {side} × {side} px, {UNIT}.\n\n{table}"


def _limits(table: Table) -> list[str]:
    lines = []
    ious = {name: rows[MIXTURE]["IoU"] for name, rows in table.items()}
    if len(ious) > 1:
        worst = min(ious, key=ious.__getitem__)
        lines.append(
            f"- It scores lowest on {markdown_text(worst)}: IoU {format_value(ious[worst])}."
        )
    for name, rows in table.items():
        if rows[MIXTURE]["n"] < FEW:
            lines.append(
                f"- {markdown_text(name)}: {rows[MIXTURE]['n']} images are few; what fails on one "
                "in thirty may by chance fail on none of them."
            )
        experts = {key: row["IoU"] for key, row in rows.items() if key not in COMBINED}
        if len(experts) > 1:
            best = max(experts, key=experts.__getitem__)
            more = 100 * (ious[name] - experts[best])
            lines.append(
                f"- {markdown_text(name)}: the mixture has {abs(more):.1f} points of IoU "
                f"{'less' if more < 0 else 'more'} than its best expert alone ({best}, chosen on "
                "these images)."
            )
    return [
        *lines,
        "- The figures hold for images like those tested; they say nothing of other kinds, or of "
        "another training run."
        if table
        else "- Nothing is known of how well it works.",
        "- It is no detector of presence: how often it marks something in an image without an "
        "object was not measured.",
    ]


def _citation(model: ModelLevelMoE, own: str) -> str:
    lines = [own.strip(), ""] if own.strip() else []
    lines.append("codmoe (its `CITATION.cff`), and the papers of what this model is made of:")
    return "\n".join([*lines, "", *(f"- {_paper(expert)}" for expert in model.experts.values())])


def _paper(part: nn.Module) -> str:
    """The sentence in which the code of an expert names its paper."""
    kind = type(part)
    said = [sys.modules[kind.__module__].__doc__ or "", kind.__doc__ or ""]
    for text in (" ".join(doc.split("\n\n")[0].split()) for doc in said):
        if re.search(r"\([^)]*\d{4}\)", text):
            return markdown_text(text)
    return f"`{kind.__name__}`: its code names no paper"


def _for_the_hub(table: Table) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=key,
            metric_name=f"{key} (lower is better)" if key in LOWER_IS_BETTER else key,
            metric_value=round(float(rows[MIXTURE][key]), 4),
        )
        for dataset, rows in table.items()
        for key in METRICS
        if key in rows[MIXTURE]
    ]
