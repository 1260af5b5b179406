import dataclasses
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data
from keras_transfer.data import examples as module
from keras_transfer.errors import UserError

Examples = data.Examples
N, K = 11, 4
RNG = np.random.RandomState(0)
X = RNG.normal(size=(N, 6, 5, 3)).astype(np.float32)
Y = RNG.permutation(np.arange(N) % K)
ONE_HOT = np.eye(K, dtype=np.float32)[Y]
MULTI_HOT = RNG.randint(0, 2, (N, K))


class _Batches(keras.utils.PyDataset):
    def __init__(self, x, y, size=4):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part], self.y[part]


def _stream(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


FORMS = {
    "arrays": lambda x, y: (x, y),
    "lists": lambda x, y: [x.tolist(), y.tolist()],
    "tensors": lambda x, y: (tf.constant(x), tf.constant(y)),
    "unbatched": _stream,
    "batched": lambda x, y: _stream(x, y).batch(4),
    "whole": lambda x, y: _stream(x, y).batch(11, drop_remainder=True),
    "no shapes": lambda x, y: tf.data.Dataset.from_generator(
        lambda: zip(x, y, strict=True), (tf.float32, tf.float32)
    ),
    "PyDataset": _Batches,
}


def _read(split, batch_size=4, order=None):
    batches = split.batches(batch_size, order)
    parts = [[p.numpy() for p in batch] for batch in batches]
    assert all(len(p) == batch_size for batch in parts for p in batch)
    assert batches.cardinality() == len(parts)
    x, y, weights = (np.concatenate(p) for p in zip(*parts, strict=True))
    assert (x.dtype, y.dtype, weights.dtype) == (np.float32,) * 3
    n = len(split) if order is None else len(order)
    np.testing.assert_array_equal(weights, np.arange(len(weights)) < n)
    assert np.isfinite(x).all()
    return x[:n], y[:n]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "y, targets, multi_label",
    [
        (Y, ONE_HOT, False),
        (Y[:, None], ONE_HOT, False),
        (Y.astype(np.float32), ONE_HOT, False),
        (ONE_HOT, ONE_HOT, False),
        (MULTI_HOT, MULTI_HOT, True),
        (MULTI_HOT.astype(bool), MULTI_HOT, True),
    ],
)
def test_every_form_gives_the_same(form, y, targets, multi_label):
    examples = Examples(test=FORMS[form](X, y))
    assert examples.image_shape == (6, 5, 3)
    assert examples.num_classes == K
    assert examples.class_names == ("0", "1", "2", "3")
    assert examples.multi_label is multi_label
    split = examples.split("test")
    assert len(split) == N and split.targets.dtype == np.float32
    np.testing.assert_array_equal(split.targets, targets)
    np.testing.assert_array_equal(
        split.labels, targets if multi_label else np.argmax(targets, axis=1)
    )
    x, y = _read(split)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, targets)
    assert split.fingerprint == (
        Examples(test=(X, targets)).split("test").fingerprint
    )


@pytest.mark.parametrize("batch_size", [1, 3, 11, 20])
def test_batches_in_any_order(batch_size):
    split = Examples(train=(X, Y)).split("train")
    order = [7, 0, 7, 10, 2]
    x, y = _read(split, batch_size, order)
    np.testing.assert_array_equal(x, X[order])
    np.testing.assert_array_equal(y, ONE_HOT[order])
    part = split.select([3, 7, 10, 2])
    assert len(part) == 4 and part.num_classes == K
    np.testing.assert_array_equal(part.labels, Y[[3, 7, 10, 2]])
    x, _ = _read(part, batch_size, np.array([1, 1, 3]))
    np.testing.assert_array_equal(x, X[[7, 7, 2]])
    with pytest.raises(UserError, match="4 examples.*Received: 0 to 4"):
        part.batches(2, [0, 4])
    with pytest.raises(UserError, match="batch_size=0"):
        split.batches(0)
    with pytest.raises(UserError, match="empty order"):
        split.batches(2, [])


