"""Exported models against the run, and each format read by its own library."""

import importlib.util
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
import written_runs
from PIL import Image
from sklearn.datasets import load_digits
from test_weight_sources import hub_resnet

from keras_transfer import data, models
from keras_transfer.errors import UserError
from keras_transfer.export import export, one_size, read_size, torch_weights
from keras_transfer.export import onnx as onnx_format
from keras_transfer.models import weight_sources

ALL = ("saved_model", "keras", "onnx", "litert", "safetensors")
TESTS = pathlib.Path(__file__).parent


def run_of(path, image_size=12, **arguments):
    """Writes a run on the digits, brought to a size of their own."""
    dataset = data.load("digits", image_size=image_size, num_train=32)
    run = written_runs.write_run(path, dataset, seed=1, **arguments)
    rows = [
        {"epoch": e, "step": e, "split": "test", "loss": 0.5, "accuracy": e / 4}
        for e in run.epochs()
    ]
    run.write_metrics(rows)
    run.write_best(2, "accuracy", 0.5)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "pt digits")


@pytest.fixture(scope="module")
def exported(run):
    pytest.importorskip("tf2onnx", reason="writes ONNX")
    output = run.path.parent / "out" / "exported"
    export(run, "best", output, ALL, (8, 8))
    return output


@pytest.fixture(scope="module")
def images():
    """50 digits as scikit-learn has them."""
    found = np.round(load_digits().images[:50] * (255 / 16)).astype(np.uint8)
    return found[..., None]


@pytest.fixture(scope="module")
def expected(run, images):
    inputs = data.preprocess(tf.constant(images), run.info())
    return run.load_model("best")(inputs).numpy()


def assert_served(found, expected):
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
    odds = np.exp(expected - expected.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        found["probabilities"], odds / odds.sum(1, keepdims=True), atol=1e-6
    )


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    return file.getvalue()


def in_own_process(code, directory, packages=()):
    """Runs Python in a directory, where nothing but `packages` is found."""
    paths = os.pathsep.join(map(str, packages))
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


# The formats.


