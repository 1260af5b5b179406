"""Runs on disk that were not trained: random weights, quickly written."""

import functools

import numpy as np

from keras_transfer import Models, data, manifest, models
from keras_transfer.manifest import Manifest
from keras_transfer.runs import Run

_FILES = (
    "config.gin",
    "model.json",
    "data.json",
    "metrics.csv",
    "checkpoints/best.json",
)
build = functools.partial(models.fixup_resnet, widths=(4, 8))


def digits():
    return data.load("digits", image_size=8, num_train=32)


def data_for(model):
    """Returns the digits in the shape that a model takes."""
    size, _, channels = model.input_shape[1:]
    return data.load("digits", image_size=size, channels=channels, num_train=32)


def write_run(path, dataset, seed, start_seed=None, last=2, **arguments):
    """Writes a run whose epoch 0 is a new model and whose last is moved.

    Args:
        path: directory.
        dataset: the `data.Dataset` it claims to be trained on.
        seed: of the weights at the last epoch, and by default of epoch 0.
        start_seed: of epoch 0, for runs that start from one model.
        last: int, the last epoch's number.
        **arguments: of the model; with another `input_shape`, the run has the
            digits in that shape.

    Returns:
        The `Run`.
    """
    run = Run(path)
    defaults = {
        "num_classes": len(dataset.info.class_names),
        "input_shape": dataset.info.image_shape,
        "seed": seed if start_seed is None else start_seed,
    }
    model = build(**(defaults | arguments))
    if "input_shape" in arguments:
        dataset = data_for(model)
    run.begin("", model, dataset)
    run.save(0, model)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign_add(rng.normal(0, 0.2, variable.shape))
    run.save(last, model)
    return run


def write_models(directory):
    """Writes two P-Ts of one start and two RI-Ts; returns the `Models`."""
    dataset = digits()
    for i in range(2):
        write_run(directory / f"pt{i}", dataset, seed=i, start_seed=7)
        write_run(directory / f"rit{i}", dataset, seed=10 + i)
    return Models(models=named(directory))


def named(directory):
    """Returns the runs of `write_models` as `Models.models` has them."""
    return {
        "P-T": [f"{directory}/pt0", f"{directory}/pt1"],
        "RI-T": [f"{directory}/rit0", f"{directory}/rit1"],
    }


def reseal(path):
    """Notes a run's files as they are now, as if training had left them so."""
    found = Manifest(path, "run")
    identity = found.identity
    if identity is not None:
        (path / manifest.NAME).unlink()
        found.adopt(_FILES, identity)
