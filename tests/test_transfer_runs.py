"""P-T from P through run directories; data and layers of the user's own."""

import functools
import os
import sys
import zlib

import commands
import numpy as np
import pytest
from written_runs import reseal

from keras_transfer import data, models
from keras_transfer.errors import UserError
from keras_transfer.export import export
from keras_transfer.runs import Run
from keras_transfer.training import SGD, constant, train

OWN_MODULE = """
import gin
import keras
import numpy as np

from keras_transfer import data


@keras.saving.register_keras_serializable("{name}")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(
            shape=(shape[-1],), initializer="ones", name="scale"
        )

    def call(self, x):
        return x * self.scale


@gin.configurable(module="{name}")
def scale_net(num_classes, input_shape, seed):
    keras.utils.set_random_seed(seed)
    images = keras.Input(input_shape)
    x = Scale()(keras.layers.Flatten()(images))
    outputs = keras.layers.Dense(num_classes, activation="softmax")(x)
    return keras.Model(images, outputs)


@gin.configurable(module="{name}")
def noise(count=gin.REQUIRED, mean=None):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(2 * count, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(2 * count) % 3
    train, test = ((images[i::2], labels[i::2]) for i in range(2))
    return data.from_arrays(train, test, mean=mean)
"""
OWN_CONFIG = """
import {name}
train.model = @{name}.scale_net
train.dataset = @noise
noise.count = 32
train.epochs = 1
train.batch_size = 8
train.schedule = @schedules.constant
"""


def train_small(work_dir, dataset, **changes):
    arguments = {
        "model": functools.partial(models.fixup_resnet, widths=(4,)),
        "dataset": lambda: dataset,
        "epochs": 1,
        "batch_size": 16,
        "schedule": functools.partial(constant, base_rate=0.02),
        "optimizer": SGD,
    }
    return train(work_dir, **(arguments | changes))


def digits(**arguments):
    return data.load("digits", image_size=8, num_train=32, **arguments)


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    path = tmp_path_factory.mktemp("p") / "run"
    return train_small(path, digits(mean=0.2, std=0.7))


def test_p_t_inherits_the_normalization_of_p(tmp_path, p, caplog):
    run = train_small(tmp_path / "pt", digits(), pretrained=str(p.path))
    assert (run.info().mean, run.info().std) == ((0.2,), (0.7,))
    expected = digits(mean=0.2, std=0.7)
    for found in (run.load_data(), expected):
        images, _, _ = next(iter(found.eval_batches(batch_size=4)))
        raw = expected.test.raw_images(np.arange(4)) / 255
        np.testing.assert_allclose(images, (raw - 0.2) / 0.7, atol=1e-6)
    assert "normalized" not in caplog.text


def test_own_normalization_stands_and_the_difference_is_told(
    tmp_path, p, caplog
):
    dataset = digits(mean=0.4)
    run = train_small(tmp_path / "pt", dataset, pretrained=str(p.path))
    assert run.info().mean == (0.4,)
    assert "P was trained on images normalized by mean (0.2,)" in caplog.text
    assert "this run's are by (0.4,)" in caplog.text


def test_from_scratch_nothing_is_inherited(tmp_path):
    run = train_small(tmp_path / "rit", digits())
    assert (run.info().mean, run.info().std) == ((0.5,), (0.5,))


def test_softmax_ended_p_and_p_t(tmp_path):
    import keras

    def model(num_classes, input_shape, seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input(input_shape),
                keras.layers.Flatten(),
                keras.layers.Dense(6, activation="relu"),
                keras.layers.Dense(num_classes, activation="softmax"),
            ]
        )

    p = train_small(tmp_path / "p", digits(), model=model, seed=1)
    pt = train_small(
        tmp_path / "pt", digits(), model=model, pretrained=str(p.path)
    )
    start, source = (
        list(run.load_weights(epoch).values())
        for run, epoch in ((pt, 0), (p, 1))
    )
    for ours, theirs, same in zip(start, source, [1, 1, 0, 0], strict=True):
        assert np.array_equal(ours, theirs) == same


def write_module(folder, name):
    (folder / f"{name}.py").write_text(OWN_MODULE.format(name=name))
    (folder / "own.gin").write_text(OWN_CONFIG.format(name=name))


@pytest.fixture
def own_name(request):
    """A module's name that nothing in this process knows yet."""
    return f"own_{zlib.crc32(request.node.nodeid.encode())}"


@pytest.fixture
def own(tmp_path, monkeypatch, own_name):
    """A run with a model and data of a module beside its gin file."""
    folder = tmp_path / "here"
    folder.mkdir()
    write_module(folder, own_name)
    status, _, errors = commands.run(
        "train",
        f"--gin_file={folder}/own.gin",
        f"--work_dir={tmp_path}/run",
        cwd=folder,
    )
    assert status == 0, errors
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path / "run"), folder