def test_the_saved_model_takes_images_as_numbers_and_as_files(
    exported, images, expected
):
    # One version, as TensorFlow Serving has it.
    assert (exported / "1" / "saved_model.pb").is_file()
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    files = tf.constant([png(image) for image in images])
    for name, given in (
        ("serving_default", images),
        ("serving_float", (images / 255).astype(np.float32)),
        ("serving_encoded", files),
    ):
        found = signatures[name](images=tf.constant(given))
        assert_served(found, expected)
    # Each file may have a size of its own; a white one stays white.
    white = [
        png(np.full((h, w, 1), 255, np.uint8)) for h, w in ((5, 9), (30, 8))
    ]
    found = signatures["serving_encoded"](images=tf.constant(white))["logits"]
    same = np.full((1, 12, 12, 1), 255, np.uint8)
    alone = signatures["serving_default"](images=tf.constant(same))["logits"]
    np.testing.assert_allclose(found, np.repeat(alone, 2, 0), atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["serving_encoded"](images=tf.constant([b"no image"]))
    # Where it lay before.
    assert (exported / "saved_model" / "saved_model.pb").is_file()


def test_onnx_gives_what_the_run_does(exported, images, expected):
    runtime = pytest.importorskip("onnxruntime", reason="reads ONNX")
    session = runtime.InferenceSession(exported / "model.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    assert given.shape == ["n", 8, 8, 1]
    names = ["logits", "probabilities"]
    values = session.run(names, {"images": images})
    assert_served(dict(zip(names, values, strict=True)), expected)


def test_litert_gives_what_the_run_does(exported, images, expected):
    interpreter = tf.lite.Interpreter(str(exported / "model.tflite"))
    # TensorFlow's own operators would need more than LiteRT.
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    assert not [name for name in names if name.startswith("Flex")]
    runner = interpreter.get_signature_runner()
    assert_served(runner(images=images), expected)


def test_the_card_says_what_to_import_and_calls_each(
    exported, images, expected
):
    card = (exported / "README.md").read_text()
    assert card.startswith("# pt digits, epoch 2\n")
    for part in (
        "for 10 classes of images",
        "| Classes | 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |",
        "| Test accuracy | 0.5000, on 797 images |",
        "the best of its run by test accuracy",
        "mean = 0.5\n",
        "[n, 8, 8, 1]",
    ):
        assert part in card, part
    assert not re.search(r"[{}]%|\n\n\n", card)
    assert "mixed precision" not in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    of_keras = next(b for b in blocks if "model.keras" in b)
    # In the size that the network sees, as the card says.
    sized = tf.image.resize(images, (12, 12), antialias=True) + 0.5
    np.save(exported.parent / "images.npy", np.floor(sized))
    np.save(exported.parent / "expected.npy", expected)
    in_own_process(
        "import numpy as np\n"
        "images, mean, std = np.load('../images.npy'), 0.5, 0.5\n"
        f"{of_keras}\n"
        "expected = np.load('../expected.npy')\n"
        "np.testing.assert_allclose(outputs, expected, atol=1e-5)\n",
        exported,
        packages=[commands.ROOT],
    )
    others = [b for b in blocks if "tf.saved" in b or "onnxruntime" in b]
    if importlib.util.find_spec("ai_edge_litert"):
        others += [b for b in blocks if "ai_edge_litert" in b]
    np.save(exported.parent / "raw.npy", images)
    check = (
        "found = outputs['probabilities'] if 'outputs' in dir() else "
        "probabilities\n"
        "np.testing.assert_allclose(found, odds / odds.sum(1)[:, None], "
        "atol=1e-5)\n"
        "probabilities = outputs = None\n"
        "del outputs\n"
    )
    code = "".join(block + check for block in others)
    in_own_process(
        "import numpy as np\n"
        "images, odds = np.load('../raw.npy'), np.load('../expected.npy')\n"
        f"odds = np.exp(odds)\n{code}",
        exported,
    )


def test_labels_and_normalization_stand_beside(exported, run):
    labels = json.loads((exported / "labels.json").read_text())
    assert labels == [str(digit) for digit in range(10)]
    found = json.loads((exported / "preprocessing.json").read_text())
    assert (found["mean"], found["std"]) == ([0.5], [0.5])
    assert found["image_shape"] == [12, 12, 1]


# Weights for others.


def test_safetensors_is_read_by_torch(exported, run, images, expected):
    pytest.importorskip("safetensors.torch", reason="PyTorch reads it")
    inputs = data.preprocess(tf.constant(images), run.info())
    np.save(exported.parent / "inputs.npy", np.moveaxis(inputs, 3, 1))
    np.save(exported.parent / "expected.npy", expected)
    in_own_process(
        "import numpy as np, torch, safetensors.torch, torch_fixup\n"
        "network = torch_fixup.torch_network('', 1, (4, 8), (1, 1), 2, 10)\n"
        "weights = safetensors.torch.load_file('exported/model.safetensors')\n"
        "network.load_state_dict(weights, strict=True)\n"
        "with torch.no_grad():\n"
        "    found = network(torch.tensor(np.load('inputs.npy')))\n"
        "expected = np.load('expected.npy')\n"
        "np.testing.assert_allclose(found, expected, atol=1e-5)\n",
        exported.parent,
        packages=[TESTS],
    )


def test_a_resnet_of_keras_hub_is_read_by_torch(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="has this ResNet")
    pytest.importorskip("torch", reason="reads what is written")
    keras.utils.set_random_seed(0)
    model = hub_resnet(hub, 7)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + rng.uniform(0, 0.02, weight.shape))
    inputs = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    torch_weights.write(model, tmp_path / "p.safetensors")
    np.save(tmp_path / "inputs.npy", np.moveaxis(inputs, 3, 1))
    np.save(tmp_path / "expected.npy", model(inputs, training=False))
    in_own_process(
        "import numpy as np, torch, safetensors.torch, torch_files\n"
        "network = torch_files.resnet()\n"
        "weights = safetensors.torch.load_file('p.safetensors')\n"
        "network.load_state_dict(weights, strict=True)\n"
        "with torch.no_grad():\n"
        "    found = network.eval()(torch.tensor(np.load('inputs.npy')))\n"
        "expected = np.load('expected.npy')\n"
        "np.testing.assert_allclose(found, expected, rtol=1e-4)\n",
        tmp_path,
        packages=[TESTS],
    )


@pytest.mark.parametrize(
    "name", ["", "1", "saved_model", "model.keras", "model.safetensors"]
)
def test_what_is_exported_is_a_source_of_weights(exported, run, name):
    source = run.load_model("best")
    model = written_runs.build(10, (12, 12, 1), seed=9)
    report = models.initialize_from(model, exported / name, head=())
    assert not report.fresh
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # P's normalization comes with it.
    opened = weight_sources.open_source(exported / name)
    assert (opened.mean, opened.std) == ((0.5,), (0.5,))


def test_the_newest_version_of_a_saved_model_is_read(tmp_path):
    for version, bias in (("9", 1.0), ("10", 2.0), ("notes", 3.0)):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.layers[-1].bias.assign([bias])
        model.export(tmp_path / version, verbose=False)
    found = weight_sources.read_weights(tmp_path)
    assert [2.0] in [list(np.ravel(value)) for value in found.values()]
    assert [1.0] not in [list(np.ravel(value)) for value in found.values()]


# Preprocessing at one size.


def info_of(size, channels=3, **others):
    arguments = {"fit": "crop", "resize": size} | others
    return data.Info(
        name="photos",
        image_shape=(size, size, channels),
        class_names=("a", "b"),
        multi_label=False,
        mean=(0.4,) * channels,
        std=(0.25,) * channels,
        num_train=1,
        num_test=1,
        **arguments,
    )


PREPROCESSING = {
    "larger": ((8, 8), info_of(12, 1)),
    "smaller": ((60, 145), info_of(32, resize=48)),
    "upright": ((145, 60), info_of(32)),
    "as it is": ((16, 16), info_of(16)),
    "blocks": ((20, 20), info_of(16, shuffle="blocks", block_size=4)),
    "pixels": ((20, 20), info_of(16, shuffle="pixels")),
    "X-ray": ((60, 45), info_of(32, fit="xray")),
    "gray X-ray": ((45, 60), info_of(32, 1, fit="xray")),
}


def noise(size, channels):
    rng = np.random.default_rng(0)
    found = rng.normal(120, 60, (4, *size, channels)).clip(0, 255)
    found[1:2] = 77  # Of one level, there is nothing to equalize.
    return found.astype(np.uint8)


@pytest.mark.parametrize("kind", PREPROCESSING)
def test_preprocessing_at_one_size_is_the_same_to_the_last_bit(kind):
    size, info = PREPROCESSING[kind]
    images = tf.constant(noise(size, info.image_shape[-1]))
    found = one_size.preprocess(images, info)
    np.testing.assert_array_equal(found, data.preprocess(images, info))


class Preprocessed(one_size.ServedModel):
    """What a served model's network would see."""

    def call(self, images):
        return {"inputs": one_size.preprocess(images, self._info)}


@pytest.mark.parametrize("kind", ["smaller", "X-ray"])
def test_it_is_the_same_in_onnx_and_litert(tmp_path, kind):
    """TensorFlow's optimizer would change the order of sums, if it could."""
    runtime = pytest.importorskip("onnxruntime", reason="reads ONNX")
    size, info = PREPROCESSING[kind]
    images = noise(size, info.image_shape[-1])
    expected = data.preprocess(tf.constant(images), info)
    model = Preprocessed(None, info, size)
    arguments = {"input_signature": [model.signature], "verbose": False}
    model.export(tmp_path / "m.onnx", format="onnx", **arguments)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {"images": images})
    np.testing.assert_array_equal(found, expected)
    model.export(
        str(tmp_path / "m.tflite"),
        format="litert",
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
        **arguments,
    )
    interpreter = tf.lite.Interpreter(str(tmp_path / "m.tflite"))
    found = interpreter.get_signature_runner()(images=images)["inputs"]
    np.testing.assert_array_equal(found, expected)