def test_one_finding_only_if_it_is_said():
    y = Y % 2
    classes = Examples(test=(X, y))
    assert (classes.num_classes, classes.multi_label) == (2, False)
    for targets in (y, y[:, None]):
        finding = Examples(test=(X, targets), multi_label=True)
        assert (finding.num_classes, finding.multi_label) == (1, True)
        np.testing.assert_array_equal(finding.split("test").targets[:, 0], y)


def test_rows_of_one_one_may_be_findings_all_the_same():
    # Of the test split alone it cannot be told.
    examples = Examples(train=(X, MULTI_HOT), test=(X, ONE_HOT))
    assert examples.multi_label
    np.testing.assert_array_equal(examples.split("test").labels, ONE_HOT)
    assert Examples(test=(X, ONE_HOT), multi_label=True).multi_label


def test_classes_are_those_of_both_splits_or_of_the_names():
    few, many = (X[:3], np.array([0, 1, 1])), (X, Y)
    assert Examples(train=many, test=few).split("test").targets.shape == (3, K)
    assert Examples(train=few, test=(X, ONE_HOT)).num_classes == K
    named = Examples(test=few, class_names=range(10))
    assert named.class_names == tuple("0123456789")
    assert named.split("test").targets.shape == (3, 10)
    with pytest.raises(UserError, match="no train split.*train="):
        named.split("train")
    with pytest.raises(UserError, match="'valid'"):
        named.split("valid")


@pytest.mark.parametrize(
    "x",
    [
        RNG.randint(0, 256, (N, 4, 4, 1)).astype(np.uint8),
        RNG.normal(size=(N, 7)),
        RNG.normal(size=(N, 3, 4)).astype(np.float16),
        RNG.randint(0, 256, (N, 2, 2, 2, 1)),
        RNG.randint(0, 2, (N, 5)).astype(bool),
        tf.cast(RNG.normal(size=(N, 5)), tf.bfloat16),
    ],
    ids=lambda x: str(x.dtype),
)
@pytest.mark.parametrize("form", ["arrays", "unbatched", "batched"])
def test_inputs_of_any_rank_and_kind(x, form):
    examples = Examples(test=FORMS[form](x, Y))
    expected = np.asarray(x).astype(np.float32)
    assert examples.image_shape == expected.shape[1:]
    np.testing.assert_array_equal(_read(examples.split("test"))[0], expected)


def test_images_to_look_at():
    levels = RNG.randint(0, 256, (N, 4, 4, 1)).astype(np.uint8)
    split = Examples(test=(levels, Y)).split("test")
    np.testing.assert_array_equal(split.images([4, 2]), levels[[4, 2]])
    # Floats are spread over what there is, not over what is shown.
    x = np.linspace(-2, 3, N * 4).reshape(N, 2, 2)
    split = Examples(test=(x, Y)).split("test")
    shown = split.select([5, 1, 0]).images([0, 2])
    assert shown.shape == (2, 2, 2, 1) and shown.dtype == np.uint8
    expected = np.round((x[[5, 0]] + 2) / 5 * 255)
    np.testing.assert_allclose(shown[..., 0], expected, atol=1)
    np.testing.assert_array_equal(
        Examples(test=(np.ones((2, 3, 3, 3)), [0, 1])).split("test").images([1])
        % 255,
        0,
    )
    with pytest.raises(UserError, match=r"shape \(7,\)"):
        Examples(test=(np.ones((2, 7)), [0, 1])).split("test").images([1])


def test_arrays_are_used_where_they_are(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(np.float64))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for array in (X, mapped):
        split = Examples(test=(array, Y)).split("test")
        assert np.shares_memory(split.inputs._array, array)
    np.testing.assert_array_equal(_read(split)[0], X)


