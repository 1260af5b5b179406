import dataclasses
import itertools
import os

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_transfer import data
from keras_transfer.data.cache import Images
from keras_transfer.errors import UserError


def _dataset(n=50, num_classes=None, stored=8, size=8, labels=None, **info):
    """Random images; by default every example has a class of its own."""
    rng = np.random.RandomState(0)
    images = Images(rng.randint(0, 256, (n + 7, stored, stored, 3), np.uint8))
    num_classes = num_classes or n
    if labels is None:
        labels = np.arange(n) % num_classes
    train = data.Split(images, rng.permutation(n), labels)
    test = data.Split(images, np.arange(n, n + 7), labels[:7])
    info = data.Info(
        name="random",
        image_shape=(size, size, 3),
        class_names=tuple(map(str, range(num_classes))),
        multi_label=labels.ndim == 2,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.5),
        resize=stored,
        num_train=n,
        num_test=7,
        **info,
    )
    return data.Dataset(info, train, test)


def _take(batches, count):
    taken = list(batches.take(count).as_numpy_iterator())
    assert len(taken) == count
    return [np.stack(part) for part in zip(*taken, strict=True)]


def _normalized(dataset, examples, crop=0):
    raw = dataset.train.raw_images(examples).astype(np.float64)
    if crop:
        raw = raw[:, crop:-crop, crop:-crop]
    return (raw / 255 - dataset.info.mean) / dataset.info.std


def _examples(targets):
    return np.argmax(targets, axis=-1)


def test_an_epoch_shows_each_example_once_and_images_match_targets():
    dataset = _dataset()
    batches = dataset.train_batches(16, seed=3)
    assert batches.cardinality() == tf.data.INFINITE_CARDINALITY
    assert [spec.shape for spec in batches.element_spec] == [
        (16, 8, 8, 3),
        (16, 50),
    ]
    assert dataset.steps_per_epoch(16) == 3
    images, targets = _take(batches, 9)
    epochs = _examples(targets).reshape(3, 48)
    assert [len(set(epoch)) for epoch in epochs] == [48, 48, 48]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    np.testing.assert_allclose(
        images.reshape(-1, 8, 8, 3),
        _normalized(dataset, epochs.ravel()),
        atol=1e-5,
    )


def test_order_is_uniform_over_epochs():
    targets = _take(_dataset(10).train_batches(10, seed=0), 600)[1]
    order = _examples(targets)
    counts = np.array(
        [np.bincount(order[:, place], minlength=10) for place in range(10)]
    )
    # 9 x 9 degrees of freedom, rows and columns being fixed.
    statistic = ((counts - 60) ** 2 / 60).sum()
    assert 1e-3 < stats.chi2.sf(statistic, 81) < 1 - 1e-3


def test_same_seed_same_stream_other_seed_another():
    dataset = _dataset()
    augmentation = [data.random_crop(2), data.random_flip()]
    kwargs = {"augmentation": augmentation, "mixup_alpha": 0.7}
    first = _take(dataset.train_batches(10, 1, **kwargs), 12)
    again = _take(dataset.train_batches(10, 1, **kwargs), 12)
    other = _take(dataset.train_batches(10, 2, **kwargs), 12)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


@pytest.mark.parametrize("epoch, step", [(0, 3), (1, 0), (2, 4), (1, 5)])
def test_resuming_gives_the_tail_of_the_stream(epoch, step):
    def stream(**kwargs):
        return _dataset().train_batches(
            10,
            seed=5,
            augmentation=[data.random_resized_crop()],
            mixup_alpha=0.4,
            **kwargs,
        )

    whole = _take(stream(), 20)
    done = 5 * epoch + step
    tail = _take(stream(first_epoch=epoch, first_step=step), 20 - done)
    for a, b in zip(whole, tail, strict=True):
        np.testing.assert_array_equal(a[done:], b)


@pytest.mark.parametrize("num_workers, num_replicas", [(1, 4), (2, 2), (4, 1)])
def test_parts_join_to_the_global_batch(num_workers, num_replicas):
    def stream(**kwargs):
        return _dataset().train_batches(
            16,
            seed=5,
            augmentation=[data.random_crop(1), data.random_flip()],
            first_step=1,
            **kwargs,
        )

    whole = _take(stream(), 5)
    parts = [
        _take(
            stream(
                num_workers=num_workers, num_replicas=num_replicas, worker=w
            ),
            5 * num_replicas,
        )
        for w in range(num_workers)
    ]
    for i, expected in enumerate(whole):
        # [workers, steps, replicas, part...] -> [steps, global batch...]
        joined = np.stack([p[i] for p in parts])
        joined = joined.reshape(num_workers, 5, num_replicas, 4, -1)
        joined = joined.swapaxes(0, 1).reshape(expected.shape)
        np.testing.assert_array_equal(joined, expected)


