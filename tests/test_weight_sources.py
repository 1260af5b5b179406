"""Weights from files of every kind, against the models that wrote them.

Run as a program, it prints what of each kind is copied into which network:

    python tests/test_weight_sources.py
"""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import gin
import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy
import written_runs

import keras_transfer as kt
from keras_transfer import config, data, models
from keras_transfer.errors import UserError
from keras_transfer.models import weight_sources
from keras_transfer.runs import Run
from keras_transfer.runs.checkpoints import write_arrays
from keras_transfer.training import SGD, cosine, setup, train

layers = keras.layers


def randomize(model, seed=1):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.uniform(0.1, 0.4, variable.shape))
    return model


def mixed(classes=4, channels=3):
    """Layers of many kinds, most of them named by Keras."""
    x = images = keras.Input((12, 12, channels))
    for width in (4, 6):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.1)(x)
    return keras.Model(images, layers.Dense(classes, name="head")(x))


def assert_like(model, source):
    """Whether a model gives what another does, to 1e-6."""
    shape = (3, *source.input_shape[1:])
    images = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    found, expected = model(images), source(images)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def write_run(model, path):
    run = Run(path)
    run.begin("", model, written_runs.data_for(model))
    run.save(0, mixed())
    run.save(1, model)


def write_keras_2(model, path):
    """Weights as Keras 2 wrote them: by layer, in order, with numbers."""
    with h5py.File(path, "w") as file:
        own = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in own]
        file.attrs["backend"] = b"tensorflow"
        for layer in own:
            group = file.create_group(layer.name)
            named = [f"{layer.name}/{w.name}:0" for w in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in named]
            for name, weight in zip(named, layer.weights, strict=True):
                group.create_dataset(name, data=weight.numpy())


def write_safetensors(model, path):
    write_arrays(path, models.named_weights(model))


def write_export(model, path):
    model.export(path, verbose=False)


SOURCES = {
    "run": ("run", write_run),
    "keras": ("p.keras", lambda model, path: model.save(path)),
    "weights_h5": (
        "p.weights.h5",
        lambda model, path: model.save_weights(path),
    ),
    "keras_2": ("p.h5", write_keras_2),
    "saved_model": ("exported", write_export),
    "safetensors": ("p.safetensors", write_safetensors),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_each_source_gives_the_same_outputs(tmp_path, kind):
    """All is copied where the head is no exception."""
    name, write = SOURCES[kind]
    source, model = randomize(mixed()), mixed()
    write(source, tmp_path / name)
    report = kt.initialize_from(model, str(tmp_path / name), head=())
    assert not report.fresh
    assert not report.unused
    assert_like(model, source)
    assert name in str(report)


@pytest.mark.parametrize("kind", SOURCES)
def test_each_source_leaves_a_head_of_other_classes(tmp_path, kind):
    name, write = SOURCES[kind]
    source, model = randomize(mixed(9)), mixed(4)
    write(source, tmp_path / name)
    head = [w.numpy() for w in model.weights[-2:]]
    report = models.initialize_from(model, tmp_path / name)
    assert report.fresh == ("head/kernel", "head/bias")
    for ours, theirs in zip(
        model.weights[:-2], source.weights[:-2], strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    for ours, before in zip(model.weights[-2:], head, strict=True):
        np.testing.assert_array_equal(ours, before)


@pytest.mark.parametrize("kind", ["keras", "weights_h5", "safetensors"])
def test_a_kind_is_told_by_content(tmp_path, kind):
    _, write = SOURCES[kind]
    source, model = randomize(mixed()), mixed()
    name, _ = SOURCES[kind]
    write(source, tmp_path / name)
    (tmp_path / name).rename(tmp_path / "weights")
    models.initialize_from(model, tmp_path / "weights", head=())
    assert_like(model, source)


def test_read_weights_gives_arrays_by_path(tmp_path):
    source = randomize(mixed())
    for name, write in SOURCES.values():
        write(source, tmp_path / name)
        found = kt.read_weights(tmp_path / name)
        arrays = [v for v in found.values() if "float" in v.dtype.name]
        assert len(arrays) == len(source.weights)
        if not name.endswith("weights.h5"):
            for ours, theirs in zip(arrays, source.weights, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert kt.read_weights(source).keys() == models.named_weights(source).keys()
    dictionary = models.named_weights(source)
    models.initialize_from(model := mixed(), dictionary, head=())
    assert_like(model, source)


def test_weights_that_keras_2_wrote(tmp_path):
    """Written by its own code, which is there as tf_keras."""
    tf_keras = pytest.importorskip("tf_keras", reason="writes Keras 2's files")
    old = tf_keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=5, alpha=0.35
    )
    rng = np.random.default_rng(0)
    old.set_weights([rng.uniform(0.1, 0.3, w.shape) for w in old.get_weights()])
    old.save_weights(tmp_path / "p.h5")
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=5, alpha=0.35
    )
    report = models.initialize_from(model, tmp_path / "p.h5", head=())
    assert not report.fresh
    assert not report.unused
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images), old(images), rtol=1e-5)