def test_a_stream_is_read_once():
    reads = []

    def generate():
        reads.append(1)
        yield from zip(RNG.normal(size=(N, 3)), Y, strict=True)

    stream = tf.data.Dataset.from_generator(
        generate,
        output_signature=(
            tf.TensorSpec([3], tf.float32),
            tf.TensorSpec([], tf.int32),
        ),
    )
    split = Examples(test=stream.shuffle(20)).split("test")
    first, second = _read(split), _read(split)
    np.testing.assert_array_equal(first[0], second[0])
    assert len(reads) == 1


def test_fingerprint_tells_inputs_and_labels():
    def fingerprint(x=X, y=Y, **kwargs):
        return Examples(test=(x, y), **kwargs).split("test").fingerprint

    one_pixel, one_label = X.copy(), Y.copy()
    one_pixel[3, 2, 1, 0] += 1e-3
    one_label[5] = (one_label[5] + 1) % K
    split = Examples(test=(X, Y)).split("test")
    different = [
        fingerprint(),
        fingerprint(one_pixel),
        fingerprint(y=one_label),
        fingerprint(X.reshape(N, 5, 6, 3)),
        fingerprint(class_names=range(K + 1)),
        split.select([0, 1, 2]).fingerprint,
        split.select([0, 2, 1]).fingerprint,
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(X.copy(), Y.astype(np.int64)) == different[0]
    # Strides are nothing that anyone sees.
    assert fingerprint(np.asfortranarray(X)) == different[0]


def test_splits_of_examples_make_examples():
    whole = Examples(train=(X, MULTI_HOT), class_names=list("abcd"))
    # Rows of this one may each sum to one.
    rows = np.flatnonzero(MULTI_HOT.sum(axis=1) == 1)
    part = Examples(test=whole.split("train").select(rows))
    assert part.multi_label and part.num_classes == K
    np.testing.assert_array_equal(_read(part.split("test"))[0], X[rows])
    few = Examples(test=Examples(test=(X, Y)).split("test").select([0]))
    assert few.num_classes == K and not few.multi_label


# What data.load gives.


@pytest.mark.parametrize(
    "kwargs",
    [
        {"name": "digits", "image_size": 12, "resize": 14, "num_train": 37},
        {"name": "digits", "image_size": 8, "shuffle": "pixels"},
        {
            "name": "digits",
            "image_size": 8,
            "shuffle": "blocks",
            "block_size": 4,
        },
    ],
)
def test_examples_of_a_dataset_are_what_an_evaluation_sees(kwargs):
    dataset = data.load(**kwargs)
    examples = dataset.examples
    assert examples is dataset.examples
    assert examples.image_shape == dataset.info.image_shape
    assert examples.class_names == dataset.info.class_names
    assert not examples.multi_label
    for name in ("train", "test"):
        split, own = examples.split(name), getattr(dataset, name)
        np.testing.assert_array_equal(split.targets, own.targets(10))
        for ours, expected in zip(
            split.batches(100), dataset.eval_batches(name, 100), strict=True
        ):
            for a, b in zip(ours, expected, strict=True):
                np.testing.assert_array_equal(a, b)
        order = RNG.permutation(len(split))[:20]
        x, y = _read(split, 8, order)
        raw = data.preprocess(own.raw_images(order), dataset.info)
        np.testing.assert_allclose(x, raw, atol=1e-6)
        np.testing.assert_array_equal(y, own.targets(10)[order])
        crop = (own.images.array.shape[1] - x.shape[1]) // 2
        inner = slice(crop, crop + x.shape[1])
        np.testing.assert_array_equal(
            split.images(order), own.raw_images(order)[:, inner, inner]
        )


def test_fingerprint_of_a_dataset():
    def fingerprint(**kwargs):
        arguments = {"name": "digits", "image_size": 8} | kwargs
        return data.load(**arguments).examples.split("train").fingerprint

    different = [
        fingerprint(),
        fingerprint(name="mnist"),
        fingerprint(image_size=12),
        fingerprint(num_train=100),
        fingerprint(num_train=100, seed=1),
        fingerprint(mean=0.4),
        fingerprint(shuffle="pixels"),
        fingerprint(shuffle="pixels", shuffle_seed=1),
        fingerprint(channels=3),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(memory_budget=8.0) == different[0]


@pytest.mark.parametrize("keep", ["encoded", "decoded"])
def test_fingerprint_of_files(keep, tmp_path):
    for split in ("train", "test"):
        for i in range(4):
            folder = tmp_path / split / f"class {i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            image = RNG.randint(0, 256, (9, 12, 3)).astype(np.uint8)
            content = tf.io.encode_png(image).numpy()
            (folder / f"{i}.png").write_bytes(content)

    def split(**kwargs):
        dataset = data.load(
            "folder",
            8,
            data_dir=str(tmp_path),
            cache_dir=str(tmp_path / "cache"),
            keep=keep,
            **kwargs,
        )
        return dataset.examples.split("train")

    first = split()
    assert first.fingerprint == split(memory_budget=0.0).fingerprint
    x, _ = _read(first, 3, [2, 0])
    np.testing.assert_array_equal(x, _read(first, 4)[0][[2, 0]])
    np.testing.assert_allclose(x, first.images([2, 0]) / 127.5 - 1, atol=1e-6)
    changed = tmp_path / "train" / "class 1" / "1.png"
    os.utime(changed, ns=(1, 1))
    assert first.fingerprint != split().fingerprint
    before = split().fingerprint
    changed.rename(tmp_path / "train" / "class 0" / "1.png")
    assert before != split().fingerprint


def test_findings_of_a_dataset():
    dataset = data.load("digits", 8)
    labels = {
        name: np.eye(10, dtype=np.float32)[getattr(dataset, name).labels]
        for name in ("train", "test")
    }
    # One finding an image each, by chance.
    multi = dataclasses.replace(
        dataset,
        info=dataclasses.replace(dataset.info, multi_label=True),
        train=dataclasses.replace(dataset.train, labels=labels["train"]),
        test=dataclasses.replace(dataset.test, labels=labels["test"]),
    )
    assert multi.examples.multi_label
    assert multi.examples.num_classes == 10


# What cannot be.


def _bad(x=None, y=None):
    return (X if x is None else x, Y if y is None else y)


_NAN = X.copy()
_NAN[-1, 0, 0, 0] = np.nan
_MISTAKES = {
    "nothing": (None, "There are no examples"),
    "empty": ((X[:0], Y[:0]), "no test examples"),
    "empty stream": (_stream(X, Y).take(0), "no test examples"),
    "empty PyDataset": (_Batches(X[:0], Y[:0]), "no test examples"),
    "lengths": (_bad(y=Y[:-1]), r"\(11, 6, 5, 3\).*\(10,\)"),
    "lengths of a batch": (_Batches(X, Y[:-1]), r"\(3, 6, 5, 3\).*\(2,\)"),
    "NaN": (_bad(_NAN), "NaN or infinite"),
    "NaN in a stream": (_stream(_NAN, Y), "NaN or infinite"),
    "infinite input": (_bad(X * np.inf), "NaN or infinite"),
    "no end": (_stream(X, Y).repeat(), r"no end.*\.take\(n\)"),
    "negative": (_bad(y=Y - 1), "counted from 0.*-1"),
    "not whole": (_bad(y=Y + 0.5), "whole numbers.*np.argmax"),
    "probabilities": (_bad(y=ONE_HOT * 0.8 + 0.05), "whole numbers"),
    "NaN label": (_bad(y=np.where(Y == 1, np.nan, Y)), "whole numbers.*nan"),
    "words": (_bad(y=[f"class {k}" for k in Y]), "numbers.*class_names"),
    "identifiers": (_bad(y=Y * 10**12), "counted from 0.*1000000 or more"),
    "counts": (_bad(y=ONE_HOT * 3), "zeros and ones only.*from 0 to 3"),
    "masks": (_bad(y=np.zeros((N, 6, 5))), r"\(11, 6, 5\)"),
    "scalar": ((X, 3), "one target for each input"),
    "no inputs": ((3.0, Y), "one array with an entry"),
    "text": (_bad(x=["a"] * N), "Inputs are numbers"),
    "complex": (_bad(x=X + 1j), "complex64"),
    "ragged": (_bad(x=[[1], [1, 2]]), "Inputs are one array"),
    "three parts": ((X, Y, Y), "without sample weights"),
    "weights": (
        tf.data.Dataset.from_tensor_slices((X, Y, Y)),
        "without sample weights",
    ),
    "inputs alone": (X, "Received: test examples as ndarray"),
    "file name": ("data.npz", "Received: test examples as str"),
    "dict": (
        tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}),
        "as_supervised=True.*dict with image, label",
    ),
    "two inputs": (
        tf.data.Dataset.from_tensor_slices(({"a": X, "b": X}, Y)),
        "with several",
    ),
    "sparse": (
        tf.data.Dataset.from_tensors((tf.sparse.eye(3), Y)),
        "plain tensors",
    ),
    "several sizes": (
        tf.data.Dataset.from_generator(
            lambda: ((np.ones((4 + i, 4, 1)), i) for i in range(3)),
            output_signature=(
                tf.TensorSpec([None, None, 1], tf.float32),
                tf.TensorSpec([], tf.int32),
            ),
        ),
        r"cannot be read.*\.map\(",
    ),
    "batch or not": (_stream(X[:, :4], ONE_HOT), r"\.unbatch\(\).*\.batch"),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_mistakes_are_sentences(mistake):
    source, message = _MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        Examples(test=source)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"train": (X[:, 1:], Y)}, r"one shape.*\(5, 5, 3\) and \(6, 5, 3\)"),
        ({"train": (X, np.eye(5)[Y])}, "4 classes.*label of|same classes"),
        ({"class_names": ["a", "b"]}, "2 classes.*label of 3"),
        ({"class_names": "abcd"}, "class_names='abcd'"),
        ({"class_names": []}, r"class_names=\(\)"),
        ({"multi_label": True}, "rows of zeros and ones.*from 0 to 3"),
    ],
)
def test_what_does_not_go_together(kwargs, message):
    targets = ONE_HOT if kwargs.get("train", X)[-1].ndim == 2 else Y
    with pytest.raises(UserError, match=message):
        Examples(**{"test": (X, targets)} | kwargs)


