"""One device or two, static shapes, and what XLA makes of them."""

import collections
import contextlib
import functools

import gin
import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
import written_runs

from keras_transfer import data, models, training
from keras_transfer.analysis import all as _all  # noqa: F401, to bind them
from keras_transfer.analysis.analyze import analyze
from keras_transfer.analysis.output import Output
from keras_transfer.files import write_text
from keras_transfer.landscape import module_loss
from keras_transfer.landscape.loss_surface import examples_surface
from keras_transfer.landscape.module_loss import (
    Perturbations,
    examples_modules,
)
from keras_transfer.landscape.weight_space import Points
from keras_transfer.training import loop

STRATEGIES = {
    "one": "strategy.name = 'one_device'",
    "two": "strategy.name = 'mirrored'\nstrategy.devices = ['CPU:0', 'CPU:1']",
}
SMALL = """
    interpolation.num_points = 5
    basin.num_samples = 4
    basin.sensitivity = False
    criticality.positions = (0.0, 1.0)
    criticality.sigmas = (0.1, 1.0)
    criticality.num_draws = 2
    criticality.refinements = 1
    criticality.levels = ("block",)
    rewinding.levels = ("block",)
    rewinding.splits = ("test",)
    pretraining.num_points = 5
    similarity.num_examples = 100
    spectrum.num_values = 5
"""
ANALYSES = (
    "interpolation",
    "basin",
    "averaging",
    "similarity",
    "mistakes",
    "distance",
    "spectrum",
    "criticality",
    "rewinding",
    "pretraining",
)


def write_runs(root):
    """Writes P, runs that started from it or not, and runs on blocks."""
    whole = written_runs.digits()
    blocks = data.load(
        "digits", image_size=8, num_train=32, shuffle="blocks", block_size=4
    )
    written_runs.write_run(root / "p", whole, seed=7, widths=(4,))
    runs = [
        ("pt0", whole, 0),
        ("pt1", whole, 2),
        ("rit0", whole, None),
        ("pt_blocks", blocks, 2),
        ("rit_blocks", blocks, None),
    ]
    for seed, (name, dataset, start) in enumerate(runs):
        run = written_runs.write_run(root / name, dataset, seed, widths=(4,))
        lines = f"train.pretrained_epoch = {start}\n"
        pretrained = None if start is None else str(root / "p")
        lines += f"train.pretrained = {pretrained!r}\n"
        write_text(run.config_path, lines)
        written_runs.reseal(run.path)
        run.write_metrics(
            [
                {"epoch": e, "step": e, "split": "test", "accuracy": 0.3 * e}
                for e in run.epochs()
            ]
        )
        run.write_best(2, "accuracy", 0.6)


def run_analyses(root, work_dir, strategy):
    """Runs every analysis; returns {table's name: `pandas.DataFrame`}."""
    named = {
        ANALYSES: {"P-T": ["pt0", "pt1"], "RI-T": ["rit0"]},
        ("feature_reuse",): {
            "P-T": ["pt0", "pt_blocks"],
            "RI-T": ["rit0", "rit_blocks"],
        },
    }
    for analyses, runs in named.items():
        runs = {
            kind: [str(root / name) for name in names]
            for kind, names in runs.items()
        }
        references = ", ".join(f"@{name}" for name in analyses)
        gin.clear_config()
        gin.parse_config(
            f"{STRATEGIES[strategy]}\n{SMALL}\n"
            f"Models.models = {runs!r}\nanalyze.analyses = [{references}]"
        )
        analyze(work_dir)
    return {path.stem: pandas.read_csv(path) for path in work_dir.glob("*.csv")}


class Seen:
    """What replicas are given to do, by the name of the function.

    Attributes:
        shapes: of the tensors that go in and come out.
        replicas: the numbers of the replicas.
        tables: by name, what an analysis leaves.
    """

    def __init__(self):
        self.shapes = collections.defaultdict(list)
        self.replicas = collections.defaultdict(set)
        self.tables = {}

    def observed(self, fn):
        """Returns a function that does the same and is taken note of."""
        inner = fn.func if isinstance(fn, functools.partial) else fn
        name = getattr(inner, "__qualname__", type(inner).__name__)

        def observed(*args):
            replica = tf.distribute.get_replica_context()
            number = tf.get_static_value(replica.replica_id_in_sync_group)
            result = fn(*args)
            tensors = filter(tf.is_tensor, tf.nest.flatten((args, result)))
            self.shapes[name] += [tensor.shape for tensor in tensors]
            self.replicas[name].add(int(number))
            return result

        return observed


@contextlib.contextmanager
def recording(wrap=lambda fn: fn):
    """Yields a `Seen` of all that strategies are told to run in the block."""
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        for kind in (
            tf.distribute.OneDeviceStrategy,
            tf.distribute.MirroredStrategy,
        ):

            def run(self, fn, args=(), kwargs=None, run=kind.run):
                return run(self, wrap(seen.observed(fn)), args, kwargs)

            patch.setattr(kind, "run", run)
        yield seen


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory):
    """What each of the strategies gives, {its name: `Seen`}."""
    root = tmp_path_factory.mktemp("runs")
    write_runs(root)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        # They take longer than all else, and show what the tables hold.
        patch.setattr(Output, "figure", lambda *_: None)
        # As beside an accelerator, where what replicas are given is static.
        patch.setattr(module_loss, "has_accelerator", lambda: True)
        for strategy in STRATEGIES:
            with recording() as found[strategy]:
                found[strategy].tables = run_analyses(
                    root, root / strategy, strategy
                )
    return found