def test_a_saved_model_of_tensorflow_itself(tmp_path):
    tf = pytest.importorskip("tensorflow")
    source, model = randomize(mixed(9)), mixed(4)
    tf.saved_model.save(source, tmp_path / "saved")
    report = models.initialize_from(model, tmp_path / "saved")
    assert len(report.fresh) == 2


def test_a_preset_of_keras_hub(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="writes a preset")
    source = randomize(hub_resnet(hub, 4))
    source.save_to_preset(str(tmp_path / "preset"))
    model = models.keras_hub_classifier(
        4, (32, 32, 3), preset=str(tmp_path / "preset")
    )
    report = models.initialize_from(model, tmp_path / "preset")
    assert report.fresh == ("predictions/kernel", "predictions/bias")
    for ours, theirs in zip(
        model.weights[:-2], source.weights[:-2], strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


# PyTorch's.


def write_with_torch(kind, directory):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed, which writes these files")
    script = pathlib.Path(__file__).with_name("torch_files.py")
    subprocess.run([sys.executable, script, kind, directory], check=True)
    path = directory / "expected.npz"
    return np.load(path) if path.exists() else None


def hub_resnet(hub, classes):
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[8],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 96],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        image_shape=(32, 32, 3),
    )
    return hub.models.ResNetImageClassifier(backbone, num_classes=classes)


TORCH = ["plain.pth", "wrapped.pth", "old.pth", "model.safetensors"]


def test_the_published_fixup_resnets(tmp_path):
    expected = write_with_torch("fixup", tmp_path)
    for name in TORCH:
        model = models.fixup_resnet18(7, (32, 32, 3))
        report = models.initialize_from(model, tmp_path / name, head=())
        assert not report.fresh
        assert not report.unused
        found = model(expected["images"])
        size = np.abs(expected["outputs"]).max()
        np.testing.assert_allclose(
            found / size, expected["outputs"] / size, atol=1e-6
        )
    model = models.fixup_resnet18(3, (32, 32, 3))
    report = models.initialize_from(model, tmp_path / "wrapped.pth")
    assert report.fresh == ("fc.dense/kernel", "fc.dense/bias")
    assert "module.fc.weight" in report.unused
    # Another depth has other names.
    deeper = models.fixup_resnet34(3, (32, 32, 3))
    before = deeper.get_weights()
    with pytest.raises(UserError, match=r"different architecture.*'layer"):
        models.initialize_from(deeper, tmp_path / "plain.pth")
    for ours, theirs in zip(deeper.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="weights match"):
        models.initialize_from(mixed(), tmp_path / "plain.pth")
    gray = models.fixup_resnet18(7, (32, 32, 1))
    report = models.initialize_from(gray, tmp_path / "plain.pth", head=())
    assert "summed" in report.reshaped["conv1.conv/kernel"]
    with pytest.raises(UserError, match=r"\(7, 7, 4, 64\).*\(7, 7, 3, 64\)"):
        models.initialize_from(
            models.fixup_resnet18(7, (32, 32, 4)), tmp_path / "plain.pth"
        )


def test_the_resnets_of_torchvision_and_timm(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="has these networks")
    expected = write_with_torch("resnet", tmp_path)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text(
        json.dumps({"architecture": "resnet14", "num_classes": 7})
    )
    (tmp_path / "model.safetensors").rename(
        tmp_path / "timm" / "model.safetensors"
    )
    for name in ["plain.pth", "timm"]:
        model = hub_resnet(hub, 7)
        report = models.initialize_from(model, tmp_path / name, head=())
        assert not report.fresh
        assert not report.unused
        np.testing.assert_allclose(
            model(expected["images"]), expected["outputs"], rtol=1e-5
        )


