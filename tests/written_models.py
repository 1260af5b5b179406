"""Models to analyse that were not trained: on disk, in memory, over time."""

import keras
import numpy as np
import written_runs

import keras_transfer as kt


def write_models(directory, **options):
    """Writes two P-Ts of one start and two RI-Ts.

    Args:
        directory: of their run directories.
        **options: of `Models`.

    Returns:
        The `Models`.
    """
    dataset = written_runs.digits()
    for i in range(2):
        written_runs.write_run(
            directory / f"pt{i}", dataset, seed=i, start_seed=7
        )
        written_runs.write_run(directory / f"rit{i}", dataset, seed=10 + i)
    return kt.Models(named(directory), **options)


def named(directory):
    """Returns the runs of `write_models` as `Models.models` has them."""
    return {
        "P-T": [f"{directory}/pt0", f"{directory}/pt1"],
        "RI-T": [f"{directory}/rit0", f"{directory}/rit1"],
    }


def arrays(num_train=24, num_test=40, seed=0):
    """Returns random images, 6 x 6 of three classes, for `Examples`."""
    rng = np.random.default_rng(seed)
    return {
        split: (
            rng.normal(size=(size, 6, 6, 1)).astype(np.float32),
            np.arange(size) % 3,
        )
        for split, size in (("train", num_train), ("test", num_test))
    }


def examples(**arguments):
    """Returns `Examples` of `arrays`."""
    return kt.Examples(**arrays(**arguments))


def net(seed=0, activation=None, num_classes=3):
    """Returns a small model of a factory that names no layer.

    So its layers are dense, dense_1, ... as Keras numbers them.
    """
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(2, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.Dense(num_classes, activation=activation),
        ]
    )


def nets(**arguments):
    """Returns two models of each kind, as `Models.models` takes them."""
    return {
        "P-T": [net(0, **arguments), net(1, **arguments)],
        "RI-T": [net(2, **arguments), net(3, **arguments)],
    }


def fitted(seed=0, epochs=2, make=net, **about):
    """Returns the `Trajectory` of a model that Keras has fitted on `arrays`.

    Args:
        seed: int.
        epochs: int.
        make: function of the seed that makes the model.
        **about: of the `Trajectory`.
    """
    data, model = arrays(), make(seed)
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    trajectory = kt.Trajectory(**about)
    model.fit(
        *data["train"],
        validation_data=data["test"],
        epochs=epochs,
        batch_size=8,
        verbose=0,
        callbacks=[trajectory],
    )
    return trajectory
