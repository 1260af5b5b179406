"""README.md of an exported model: what it is, and how to call it."""

import keras

from keras_transfer import __version__, cards
from keras_transfer.errors import UserError

# Packages without which nothing of Keras can be read.
_KERAS = "keras", "builtins"


def text(run, epoch, model, formats, input_size):
    """Returns the card of one epoch's model, in Markdown.

    Args:
        run: the `runs.Run`.
        epoch: int.
        model: its `keras.Model`, as trained.
        formats: names of the formats that are written.
        input_size: (height, width) of what takes images of one size.
    """
    return cards.render(
        "export",
        version=__version__,
        title=run.path.resolve().name,
        epoch=epoch,
        best=_best(run),
        results=_results(run, epoch),
        pretrained=_pretrained(run),
        info=run.info(),
        model=model,
        num_parameters=model.count_params(),
        modules=_modules(model),
        is_mixed=any(
            layer.compute_dtype != layer.variable_dtype
            for layer in model._flatten_layers()
        ),
        formats=formats,
        input_size=input_size,
    )


def _best(run):
    """Returns the best epoch, and what it was chosen by, None if unknown."""
    try:
        return run.best() | {"split": run.choosing_split}
    except UserError:  # None was recorded.
        return None


def _results(run, epoch):
    """Returns an epoch's row of evaluations on test images, {} if none."""
    if not run.metrics_path.is_file():
        return {}
    table = run.metrics()
    rows = table[(table.epoch == epoch) & (table.split == "test")]
    rows = rows.drop(columns=["epoch", "step", "split"]).to_dict("records")
    return rows[-1] if rows else {}


def _pretrained(run):
    try:
        return run.binding("train.pretrained")
    except UserError:  # Not made by bin/train.
        return "not recorded"


def _modules(model):
    """Returns the modules with a model's layers, beside Keras', sorted."""
    found, left = set(), [keras.saving.serialize_keras_object(model)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                found.add(value.get("module"))
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
    # What is public of KerasHub is above its src.
    packages = {name.partition(".src.")[0] for name in found if name}
    return sorted(n for n in packages if n.partition(".")[0] not in _KERAS)