def test_augmentation_is_keyed_by_example_and_epoch():
    dataset = _dataset(8)
    crop = [data.random_crop(3)]
    images, targets = _take(dataset.train_batches(8, 0, crop), 2)
    # Another batch size puts examples elsewhere but crops them alike.
    small_images, small_targets = _take(dataset.train_batches(2, 0, crop), 8)
    small_images = small_images.reshape(images.shape)
    small_examples = _examples(small_targets).reshape(2, 8)
    for epoch in range(2):
        by_example = images[epoch][np.argsort(_examples(targets[epoch]))]
        np.testing.assert_array_equal(
            by_example,
            small_images[epoch][np.argsort(small_examples[epoch])],
        )
    first, second = (
        images[e][np.argsort(_examples(targets[e]))] for e in range(2)
    )
    assert (first != second).any()


def test_augmentations_use_numbers_of_their_own():
    offset = [data.random_crop(4)] * 2

    def recorder(seen):
        def record(images, uniforms, size):
            tf.py_function(seen.append, [uniforms], [])
            return images

        return data.Augmentation(2, record)

    first, second = [], []
    batches = _dataset(2000, 10).train_batches(
        2000, 0, [recorder(first), *offset, recorder(second)]
    )
    next(iter(batches))
    numbers = np.concatenate([first[0], second[0]], axis=1)
    assert ((numbers >= 0) & (numbers < 1)).all()
    correlation = np.corrcoef(numbers.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3


def test_larger_images_are_cropped_at_the_centre():
    dataset = _dataset(stored=12, size=8)
    images, targets = _take(dataset.train_batches(10, 0), 1)
    np.testing.assert_allclose(
        images[0],
        _normalized(dataset, _examples(targets[0]), crop=2),
        atol=1e-5,
    )


def test_mixup_mixes_images_and_targets_alike():
    dataset = _dataset(64)
    images, targets = _take(
        dataset.train_batches(32, 0, mixup_alpha=0.7, num_replicas=2), 20
    )
    for step, (x, y) in enumerate(
        zip(
            images.reshape(10, 32, 8, 8, 3),
            targets.reshape(10, 32, 64),
            strict=True,
        )
    ):
        np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
        expected = np.einsum(
            "be,ehwc->bhwc", y, _normalized(dataset, np.arange(64))
        )
        np.testing.assert_allclose(x, expected, atol=1e-5)
        # One weight for the whole global batch, whichever part.
        mixed = y[(y > 0).sum(axis=1) == 2]
        values = np.unique(np.round(mixed[mixed > 0], 4))
        assert len(values) <= 2, step
        # The partners of a part are a permutation of that part.
        for part in y.reshape(2, 16, 64):
            np.testing.assert_allclose(
                part.sum(axis=0)[part.sum(axis=0) > 0], 1, atol=1e-5
            )


@pytest.mark.parametrize("alpha", [0.7, 0.4, 2.0])
def test_mixup_weight_is_beta(alpha):
    dataset = _dataset(2, stored=1, size=1)
    targets = _take(dataset.train_batches(2, 1, mixup_alpha=alpha), 4000)[1]
    # Half of the pairs are mixed with themselves and tell nothing. Which of
    # the two is "the image" is not seen either: Beta(a, a) is symmetric.
    weight = targets[:, 0, 0].astype(np.float64)
    weight = weight[(weight > 0) & (weight < 1)]
    assert len(weight) > 1000
    assert stats.kstest(weight, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_multi_hot_targets():
    labels = np.random.RandomState(1).randint(0, 2, (50, 5)).astype(np.float32)
    dataset = _dataset(num_classes=5, labels=labels)
    assert dataset.info.multi_label
    images, targets, weights = _take(
        dataset.eval_batches("train", batch_size=25), 2
    )
    np.testing.assert_array_equal(targets.reshape(50, 5), labels)
    np.testing.assert_array_equal(dataset.train.targets(5), labels)
    assert next(iter(dataset.train_batches(10, 0)))[1].shape == (10, 5)


@pytest.mark.parametrize("split, n", [("train", 50), ("test", 7)])
@pytest.mark.parametrize("num_workers, num_replicas", [(1, 1), (2, 2)])
def test_evaluation_sees_every_example_once_in_order(
    split, n, num_workers, num_replicas
):
    dataset = _dataset()
    batch_size, steps = 16, -(-n // 16)
    parts = []
    for worker in range(num_workers):
        batches = dataset.eval_batches(
            split, batch_size, num_replicas, num_workers, worker
        )
        assert batches.cardinality() == steps * num_replicas
        b = batch_size // (num_workers * num_replicas)
        assert [spec.shape for spec in batches.element_spec] == [
            (b, 8, 8, 3),
            (b, 50),
            (b,),
        ]
        parts.append(_take(batches, steps * num_replicas))
    images, targets, weights = (
        np.stack([p[i] for p in parts])
        .reshape(num_workers, steps, num_replicas, b, -1)
        .swapaxes(0, 1)
        .reshape(steps * batch_size, -1)
        for i in range(3)
    )
    np.testing.assert_array_equal(
        weights[:, 0], np.arange(steps * batch_size) < n
    )
    source = getattr(dataset, split)
    np.testing.assert_array_equal(_examples(targets[:n]), source.labels)
    raw = source.raw_images(np.arange(n))
    expected = (raw / 255 - dataset.info.mean) / dataset.info.std
    np.testing.assert_allclose(images[:n], expected.reshape(n, -1), atol=1e-5)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("augmentation", [[], [data.random_crop(0)]])
@pytest.mark.parametrize("in_memory", [True, False])
def test_shuffles_follow_normalization(augmentation, in_memory, tmp_path):
    plain = _dataset(12, stored=12, size=8)
    if not in_memory:
        np.save(tmp_path / "images.npy", plain.train.images.array)
        mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
        images = Images(mapped)
        plain = dataclasses.replace(
            plain,
            train=dataclasses.replace(plain.train, images=images),
            test=dataclasses.replace(plain.test, images=images),
            arguments={"cache_dir": str(tmp_path)},
        )
    for shuffle, function in (
        ({"shuffle": "blocks", "block_size": 2}, data.block_shuffle(8, 2, 7)),
        ({"shuffle": "pixels"}, data.pixel_shuffle((8, 8, 3), 7)),
        ({"shuffle": "channels"}, data.channel_shuffle((8, 8, 3), 7)),
    ):
        info = dataclasses.replace(plain.info, shuffle_seed=7, **shuffle)
        shuffled = dataclasses.replace(plain, info=info)
        for make in (
            lambda d: d.train_batches(6, 0, augmentation, mixup_alpha=1.0),
            lambda d: d.eval_batches("test", 6),
            lambda d: d.eval_batches("train", 6),
        ):
            expected, *rest = _take(make(plain), 2)
            received, *same = _take(make(shuffled), 2)
            np.testing.assert_allclose(
                received, function(expected), rtol=1e-6, atol=1e-6
            )
            assert (received != expected).any()
            for a, b in zip(rest, same, strict=True):
                np.testing.assert_array_equal(a, b)


def test_blocks_are_moved_once_where_images_are_kept(tmp_path, monkeypatch):
    plain = _dataset(12, stored=12, size=8)
    np.save(tmp_path / "images.npy", plain.train.images.array)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    info = dataclasses.replace(plain.info, shuffle="blocks", block_size=2)
    dataset = data.Dataset(
        info,
        dataclasses.replace(plain.train, images=Images(mapped)),
        dataclasses.replace(plain.test, images=Images(mapped)),
        {"cache_dir": str(tmp_path)},
    )
    moved = dataset._blocks_moved
    assert moved.info.shuffle is None
    assert moved.train.images.array.shape == (12, 8, 8, 3)
    assert not moved.train.images.in_memory
    # The file has no name: nothing to clean up, whatever happens.
    assert os.listdir(tmp_path) == ["images.npy"]

    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    later = dataclasses.replace(dataset)
    assert later._blocks_moved is later
    for a, b in zip(
        _take(dataset.eval_batches("test", 6), 1),
        _take(later.eval_batches("test", 6), 1),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mixup_alpha", [0.0, 1.0])
def test_an_iteration_ends_when_its_last_batch_is_taken(mixup_alpha):
    # With tf.data's tuning on, the end waits for its thread, up to a minute.
    dataset = _dataset()
    for batches in (
        dataset.train_batches(10, 0, mixup_alpha=mixup_alpha),
        dataset.eval_batches("test", 10),
    ):
        assert batches.options().autotune.enabled is False


def test_file_and_memory_give_the_same_batches(tmp_path):
    memory = _dataset()
    np.save(tmp_path / "images.npy", memory.train.images.array)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    file = dataclasses.replace(
        memory, train=dataclasses.replace(memory.train, images=Images(mapped))
    )
    assert memory.train.images.in_memory and not file.train.images.in_memory
    kwargs = {"augmentation": [data.random_crop(2)], "mixup_alpha": 0.5}
    expected = _take(memory.train_batches(10, 0, **kwargs), 7)
    received = _take(file.train_batches(10, 0, **kwargs), 7)
    for a, b in zip(expected, received, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (
        file.train_batches(10, 0).element_spec
        == memory.train_batches(10, 0).element_spec
    )


def test_batch_sizes_that_cannot_be():
    dataset = _dataset()
    with pytest.raises(UserError, match="only 50 .* batch_size=51"):
        dataset.train_batches(51, 0)
    for make in (
        lambda: dataset.train_batches(10, 0, num_replicas=2, num_workers=2),
        lambda: dataset.eval_batches("test", 10, num_replicas=4),
    ):
        with pytest.raises(UserError, match="4 equal parts.*multiple of 4"):
            make()


def test_parts_reach_the_replicas_of_a_strategy():
    """What `tf.distribute` hands out is what the parts say, on two devices."""
    cpus = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([d.name for d in cpus[:2]])
    replicas = strategy.num_replicas_in_sync
    dataset = _dataset()
    distributed = strategy.distribute_datasets_from_function(
        lambda context: dataset.train_batches(16, 0, num_replicas=replicas)
    )
    whole = _take(dataset.train_batches(16, 0), 4)[0]
    for expected, (images, _) in zip(
        whole, itertools.islice(distributed, 4), strict=True
    ):
        received = np.concatenate(strategy.experimental_local_results(images))
        np.testing.assert_array_equal(received, expected)
