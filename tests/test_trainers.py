"""Runs that use what was compiled for earlier ones are what they are alone."""

import pathlib

import gin
import numpy as np
import pytest

from keras_transfer import config
from keras_transfer.runs import Run
from keras_transfer.training import Trainers, train
from keras_transfer.training.step import Trainer

GIN = pathlib.Path(__file__).parents[1] / "gin"
TINY = [
    "load.image_size = 8",
    "load.num_train = 48",
    "fixup_resnet.widths = (4,)",
    "train.epochs = 2",
]


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """How often a step was made to be compiled, a list."""
    made, make = [], Trainer.__init__

    def noted(self, *args, **kwargs):
        made.append(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "__init__", noted)
    yield made
    gin.clear_config()


def run(path, *bindings, trainers=None, name="rit_digits.gin"):
    gin.clear_config()
    config.parse([str(GIN / name)], [*TINY, *bindings])
    train(path, trainers=trainers)
    return path


def assert_same(one, other):
    assert (one / "metrics.csv").read_text() == (
        other / "metrics.csv"
    ).read_text()
    assert (one / "model.json").read_text() == (
        other / "model.json"
    ).read_text()
    for epoch in (0, 1, 2):
        ours, theirs = (
            Run(path).load_model(epoch).get_weights() for path in (one, other)
        )
        for own, their in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(own, their)


@pytest.mark.parametrize(
    "binding",
    [
        "SGD.momentum = 0.9",
        "SGD.use_ema = True",
        "train.dtype_policy = 'mixed_float16'",
        "load.shuffle = 'pixels'",
    ],
)
def test_other_seeds_and_draws(tmp_path, traced, binding):
    trainers = Trainers()
    first = ["train.seed = 1", "load.seed = 1", binding]
    run(tmp_path / "first", *first, trainers=trainers)
    second = ["train.seed = 2", "load.seed = 2", binding]
    shared = run(tmp_path / "shared", *second, trainers=trainers)
    assert len(traced) == 1
    assert_same(shared, run(tmp_path / "alone", *second))
    # And once more the first.
    again = run(tmp_path / "again", *first, trainers=trainers)
    assert_same(again, tmp_path / "first")


def test_other_starting_points(tmp_path, traced):
    trainers = Trainers()
    for seed in (7, 8):
        run(tmp_path / f"p{seed}", f"train.seed = {seed}")
    traced.clear()

    def fine_tune(name, seed, **kwargs):
        source = f"train.pretrained = {str(tmp_path / f'p{seed}')!r}"
        return run(tmp_path / name, source, name="pt_digits.gin", **kwargs)

    fine_tune("first", 7, trainers=trainers)
    shared = fine_tune("shared", 8, trainers=trainers)
    assert len(traced) == 1
    assert_same(shared, fine_tune("alone", 8))


def test_what_computes_something_else_is_compiled(tmp_path, traced):
    trainers = Trainers()
    others = [
        "cosine.base_rate = 0.03",
        "random_crop.padding = 1",
        "train.epochs = 3",
        "load.mean = 0.3",
        "train.trained_modules = ['fc']",
        "fixup_resnet.widths = (5,)",
    ]
    for i, binding in enumerate(["train.seed = 3", *others]):
        run(tmp_path / str(i), binding, trainers=trainers)
        assert len(traced) == 1 + i


def test_an_interrupted_run_goes_on(tmp_path, traced):
    """Of a run that was stopped a shared trainer has another one's state."""
    trainers, own = Trainers(), "train.seed = 5"
    run(tmp_path / "other", trainers=trainers)
    whole = run(tmp_path / "run", own)
    run(tmp_path / "stopped", own)
    Run(tmp_path / "stopped").remove(2)
    again = run(tmp_path / "stopped", own, trainers=trainers)
    assert len(traced) == 3
    assert_same(again, whole)


def test_checkpoints_that_are_not_kept_are_not_written(tmp_path, monkeypatch):
    saved, save = [], Run.save

    def noted(self, epoch, *state):
        saved.append(epoch)
        save(self, epoch, *state)

    monkeypatch.setattr(Run, "save", noted)
    bindings = ["train.epochs = 9", "train.keep_epochs = [4]"]
    path = run(tmp_path / "run", *bindings)
    table = Run(path).metrics()
    test = table[table.split == "test"].set_index("epoch")
    best = test.accuracy.cummax().drop_duplicates().index
    # A record when it was set, what is asked for, and the last.
    assert saved == sorted({*best, 0, 4, 9})
    assert sorted(Run(path).epochs()) == sorted({0, 4, 9, best[-1]})
    monkeypatch.setattr("keras_transfer.training.loop._SECONDS_UNSAVED", -1.0)
    saved.clear()
    run(tmp_path / "due", *bindings)
    assert saved == list(range(10))
