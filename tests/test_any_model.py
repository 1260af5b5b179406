"""Any Keras model: trained, saved, loaded, fine-tuned, analysed, exported.

`python tests/test_any_model.py` prints the table that README shows.
"""

import functools
import pathlib
import sys
import tempfile
import time

import any_model
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_transfer as kt
from keras_transfer import data
from keras_transfer.export import export
from keras_transfer.training import constant, train

NUM_CLASSES = 3


def dataset(side=32):
    rng = np.random.default_rng(0)
    splits = []
    for count in (24, 12):
        labels = np.arange(count) % NUM_CLASSES
        images = rng.integers(0, 256, (count, side, side, 3))
        # What tells the classes apart: one channel is brighter.
        images[np.arange(count), :, :, labels] //= 4
        splits.append((images.astype(np.uint8), labels))
    return data.from_arrays(*splits)


def trained(path, factory, seed, side, **arguments):
    return train(
        path,
        model=factory,
        dataset=functools.partial(dataset, side),
        epochs=1,
        batch_size=12,
        schedule=functools.partial(constant, base_rate=1e-3),
        seed=seed,
        **arguments,
    )


def moved(model, seed, scale=0.01):
    """Moves a model's weights a little, in place."""
    rng = np.random.default_rng(seed)
    for v in model.trainable_variables:
        v.assign_add(rng.normal(0, scale, v.shape).astype(v.dtype))
    return model


def survey(factory, directory, side=32):
    """Does with a model all that the package does with one.

    Returns:
        dict: "modules" (their number), "read back" (largest difference of
        outputs between memory and disk) and "seconds".
    """
    began = time.perf_counter()
    directory = pathlib.Path(directory)
    p = trained(directory / "p", factory, 1, side)
    pt = trained(directory / "pt", factory, 2, side, pretrained=str(p.path))
    examples = dataset(side).examples
    images = next(iter(examples.split("test").batches(4)))[0]

    # Saved and loaded: P's body is in P-T's start, and the head is not.
    loaded, start = p.load_model(), pt.load_model(0)
    body = [
        np.array_equal(a, b)
        for a, b in zip(loaded.get_weights(), start.get_weights(), strict=True)
    ]
    assert sum(body) >= len(body) - 2 and not all(body)
    keras_file = directory / "p.keras"
    loaded.save(keras_file)
    again = keras.models.load_model(keras_file)
    outputs = [m(images, training=False) for m in (loaded, again)]
    difference = float(np.abs(outputs[0] - outputs[1]).max())
    assert difference < 1e-5

    # Analysed, with models in memory beside runs, made by the same factory.
    other = moved(pt.load_model(), 3)
    fresh = [factory(NUM_CLASSES, (side, side, 3), seed) for seed in (4, 5)]
    models = kt.Models({"P-T": [pt, other], "RI-T": fresh}, data=examples)
    check_analyses(models, pt)

    # Exported, with the probabilities of the run.
    export(pt, "last", directory / "exported")
    saved = tf.saved_model.load(str(directory / "exported" / "1"))
    raw = tf.constant(dataset(side).test.raw_images(np.arange(4)))
    found = saved.signatures["serving_default"](images=raw)["probabilities"]
    stored = kt.Models({"P-T": pt}, batch_norm="stored")
    logits = stored.logits(next(iter(stored)))[:4]
    np.testing.assert_allclose(found, tf.nn.softmax(logits), atol=1e-4)
    modules = kt.module_chain(kt.models.logits_model(loaded))
    return {
        "modules": len(modules),
        "read back": difference,
        "seconds": time.perf_counter() - began,
    }


def check_analyses(models, run, rtol=1e-3):
    """Runs every analysis; what is trivially known is checked."""
    distances = kt.distance(models)
    total = distances[distances.module == "total"].set_index("pair").l2
    assert total["P-T/P-T"] > 0 and total.notna().all()
    similar = kt.similarity(models, batch_size=12)
    assert similar.cka.between(-0.01, 1.01).mean() > 0.9
    mistakes = kt.mistakes(models)
    assert (mistakes[mistakes["class"] == "all"].decisions == 12).all()
    assert (kt.spectrum(models, num_values=3).singular_value >= 0).all()
    line = kt.interpolation(
        models, num_points=3, extent=(0, 1), splits=("test",)
    )
    ends = line[(line.alpha == 0) & (line.split == "test")]
    members = {m.name: m for m in models}
    for row in ends.itertuples():
        logits = models.logits(members[row.first])
        labels = models.examples.split("test").labels
        loss = keras.losses.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        )
        np.testing.assert_allclose(row.loss, np.mean(loss), rtol=rtol)
    assert len(kt.basin(models, num_samples=2, sensitivity=False)) == 2
    assert kt.averaging(models).loss.notna().all()
    alone = kt.Models({"P-T": [run]}, data=models.examples)
    rewound = kt.rewinding(alone, epochs=(0,), splits=("test",))
    assert rewound.loss.notna().all()
    critical = kt.criticality(
        alone,
        positions=(0.0, 1.0),
        sigmas=(0.01, 0.1),
        num_draws=2,
        refinements=0,
        levels=("block",),
    )
    assert set(critical.status) <= {"finite", "infeasible", "unbounded"}
    assert len(critical[critical.module != "total"].module.unique()) > 1


@pytest.mark.parametrize("name", any_model.QUICK)
def test_everything_works_on(name, tmp_path):
    survey(any_model.FAMILIES[name], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", any_model.SLOW)
def test_everything_works_on_large(name, tmp_path):
    side = any_model.SIDES.get(name, 32)
    survey(any_model.FAMILIES[name], tmp_path, side)


def test_everything_works_in_mixed_precision(tmp_path):
    factory = any_model.QUICK["dropout, batch and layer normalization"]
    run = trained(tmp_path / "a", factory, 1, 32, dtype_policy="mixed_bfloat16")
    model = run.load_model()
    assert model.layers[1].compute_dtype == "bfloat16"
    fresh = [factory(NUM_CLASSES, (32, 32, 3), seed) for seed in (4, 5)]
    models = kt.Models(
        {"P-T": [run, moved(model, 3)], "RI-T": fresh}, dataset().examples
    )
    check_analyses(models, run, rtol=0.05)


def test_readme_shows_the_table():
    readme = pathlib.Path(__file__).parents[1].joinpath("README.md")
    text = readme.read_text(encoding="utf-8")
    missing = [name for name in any_model.FAMILIES if f"| {name} |" not in text]
    assert not missing


def main(names):
    print("| model | modules | largest difference when read back |")
    print("|---|---|---|")
    for name in names or any_model.FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            found = survey(
                any_model.FAMILIES[name],
                directory,
                any_model.SIDES.get(name, 32),
            )
        print(
            f"| {name} | {found['modules']} | {found['read back']:.1g} |",
            f"<!-- {found['seconds']:.0f} s -->",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
