import domains
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import data
from keras_transfer.data.augment import crop_boxes

pil = pytest.importorskip("PIL.Image")

TRAIN, TEST = 20, 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images of many sizes, every one a class of its own but for the split."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", TRAIN), ("test", TEST)):
        for i in range(count):
            folder = root / split / f"{i:02d}"
            folder.mkdir(parents=True)
            image = domains.photograph(i, 50 + 3 * i, 110 - 2 * i)
            kind = "jpg" if i % 2 else "png"
            pil.fromarray(image).save(folder / f"image.{kind}")
    return root


@pytest.fixture(scope="module")
def load(root, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def load(keep="encoded", **kwargs):
        arguments = {"image_size": 32, "resize": 40, "mean": 0.0, "std": 1.0}
        return data.load(
            "folder",
            data_dir=str(root),
            cache_dir=str(cache),
            keep=keep,
            **arguments | kwargs,
        )

    return load


AUGMENTATION = [data.random_resized_crop(), data.random_flip()]


def _take(batches, count):
    taken = list(batches.take(count).as_numpy_iterator())
    return [np.stack(part) for part in zip(*taken, strict=True)]


def test_without_augmentation_nothing_differs_from_decoded(load):
    encoded, decoded = load(), load("decoded")
    assert encoded.info == decoded.info
    assert decoded.in_memory and not encoded.in_memory
    for make, count in (
        (lambda d: d.train_batches(6, 3, mixup_alpha=0.7), 7),
        (lambda d: d.eval_batches("test", 4), 2),
        (lambda d: d.eval_batches("train", 8), 3),
    ):
        a, b = _take(make(encoded), count), _take(make(decoded), count)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
        assert make(encoded).element_spec == make(decoded).element_spec
    examples = np.array([3, 0, 7])
    np.testing.assert_array_equal(
        encoded.train.raw_images(examples),
        decoded.train.raw_images(examples)[:, 4:36, 4:36],
    )


def test_crops_are_cut_from_the_whole_image(load, root):
    dataset = load()
    crop = [data.random_resized_crop()]
    images, targets = _take(dataset.train_batches(TRAIN, 1, crop), 1)
    part = next(iter(dataset.train_parts(TRAIN, 1, crop)))
    uniforms, examples = part["uniforms"].numpy(), part["examples"].numpy()
    np.testing.assert_array_equal(np.argmax(targets[0], axis=1), examples)
    for ours, numbers, example in zip(
        images[0], uniforms, examples, strict=True
    ):
        (path,) = (root / "train" / f"{example:02d}").iterdir()
        # TensorFlow's decoder: Pillow's rounds JPEG in another way.
        whole = tf.io.decode_image(path.read_bytes()).numpy()
        top, left, h, w = (
            int(x[0])
            for x in crop_boxes(
                numbers[None], *whole.shape[:2], (0.08, 1.0), (3 / 4, 4 / 3)
            )
        )
        box = pil.fromarray(whole).crop((left, top, left + w, top + h))
        expected = np.asarray(box.resize((32, 32), pil.BILINEAR), float)
        assert np.abs(ours * 255 - expected).max() < 1.6


@pytest.mark.parametrize("epoch, step", [(0, 2), (1, 0), (2, 3)])
def test_resuming_gives_the_tail_of_the_stream(load, epoch, step):
    def stream(**kwargs):
        return load().train_batches(5, 7, AUGMENTATION, 0.7, **kwargs)

    whole = _take(stream(), 14)
    done = 4 * epoch + step
    tail = _take(stream(first_epoch=epoch, first_step=step), 14 - done)
    for a, b in zip(whole, tail, strict=True):
        np.testing.assert_array_equal(a[done:], b)


def test_parts_join_to_the_global_batch(load):
    def stream(**kwargs):
        return load().train_batches(8, 5, AUGMENTATION, **kwargs)

    whole = _take(stream(), 4)
    parts = [
        _take(stream(num_workers=2, num_replicas=2, worker=w), 8)
        for w in range(2)
    ]
    for i, expected in enumerate(whole):
        # [workers, steps, replicas, part...] -> [steps, global batch...]
        joined = np.stack([p[i] for p in parts]).reshape(2, 4, 2, 2, -1)
        joined = joined.swapaxes(0, 1).reshape(expected.shape)
        np.testing.assert_array_equal(joined, expected)


def test_augmentation_is_keyed_by_example_and_epoch(load):
    large = _take(load().train_batches(20, 0, AUGMENTATION), 2)
    small = _take(load().train_batches(5, 0, AUGMENTATION), 8)
    by_example = []
    for images, targets in (large, small):
        images = images.reshape(2, 20, 32, 32, 3)
        order = np.argsort(np.argmax(targets, -1).reshape(2, 20), axis=1)
        by_example.append(np.stack([images[e][order[e]] for e in (0, 1)]))
    np.testing.assert_array_equal(*by_example)
    first, second = by_example[0]
    assert np.all(np.any(first != second, axis=(1, 2, 3)))


def test_mixup_mixes_images_and_targets_alike(load):
    plain_images, plain_targets = _take(
        load().train_batches(20, 2, AUGMENTATION), 1
    )
    by_class = plain_images[0][np.argsort(np.argmax(plain_targets[0], -1))]
    images, targets = _take(
        load().train_batches(20, 2, AUGMENTATION, mixup_alpha=0.7), 1
    )
    expected = np.einsum("be,ehwc->bhwc", targets[0], by_class)
    np.testing.assert_allclose(images[0], expected, atol=1e-5)
    assert len(np.unique(np.round(targets[targets > 0], 4))) > 1


def test_shuffle_follows_normalization(load):
    function = data.block_shuffle(32, 8, 1234)
    plain, shuffled = load(), load(shuffle="blocks", block_size=8)
    for make in (
        lambda d: d.train_batches(10, 0, AUGMENTATION),
        lambda d: d.eval_batches("test", 5),
    ):
        (expected, *_), (received, *_) = (
            _take(make(d), 1) for d in (plain, shuffled)
        )
        np.testing.assert_array_equal(received, function(expected))


def test_stretches_of_files_are_read(tmp_path):
    contents = [b"first", b"", b"the third"]
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"##" + b"".join(contents))
    images = data.image_files.ImageFiles(
        (str(tmp_path / "a"), str(tmp_path / "b")),
        "key",
        np.array([1, 0, 0]),
        np.array([2, 7, 7]),
        np.array([5, 0, 9]),
    )
    read = tf.data.Dataset.range(3).map(images.read)
    assert list(read.as_numpy_iterator()) == contents
    chosen = images.select([2, 0])
    assert chosen != images and chosen == images.select(np.array([2, 0]))
    read = tf.data.Dataset.range(2).map(chosen.read)
    assert list(read.as_numpy_iterator()) == [b"the third", b"first"]
    both = chosen.concatenate(images)
    read = tf.data.Dataset.range(5).map(both.read)
    assert list(read.as_numpy_iterator()) == [
        b"the third",
        b"first",
        *contents,
    ]
    assert images.name(2) == f"{tmp_path / 'a'} (from byte 7)"


def test_what_can_be_decoded_is_found_out_once(load, root, monkeypatch):
    load()
    monkeypatch.setattr(data.image_files, "_read_all", None)
    assert load().info.num_train == TRAIN
