"""The commands of ``codmoe``: ``<name>_command.py`` for each name of :data:`COMMANDS`.

A command's file holds ``OPTIONS`` (see :mod:`codmoe.commands.options`), ``run(args)``, which
returns the exit code or None for 0, and a docstring, the text of its ``--help``. It imports at its
top what is light, and the rest in ``run``: a misspelt option is answered at once.
"""

COMMANDS = {
    "Images": {
        "predict": "masks of images, folders and videos, also as pictures and a table",
        "calibrate": "choose the threshold of masks on pairs of yours",
        "demo": "a local page to try a model on your own images",
    },
    "Training": {
        "doctor": "examine data sets before training",
        "browse": "pictures of samples after their augmentation, and of a data set",
        "config": "print a config resolved, with where each value comes from",
        "train": "train one stage",
        "stages": "train all three stages, test, and print one table",
        "report": "make the page of a run of all stages again",
    },
    "Evaluation": {
        "test": "test a checkpoint on the benchmarks of its config",
        "eval": "score saved maps of any method",
        "compare": "put results side by side",
    },
    "Models": {
        "models": "list what is trained and what can be",
        "summary": "parameters and operations of a model",
        "benchmark": "time and memory of a model by route",
        "export": "ONNX, torch.export or safetensors, compared with the model",
        "pack": "make a checkpoint shippable",
        "info": "versions, devices, data and folders, as a bug report needs them",
    },
}
"""Names and one line of ``codmoe --help`` on each, by what they are for."""