def test_own_module_is_found_in_the_working_directory(
    own, own_name, monkeypatch
):
    run, folder = own
    monkeypatch.chdir(folder)
    model, dataset = run.load_model(), run.load_data()
    assert model.layers[2].name.startswith("scale")
    assert dataset.info == run.info() and len(dataset.train) == 32
    assert dataset.factory == f"{own_name}.noise"
    assert dataset.arguments == {"count": 32}
    images = dataset.test.raw_images(np.arange(4))
    rng = np.random.default_rng(0)
    expected = rng.integers(256, size=(64, 8, 8, 1))[1::2][:4]
    np.testing.assert_array_equal(images, expected)


def test_own_module_is_never_taken_from_the_run_directory(
    own, own_name, monkeypatch, caplog
):
    run, _ = own
    (run.path / f"{own_name}.py").write_text("raise SystemExit('run')")
    for folder in (run.path, run.path.parent):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path, str(run.path), ""])
        with pytest.raises(UserError, match="Scale"):
            run.load_model()
        with pytest.raises(UserError, match=f"import {own_name}"):
            run.load_data()
    assert "cannot be imported here" in caplog.text


def test_module_within_the_run_directory_is_not_taken_by_its_path(
    tmp_path, monkeypatch
):
    run = train_small(tmp_path / "runs" / "a", digits())
    (run.path / "evil.py").write_text("raise SystemExit('run')")
    text = run.config_path.read_text()
    run.config_path.write_text(f"import runs.a.evil\n{text}")
    reseal(run.path)
    monkeypatch.chdir(tmp_path)
    run.load_model()


def test_export_of_a_run_with_layers_of_its_own(own, tmp_path):
    run, folder = own
    for name, place, flags in (
        ("beside", folder, []),
        ("named", tmp_path, [f"--gin_file={folder}/own.gin"]),
    ):
        output = tmp_path / name
        status, _, errors = commands.run(
            "export",
            f"--run={run.path}",
            f"--output={output}",
            *flags,
            cwd=place,
        )
        assert status == 0, errors
        assert (output / "1").is_dir()


def test_exported_softmax_gives_logits_and_probabilities(
    own, tmp_path, monkeypatch
):
    import tensorflow as tf

    run, folder = own
    monkeypatch.chdir(folder)
    export(run, "last", tmp_path / "exported")
    served = tf.saved_model.load(str(tmp_path / "exported" / "1"))
    images = run.load_data().test.raw_images(np.arange(6))
    out = served.signatures["serving_default"](images=tf.constant(images))
    weights = list(run.load_weights().values())
    scale, kernel, bias = weights
    inputs = ((images / 255 - 0.5) / 0.5).reshape(6, -1)
    logits = (inputs * scale) @ kernel + bias
    np.testing.assert_allclose(out["logits"], logits, atol=1e-5)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        out["probabilities"], odds / odds.sum(1, keepdims=True), atol=1e-6
    )
    assert sorted(os.listdir(tmp_path / "exported")) == [
        "1",
        "README.md",
        "labels.json",
        "model.keras",
        "preprocessing.json",
        "saved_model",
    ]


def test_export_of_a_kerashub_model(tmp_path):
    import keras
    import tensorflow as tf

    hub = pytest.importorskip("keras_hub", reason="builds a KerasHub model")

    def model(num_classes, input_shape, seed):
        keras.utils.set_random_seed(seed)
        backbone = hub.models.ViTBackbone(
            image_shape=input_shape,
            patch_size=4,
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            mlp_dim=16,
        )
        return hub.models.ViTImageClassifier(
            backbone, num_classes=num_classes, preprocessor=None
        )

    run = train_small(tmp_path / "run", digits(channels=3), model=model)
    export(run, "last", tmp_path / "exported")
    served = tf.saved_model.load(str(tmp_path / "exported" / "1"))
    dataset = run.load_data()
    raw = dataset.test.raw_images(np.arange(5))
    batch, _, _ = next(iter(dataset.eval_batches(batch_size=5)))
    out = served.signatures["serving_default"](images=tf.constant(raw))
    expected = run.load_model()(batch, training=False)
    np.testing.assert_allclose(out["logits"], expected, atol=1e-5)
    again = keras.saving.load_model(tmp_path / "exported" / "model.keras")
    np.testing.assert_allclose(again(batch), expected, atol=1e-6)


def test_dataset_of_another_kind_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="train.dataset must make .*ndarray"):
        train_small(tmp_path / "run", np.zeros(3))
    assert not (tmp_path / "run").exists()