def compare(one, two):
    """Asserts that two tables agree, numbers to 1e-5 of their column's size."""
    assert list(one) == list(two) and len(one) == len(two)
    for name in one:
        if one[name].dtype.kind == "f":
            size = one[name].abs().max()
            np.testing.assert_allclose(
                two[name], one[name], rtol=1e-5, atol=1e-5 * size, err_msg=name
            )
        else:
            pandas.testing.assert_series_equal(two[name], one[name])


@pytest.mark.parametrize("name", [*ANALYSES, "feature_reuse"])
def test_two_devices_give_the_same_tables(analyzed, name):
    one, two = (analyzed[strategy].tables for strategy in STRATEGIES)
    assert one.keys() == two.keys() and name in one
    for table in one:
        if table.startswith(name):
            compare(one[table], two[table])


# What each replica is given to do in: the loss surface; modules; logits; CKA.
SPREAD = {
    "LossSurface._measure_on_replica",
    "ModuleLoss._measure.<locals>.on_replica",
    "_CompiledModule._together.<locals>.on_replica",
    "_CompiledModule._perturbed.<locals>.on_replica",
    "Functional",
    "_Extractor.lister.<locals>.outputs",
}


def test_both_devices_share_the_work(analyzed):
    found = analyzed["two"].replicas
    assert found.keys() >= SPREAD
    assert all(found[name] == {0, 1} for name in SPREAD)


def test_analyses_see_static_shapes(analyzed):
    for strategy in STRATEGIES:
        assert analyzed[strategy].shapes.keys() >= SPREAD
        assert_static(analyzed[strategy].shapes)


def assert_static(shapes):
    assert shapes
    for name, seen in shapes.items():
        assert all(shape.is_fully_defined() for shape in seen), name


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Images that are decoded in the input pipeline."""
    root = tmp_path_factory.mktemp("images")
    for i in range(8):
        for split in ("train", "test"):
            path = root / split / str(i % 2) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.full((9 + i, 12, 3), i, np.uint8)
            path.write_bytes(tf.io.encode_png(image).numpy())
    return data.load(
        "folder", data_dir=str(root), image_size=8, resize=9, keep="encoded"
    )


def train_small(work_dir, dataset, strategy="two", **changes):
    gin.clear_config()
    gin.parse_config(STRATEGIES[strategy])
    arguments = {
        "model": functools.partial(models.fixup_resnet, widths=(4,)),
        "dataset": lambda: dataset,
        "epochs": 2,
        "batch_size": 8,
        "schedule": functools.partial(training.constant, base_rate=0.02),
        "augmentation": [data.random_crop(padding=1)],
        "mixup_alpha": 0.7,
        "eval_batch_size": 200,
    }
    return training.train(work_dir, **(arguments | changes))


@pytest.mark.parametrize("pipeline", ["in the step", "ahead"])
@pytest.mark.parametrize("source", ["memory", "encoded"])
def test_training_and_evaluation_see_static_shapes(
    tmp_path, encoded, monkeypatch, source, pipeline
):
    dataset = written_runs.digits() if source == "memory" else encoded
    if pipeline == "ahead":  # As with a GPU or TPU.
        monkeypatch.setattr(loop, "has_accelerator", lambda: True)
    with recording() as seen:
        train_small(tmp_path / "run", dataset)
    steps = {"Trainer._train_step", "Trainer._logits"}
    assert seen.shapes.keys() == steps
    assert all(seen.replicas[step] == {0, 1} for step in steps)
    assert_static(seen.shapes)


def test_statistics_of_batches_see_static_shapes():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    surface = examples_surface(
        model,
        [model.get_weights()],
        written_runs.digits().examples,
        batch_size=15,
        strategy=strategy,
    )
    with recording() as seen:
        surface.evaluate(Points([[1.0]]))
    assert "LossSurface._statistics_on_replica" in seen.shapes
    assert_static(seen.shapes)


def test_trainings_in_one_process_do_not_mix_up_their_collectives(
    tmp_path, encoded
):
    for name, dataset in (("a", written_runs.digits()), ("b", encoded)):
        run = train_small(tmp_path / name, dataset, epochs=1)
        assert np.isfinite(run.metrics().loss).all()


def compiled(fn):
    """Demands of XLA that it compiles the whole of what a replica does."""
    return tf.function(fn, jit_compile=True)


def test_xla_compiles_all_that_replicas_do_in_training(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "has_accelerator", lambda: True)
    dataset = written_runs.digits()
    # XLA's own optimization, as a graph's, changes the last digits.
    plain = train_small(tmp_path / "plain", dataset, "one", jit_compile=False)
    with recording(compiled) as seen:
        run = train_small(tmp_path / "xla", dataset, "one", jit_compile=False)
    assert len(seen.shapes) == 2
    np.testing.assert_allclose(
        run.metrics().loss, plain.metrics().loss, rtol=1e-4
    )


@pytest.mark.long
def test_xla_compiles_all_that_replicas_do_in_analyses():
    dataset = written_runs.digits()
    model = written_runs.build(10, dataset.info.image_shape, widths=(4,))
    rng = np.random.default_rng(0)
    weights = [
        [w + rng.normal(0, 0.2, w.shape) for w in model.get_weights()]
        for _ in range(2)
    ]
    found = []
    for wrap in (lambda fn: fn, compiled):
        surface = examples_surface(model, weights, dataset.examples)
        modules = examples_modules(model, dataset.examples)
        part = range(1, 2)
        moved = Perturbations(np.array([0.5]), np.array([0.1]))
        with recording(wrap):
            # XLA makes other normal noise of the same random bits.
            points = Points([[0.5, 0.5]])
            found.append(
                [
                    surface.evaluate(points)["loss"],
                    modules.evaluate(weights, 1, {part: moved})[part]["loss"],
                ]
            )
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