def test_a_file_that_would_execute_is_not_run(tmp_path):
    write_with_torch("hostile", tmp_path)
    with pytest.raises(UserError, match=r"hostile.pth holds Python code"):
        kt.read_weights(tmp_path / "hostile.pth")
    assert not (tmp_path / "was_here").exists()
    with pytest.raises(UserError, match="without a state dict"):
        kt.read_weights(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="several state dicts: model, ema"):
        kt.read_weights(tmp_path / "both.pth")


def test_without_torch_it_says_so(tmp_path, monkeypatch):
    (tmp_path / "p.pth").write_bytes(b"\x80\x02}q\x00.")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install torch"):
        kt.read_weights(tmp_path / "p.pth")


def test_layers_named_as_the_modules_of_torch(tmp_path):
    """All kinds of kernels are transposed; written as torch has them."""
    rng = np.random.default_rng(0)
    x = images = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="stem.conv")(x)
    x = layers.BatchNormalization(name="stem.bn")(x)
    x = layers.DepthwiseConv2D(2, name="features.0")(x)
    x = layers.Conv2DTranspose(4, 3, name="up")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(4, name="mlp")(x)
    model = keras.Model(images, layers.Dense(2, name="fc")(x))
    state = {
        "stem.conv.weight": rng.normal(size=(4, 3, 3, 3)),
        "stem.conv.bias": rng.normal(size=4),
        "stem.bn.weight": rng.normal(size=4),
        "stem.bn.bias": rng.normal(size=4),
        "stem.bn.running_mean": rng.normal(size=4),
        "stem.bn.running_var": rng.uniform(size=4),
        "stem.bn.num_batches_tracked": np.array(3),
        "features.0.weight": rng.normal(size=(4, 1, 2, 2)),
        "features.0.bias": rng.normal(size=4),
        "up.weight": rng.normal(size=(4, 4, 3, 3)),
        "up.bias": rng.normal(size=4),
        "mlp.weight": rng.normal(size=(4, 4)),
        "mlp.bias": rng.normal(size=4),
        "fc.weight": rng.normal(size=(7, 4)),
        "fc.bias": rng.normal(size=7),
    }
    safetensors.numpy.save_file(state, tmp_path / "p.safetensors")
    report = models.initialize_from(model, tmp_path / "p.safetensors")
    assert report.fresh == ("fc/kernel", "fc/bias")
    found = {v.path: v.numpy() for v in model.weights}
    expected = {
        "stem.conv/kernel": np.einsum("oihw->hwio", state["stem.conv.weight"]),
        "features.0/kernel": np.einsum(
            "cmhw->hwcm", state["features.0.weight"]
        ),
        "up/kernel": np.einsum("iohw->hwoi", state["up.weight"]),
        "mlp/kernel": state["mlp.weight"].T,
        "stem.bn/moving_variance": state["stem.bn.running_var"],
    }
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-6)


# A map of the user's own.


def test_names_of_the_users_own():
    source, model = randomize(mixed(channels=1)), mixed(channels=1)
    named = models.named_weights(source)
    floats = [n for n, v in named.items() if "float" in v.dtype.name]
    theirs = {f"block/{i}": named[n] for i, n in enumerate(floats)}
    paths = [w.path for w in model.weights]
    names = {path: f"block/{i}" for i, path in enumerate(paths)}
    gin.bind_parameter("initialize_from.weight_names", names)
    report = models.initialize_from(model, theirs)
    assert not report.fresh
    assert_like(model, source)


def test_a_layer_named_by_the_user():
    model = mixed()
    conv = model.weights[0].path.rpartition("/")[0]
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    theirs = weight_sources.Weights(
        {"features.0.weight": kernel, "other": kernel}, "vgg", "torch"
    )
    report = models.initialize_from(
        model, theirs, weight_names={conv: "features.0"}
    )
    np.testing.assert_allclose(
        model.weights[0], np.einsum("oihw->hwio", kernel), rtol=1e-6
    )
    assert report.copied == {f"{conv}/kernel": "features.0.weight"}
    assert report.unused == ("other",)
    with pytest.raises(UserError, match=r"no weight of this name.*features.1"):
        models.initialize_from(model, theirs, weight_names={conv: "features.1"})
    with pytest.raises(UserError, match="neither a weight nor a layer"):
        models.initialize_from(model, theirs, weight_names={"conv9": "other"})