def test_names_and_columns():
    with pytest.raises(UserError, match="4 columns.*3 class_names"):
        Examples(test=(X, ONE_HOT), class_names=list("abc"))
    with pytest.raises(UserError, match="names of their own"):
        Examples(test=(X, MULTI_HOT), class_names=list("aabc"))
    with pytest.raises(UserError, match="one 1.*multi_label=True"):
        Examples(test=(X, MULTI_HOT), multi_label=False)


@pytest.mark.parametrize("form", ["unbatched", "batched", "PyDataset"])
def test_more_than_fits_into_memory(form, monkeypatch):
    monkeypatch.setattr(module, "MEMORY_BUDGET", X.nbytes // 2)
    with pytest.raises(UserError, match=r"\.take\(n\).*data\.load"):
        Examples(test=FORMS[form](X, Y))
    # Arrays are there already.
    assert len(Examples(test=(X, Y)).split("test")) == N


def test_a_py_dataset_without_end():
    class Endless(_Batches):
        num_batches = None

    with pytest.raises(UserError, match="no end"):
        Examples(test=Endless(X, Y))


def test_replicas_are_given_the_same_batches():
    cpus = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([d.name for d in cpus[:2]])
    split = Examples(test=(X, Y)).split("test")
    seen = []
    for inputs, _, weights in strategy.experimental_distribute_dataset(
        split.batches(4)
    ):
        parts = zip(
            strategy.experimental_local_results(inputs),
            strategy.experimental_local_results(weights),
            strict=True,
        )
        seen += [x.numpy()[w.numpy() > 0] for x, w in parts]
    np.testing.assert_array_equal(np.concatenate(seen), X)