def test_a_vit_of_keras_hub_is_converted(tmp_path):
    """It has GELU, and positions that are numbers of its own."""
    runtime = pytest.importorskip("onnxruntime", reason="reads ONNX")
    pytest.importorskip("keras_hub", reason="has this ViT")
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    model = models.keras_hub_classifier(
        2,
        (16, 16, 3),
        backbone="ViTBackbone",
        arguments={"patch_size": 8} | sizes,
    )
    info = info_of(16)
    images = noise((20, 20), 3)
    onnx_format.write(model, info, (20, 20), tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(["logits"], {"images": images})
    inputs = data.preprocess(tf.constant(images), info)
    expected = model(inputs, training=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mixed_precision_becomes_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = written_runs.build(3, (8, 8, 1), seed=1)
    keras.config.set_dtype_policy("float32")
    plain = written_runs.build(3, (8, 8, 1), seed=1)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    found = one_size.in_float32(mixed)
    np.testing.assert_array_equal(found(images), plain(images))
    assert one_size.in_float32(plain) is plain


# What cannot be.


@pytest.mark.parametrize(
    ("formats", "size", "message"),
    [
        (("pdf",), None, r"--format names .*saved_model.*Received: 'pdf'"),
        (("",), None, "--format names"),
        ((), None, "--format names"),
        (("keras", "keras"), None, "each once"),
        (("keras",), (8, 8), "--input_size is of the formats onnx and litert"),
    ],
)
def test_bad_formats_are_a_sentence(run, tmp_path, formats, size, message):
    with pytest.raises(UserError, match=message):
        export(run, "best", tmp_path / "out", formats, size)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("text", ["8", "8x", "x", "0x8", "-1x8", "8x8x1", ""])
def test_bad_sizes_are_a_sentence(text):
    with pytest.raises(UserError, match="--input_size is height x width"):
        read_size(text)
    for size in ("1x5000", "99999x99999"):
        with pytest.raises(UserError, match="at most"):
            read_size(size)
    assert read_size("480x640") == (480, 640)


def test_without_its_packages_onnx_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'keras_transfer\[onnx\]"):
        export(run, "best", tmp_path / "out", ["onnx"])
    assert not os.listdir(tmp_path)


def test_a_network_that_others_cannot_compute_is_a_sentence(run, tmp_path):
    """Also where some of the formats could have been written."""
    pytest.importorskip("tf2onnx", reason="writes ONNX")
    x = images = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3)(x)
    x = keras.layers.Conv2D(4, 3, groups=2)(x)  # By XLA, on the CPU.
    x = keras.layers.Flatten()(x)
    model = keras.Model(images, keras.layers.Dense(10)(x))
    other = type(run)(tmp_path / "run")
    other.begin("", model, written_runs.data_for(model))
    other.save(0, model)
    before = set(os.listdir(tmp_path))
    with pytest.raises(UserError, match="cannot be converted to ONNX"):
        export(other, 0, tmp_path / "out", ["keras", "onnx"])
    with pytest.raises(UserError, match="as PyTorch has them of Fixup"):
        export(other, 0, tmp_path / "out", ["keras", "safetensors"])
    assert set(os.listdir(tmp_path)) == before


def test_another_result_is_a_sentence(run, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx", reason="writes ONNX")
    monkeypatch.setattr(
        one_size,
        "preprocess",
        lambda images, info: tf.zeros((tf.shape(images)[0], *info.image_shape)),
    )
    info = run.info()
    model = run.load_model("best")
    with pytest.raises(UserError, match="would not give what the run does"):
        onnx_format.write(model, info, (8, 8), tmp_path / "m.onnx")


# The command.


def test_the_command_names_what_it_wrote(run, tmp_path):
    flags = [f"--run={run.path}", "--output=out", "--epoch=last"]
    status, output, errors = commands.run(
        "export", *flags, "--format=safetensors, keras", cwd=tmp_path
    )
    assert status == 0, errors
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md",
        "labels.json",
        "model.keras",
        "model.safetensors",
        "preprocessing.json",
    ]
    assert [line.split()[0] for line in output.splitlines()] == [
        "out/model.safetensors",
        "out/model.keras",
        "out/README.md",
    ]
    status, _, errors = commands.run(
        "export", *flags, "--format=onnx", "--input_size=8", cwd=tmp_path
    )
    assert status == 1 and "Error: --input_size is height x width" in errors
    assert "Traceback" not in errors and os.listdir(tmp_path) == ["out"]


@pytest.mark.long
def test_a_killed_export_is_run_again(run, tmp_path):
    """What it left is cleared, whatever its process was called."""
    flags = [f"--run={run.path}", f"--output={tmp_path / 'out'}"]
    process = commands.start("export", *flags)
    while not os.listdir(tmp_path):
        assert process.poll() is None
    process.kill()
    process.communicate()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".out.")
    status, _, errors = commands.run("export", *flags)
    assert status == 0, errors
    assert os.listdir(tmp_path) == ["out"]