def test_a_layer_of_a_file_of_keras_named_by_the_user(tmp_path):
    source, model = randomize(mixed()), mixed()
    source.save_weights(tmp_path / "p.weights.h5")
    conv, last = (model.weights[i].path.rpartition("/")[0] for i in (0, 7))
    names = {conv: "layers/conv2d", last: "layers/conv2d_1"}
    path = tmp_path / "p.weights.h5"
    report = models.initialize_from(model, path, weight_names=names)
    assert report.copied == {
        f"{conv}/kernel": "layers/conv2d/vars/0",
        f"{last}/kernel": "layers/conv2d_1/vars/0",
    }
    np.testing.assert_array_equal(model.weights[7], source.weights[7])
    names = {conv: "layers/conv"}
    with pytest.raises(UserError, match=r"no weights of 'layers/conv'.*conv2d"):
        models.initialize_from(model, path, weight_names=names)
    names = {conv: "layers/depthwise_conv2d"}
    with pytest.raises(UserError, match="2 weights in .*, and the model 1"):
        models.initialize_from(model, path, weight_names=names)


def test_sorted_weights_are_not_taken_for_those_of_an_order(tmp_path):
    """Numbered by Keras, and sorted, the tenth comes before the second."""

    def build(first):
        x = images = keras.Input((4, 4, 3))
        for i in range(first, first + 12):
            x = layers.Conv2D(3, 1, use_bias=False, name=f"conv2d_{i}")(x)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(images, layers.Dense(2, name="out")(x))

    source, model = randomize(build(1)), build(31)
    path = tmp_path / "p.safetensors"
    safetensors.numpy.save_file(models.named_weights(source), path)
    with pytest.raises(UserError, match="0 of 12 weights match"):
        models.initialize_from(model, path)
    write_safetensors(source, path)
    models.initialize_from(model, path, head=())
    assert_like(model, source)


def test_named_layers_are_found_among_others():
    """By their own names, never by those that Keras numbers."""

    def build(*names, further=()):
        x = images = keras.Input((4, 4, 3))
        for name in names:
            x = layers.Conv2D(3, 1, name=name)(x)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(images, layers.Dense(2, name="out")(x))

    known = [f"stage_{i}_a" for i in range(20)]
    source = randomize(build(*known))
    model = build(*known[:5], "extra_a", *known[5:])
    report = models.initialize_from(model, source)
    assert set(report.fresh) == {
        "extra_a/kernel",
        "extra_a/bias",
        "out/kernel",
        "out/bias",
    }
    numbered = [f"conv2d_{i}" for i in range(100, 122)]
    with pytest.raises(UserError, match="different architecture"):
        models.initialize_from(build(*numbered[1:]), build(*numbered))


# What is none, or damaged.


class Doubling(layers.Layer):
    pass


def test_a_lambda_is_not_run(tmp_path):
    images = keras.Input((4, 4, 1))
    x = layers.Lambda(lambda x: 2 * x)(layers.Flatten()(images))
    keras.Model(images, layers.Dense(2)(x)).save(tmp_path / "p.keras")
    with pytest.raises(UserError, match=r"p.keras holds a Lambda"):
        kt.read_weights(tmp_path / "p.keras")


def damaged_safetensors(path):
    write_safetensors(mixed(), path)
    path.write_bytes(path.read_bytes()[:-40])


def damaged_h5(path):
    path = path.with_suffix(".weights.h5")
    mixed().save_weights(path)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def damaged_keras(path):
    path = path.with_suffix(".keras")
    mixed().save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


def empty_h5(path):
    with h5py.File(path, "w") as file:
        file.attrs["made"] = "by hand"


def frozen(path):
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"graph")


