import functools
import json
import sys
import types

import gin
import numpy as np
import pytest
from absl import logging

from keras_transfer import data
from keras_transfer.errors import UserError


@gin.configurable
def noise(seed=0, size=4, mean=None, extra=None):
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 256, (6, size, size, 1)).astype(np.uint8)
    pair = images, np.arange(6) % 2
    return data.from_arrays(pair, pair, mean=mean, name=f"noise {extra}")


def plain(seed=3):
    return noise(seed=seed)


@gin.configurable
def user(dataset):
    """As training takes a dataset: a reference to what makes it."""
    return dataset


@gin.configurable
def nothing():
    return None


def _pixels(dataset):
    return dataset.train.raw_images(np.arange(len(dataset.train)))


def _again(name, arguments, **kwargs):
    """As from a file."""
    name, arguments = json.loads(json.dumps([name, arguments]))
    gin.clear_config()
    return data.rebuild(name, arguments, **kwargs)


def test_load_is_recorded_as_it_was_called():
    dataset = data.load("digits", 8, num_train=50)
    assert dataset.factory == "load"
    again = _again(dataset.factory, dataset.arguments)
    assert again.info == dataset.info
    np.testing.assert_array_equal(_pixels(again), _pixels(dataset))
    assert data.from_arrays(
        *[(_pixels(dataset), np.arange(50))] * 2
    ).factory is (None)


@pytest.mark.parametrize("reference", ["@noise", "@loud/noise"])
def test_a_factory_that_gin_configures(reference):
    gin.parse_config(
        [
            "side = 5",
            "noise.seed = 7",
            "noise.size = %side",
            "loud/noise.seed = 8",
            "loud/noise.mean = 0.25",
            f"user.dataset = {reference}",
        ]
    )
    factory = user()
    made = factory()
    name, arguments = data.describe(factory)
    assert name.split(".")[-1] == "noise"
    assert arguments == (
        {"seed": 7, "size": 5}
        if reference == "@noise"
        else {"seed": 8, "size": 5, "mean": 0.25}
    )
    again = _again(name, arguments)
    assert again.info == made.info
    np.testing.assert_array_equal(_pixels(again), _pixels(made))
    # By the name that one would use in a gin file.
    np.testing.assert_array_equal(
        _pixels(_again("noise", arguments)), _pixels(made)
    )


def test_load_itself_and_its_bindings():
    gin.parse_config("load.name = 'digits'\nload.image_size = 8")
    name, arguments = data.describe(data.load)
    assert name.split(".")[-1] == "load"
    assert arguments == {"name": "digits", "image_size": 8}
    assert _again(name, arguments).info.image_shape == (8, 8, 1)


def test_a_function_of_a_module_and_a_partial_one():
    assert data.describe(plain) == (f"{__name__}.plain", {})
    np.testing.assert_array_equal(
        _pixels(_again(*data.describe(plain))), _pixels(noise(seed=3))
    )
    name, arguments = data.describe(functools.partial(plain, 5))
    assert arguments == {"seed": 5}
    np.testing.assert_array_equal(
        _pixels(_again(name, arguments)), _pixels(noise(seed=5))
    )


def test_what_json_cannot_hold_is_told(monkeypatch):
    messages = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: messages.append(text % args)
    )
    gin.parse_config("noise.seed = 7\nnoise.extra = @nothing")
    assert data.describe(noise)[1] == {"seed": 7}
    assert len(messages) == 1 and "arguments extra of" in messages[0]


def test_a_module_must_be_imported_but_is_not_by_us(tmp_path, monkeypatch):
    (tmp_path / "my_flowers.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="'my_flowers.make'.*import my_flowers"):
        data.rebuild("my_flowers.make", {})
    module = types.ModuleType("my_flowers")
    module.make = plain
    monkeypatch.setitem(sys.modules, "my_flowers", module)
    assert data.rebuild("my_flowers.make", {"seed": 1}).info.num_train == 6


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("load", {"name": "digits", "zoom": 2}, "load cannot be called.*zoom"),
        ("load", {}, "load cannot be called.*name"),
        ("load", {"name": 3}, "load.name must be text"),
        ("noise", {"colour": 1}, "noise cannot be called.*colour"),
        ("unheard_of", {}, "'unheard_of'.*import my_data"),
        ("nothing", {}, "does not make.*NoneType"),
        ("math.pi", {}, "'math.pi'"),
        (f"{__name__}.<lambda>", {}, "not known here"),
    ],
)
def test_mistakes_are_sentences(name, arguments, message):
    with pytest.raises(UserError, match=message):
        data.rebuild(name, arguments)


# Another's normalization.


def test_normalization_is_inherited():
    source = data.load("mnist", 8, channels=3, mean=(0.1, 0.2, 0.3), std=0.4)
    target = data.load("digits", 8, channels=3)
    assert source.has_own_normalization and not target.has_own_normalization
    moved = target.normalized_as(source.info)
    assert (moved.info.mean, moved.info.std) == ((0.1, 0.2, 0.3), (0.4,) * 3)
    assert moved.has_own_normalization
    images = next(iter(moved.eval_batches("test", 797)))[0]
    raw = target.test.raw_images(np.arange(797)) / 255
    np.testing.assert_allclose(images, (raw - [0.1, 0.2, 0.3]) / 0.4, atol=1e-5)
    # It comes back from what is recorded.
    assert _again(moved.factory, moved.arguments).info == moved.info
    assert target.info.mean == (0.5,) * 3


def test_one_number_goes_for_any_channels():
    gray = data.load("digits", 8)
    colour = data.load("digits", 8, channels=3, mean=0.3, std=0.2)
    assert gray.normalized_as(colour.info).info.mean == (0.3,)
    assert colour.normalized_as(gray.info).info.std == (0.5,) * 3
    several = data.load("digits", 8, channels=3, mean=(0.1, 0.2, 0.3))
    with pytest.raises(UserError, match="1 channels.*'digits'.*channels=3"):
        gray.normalized_as(several.info)


def test_a_factory_of_ones_own_inherits_it_too():
    source = data.load("digits", 8, mean=0.2, std=0.1)
    made = noise(seed=4).normalized_as(source.info)
    name, arguments = data.describe(noise)
    again = _again(name, arguments, info=made.info)
    assert (again.info.mean, again.info.std) == ((0.2,), (0.1,))
    assert _again(name, arguments).info.mean == (0.5,)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("os.system", {"command": "touch {}"}),
        ("subprocess.getoutput", {"cmd": "touch {}"}),
        ("pathlib.Path.touch", {"self": "{}"}),
        ("tensorflow.io.gfile.makedirs", {"path": "{}"}),
        ("tensorflow.python.lib.io.file_io.recursive_create_dir_v2", {}),
        ("keras_transfer.files.write_text", {"path": "{}", "text": "x"}),
        ("train", {"work_dir": "{}"}),
        ("numpy.save", {"file": "{}", "arr": 0}),
    ],
)
def test_a_record_calls_no_function_but_ones_own(tmp_path, name, arguments):
    import subprocess  # noqa: F401, so that it is there to be called.

    target = tmp_path / "made"
    arguments = {k: str(v).format(target) for k, v in arguments.items()}
    with pytest.raises(UserError, match="not known here"):
        data.rebuild(name, arguments)
    assert not target.exists()