BAD = {
    "absent": (lambda path: None, "no file and no directory"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "web page": (
        lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"),
        "is a web page",
    ),
    "lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/v1"),
        "git lfs pull",
    ),
    "text": (lambda path: path.write_text("weights"), "no kind known here"),
    "directory": (lambda path: path.mkdir(), "holds no weights known"),
    "safetensors": (damaged_safetensors, "damaged, or was cut short"),
    "h5": (damaged_h5, "damaged, or was cut short"),
    "keras": (damaged_keras, "cut short or damaged"),
    "zip": (other_zip, "archive without weights"),
    "empty h5": (empty_h5, "without weights"),
    "frozen": (frozen, "without variables"),
    "torch": (
        lambda path: path.write_bytes(b"\x80\x02\x8a\x0al\xfc"),
        "PyTorch",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_none_is_a_sentence(tmp_path, kind):
    write, message = BAD[kind]
    if kind == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed, which says what it is")
    path = tmp_path / "p"
    path = made if isinstance(made := write(path), pathlib.Path) else path
    model = mixed()
    before = model.get_weights()
    with pytest.raises(UserError, match=message) as caught:
        models.initialize_from(model, path)
    assert str(path) in str(caught.value)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_come_from_no_number():
    with pytest.raises(UserError, match="functional Keras model.*Received: 3"):
        kt.read_weights(3)


# Networks by name, and training from files.


def test_networks_by_name():
    application = functools.partial(
        models.keras_application, name="MobileNetV2", arguments={"alpha": 0.35}
    )
    first, again, other = (
        application(5, (32, 32, 3), seed=seed).get_weights()
        for seed in (1, 1, 2)
    )
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first[0], other[0])
    model = application(5, (32, 32, 3))
    assert model.output_shape == (None, 5)
    assert model.layers[-1].activation is keras.activations.linear
    vgg = models.keras_application(
        5, (48, 48, 1), name="VGG16", include_top=False
    )
    assert vgg.output_shape == (None, 5)
    assert vgg.count_params() < 15e6
    with pytest.raises(UserError, match="names nothing in keras.app.*'VGG17'"):
        models.keras_application(5, (48, 48, 1), name="VGG17")
    with pytest.raises(UserError, match="cannot be built"):
        models.keras_application(5, (8, 8, 3), name="VGG16")


def test_networks_of_keras_hub_by_name():
    pytest.importorskip("keras_hub")
    model = models.keras_hub_classifier(
        5,
        (16, 16, 3),
        backbone="ViTBackbone",
        arguments={
            "patch_size": 8,
            "num_layers": 2,
            "num_heads": 2,
            "hidden_dim": 8,
            "mlp_dim": 16,
        },
    )
    assert model.output_shape == (None, 5)
    with pytest.raises(UserError, match="backbone or the directory"):
        models.keras_hub_classifier(5, (16, 16, 3))
    with pytest.raises(UserError, match="cannot be built"):
        models.keras_hub_classifier(5, (16, 16, 3), backbone="ViTBackbone")


def train_digits(work_dir, **changes):
    digits = data.load("digits", image_size=8, num_train=32)
    arguments = {
        "model": functools.partial(models.fixup_resnet, widths=(4, 8)),
        "dataset": lambda: digits,
        "epochs": 1,
        "batch_size": 16,
        "schedule": functools.partial(cosine, base_rate=0.05),
        "optimizer": SGD,
    }
    return train(work_dir, **(arguments | changes))


def test_images_are_normalized_as_a_preset_says(tmp_path, capsys):
    """As timm and Hugging Face write it beside the weights."""
    arrays = {"conv1.weight": np.zeros((2, 3, 1, 1), np.float32)}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    files = {
        "timm": {
            "config.json": {
                "architecture": "resnet18",
                "pretrained_cfg": {"mean": mean, "std": std},
            }
        },
        "face": {
            "config.json": {"model_type": "resnet"},
            "preprocessor_config.json": {"image_mean": mean, "image_std": std},
        },
    }
    for name, contents in files.items():
        (tmp_path / name).mkdir()
        for file, content in contents.items():
            (tmp_path / name / file).write_text(json.dumps(content))
        safetensors.numpy.save_file(arrays, tmp_path / name / "m.safetensors")
        source = setup.pretrained_source(str(tmp_path / name), "last")
        digits = data.load("digits", image_size=8, channels=3, num_train=32)
        found = setup.normalized_as(digits, source).info
        assert (found.mean, found.std) == (tuple(mean), tuple(std))
        assert "normalized as P's: mean (0.485" in capsys.readouterr().out
        gray = data.load("digits", image_size=8, num_train=32)
        with pytest.raises(UserError, match=f"{name}.*set channels=3"):
            setup.normalized_as(gray, source)


def test_the_configuration_for_published_weights():
    config.parse(
        [
            str(
                pathlib.Path(__file__).parents[1]
                / "gin/pt_imagenet_weights.gin"
            )
        ],
        [],
    )
    model = gin.query_parameter("train.model").configurable.wrapper
    assert model(5, (32, 32, 3)).output_shape == (None, 5)


def test_training_from_a_file(tmp_path, capsys):
    source = randomize(models.fixup_resnet(3, (8, 8, 1), (4, 8)))
    source.save(tmp_path / "p.keras")
    run = train_digits(tmp_path / "pt", pretrained=str(tmp_path / "p.keras"))
    start = run.load_weights(0)
    for weight in source.weights[:-2]:
        np.testing.assert_array_equal(start[weight.path], weight)
    said = capsys.readouterr().out
    assert "weights are those of" in said
    assert "fresh: 'fc.dense/kernel', 'fc.dense/bias'" in said
    with pytest.raises(UserError, match="pretrained_epoch is for run"):
        train_digits(
            tmp_path / "b",
            pretrained=str(tmp_path / "p.keras"),
            pretrained_epoch="best",
        )
    (tmp_path / "page.h5").write_text("<html>")
    with pytest.raises(UserError, match="web page"):
        train_digits(tmp_path / "c", pretrained=str(tmp_path / "page.h5"))
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "c").exists()


# What is printed.


def hub_vit(hub):
    return models.keras_hub_classifier(
        7,
        (32, 32, 3),
        backbone="ViTBackbone",
        arguments={
            "patch_size": 8,
            "num_layers": 2,
            "num_heads": 2,
            "hidden_dim": 8,
            "mlp_dim": 16,
        },
    )


def architectures():
    """Returns {name: (factory, kind of PyTorch's file or None)}."""
    import keras_hub as hub

    mobile = functools.partial(
        models.keras_application, name="MobileNetV2", arguments={"alpha": 0.35}
    )
    return {
        "layers named by Keras": (mixed, None),
        "Fixup ResNet-18": (
            lambda: models.fixup_resnet18(7, (32, 32, 3)),
            "fixup",
        ),
        "MobileNetV2": (lambda: mobile(7, (32, 32, 3)), None),
        "KerasHub ResNet": (lambda: hub_resnet(hub, 7), "resnet"),
        "KerasHub ViT": (lambda: hub_vit(hub), None),
    }


def copied(model, source, expected, images):
    """Copies all that a source has; returns cells of the table."""
    report = models.initialize_from(model, source, head=())
    found = model(images, training=False)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    counts = (report.copied, report.fresh, report.unused)
    return [*map(len, counts), f"{difference:.1g}"]


def rows(build, kind, directory):
    """Yields the cells of one architecture's rows."""
    source = build()
    rng = np.random.default_rng(0)
    for weight in source.weights:
        weight.assign(weight + rng.uniform(0, 0.02, weight.shape))
    images = rng.normal(size=(4, *source.input_shape[1:])).astype(np.float32)
    expected = np.asarray(source(images, training=False))
    for name, (file, write) in SOURCES.items():
        # Keras 2's layers held no others.
        if name == "keras_2" and any(
            isinstance(layer, keras.Model) for layer in source.layers
        ):
            continue
        write(source, directory / file)
        yield name, *copied(build(), directory / file, expected, images)
    if hasattr(source, "save_to_preset"):
        preset = directory / "preset"
        source.save_to_preset(str(preset))
        model = build()
        report = models.initialize_from(model, preset)
        yield "preset", len(report.copied), len(report.fresh), 0, "(a backbone)"
    if kind:
        found = write_with_torch(kind, directory)
        for name in TORCH:
            cells = copied(
                build(), directory / name, found["outputs"], found["images"]
            )
            yield f"PyTorch: {name}", *cells


def main():
    print("| network | source | copied | fresh | unused | difference |")
    print("|---|---|---|---|---|---|")
    for name, (build, kind) in architectures().items():
        with tempfile.TemporaryDirectory() as directory:
            for row in rows(build, kind, pathlib.Path(directory)):
                print("|", " | ".join(map(str, (name, *row))), "|", flush=True)


if __name__ == "__main__":
    main()
