"""Image classification datasets of TensorFlow Datasets, by name.

Their encoded images are read where they are, in TFDS' TFRecord files, by
position: an epoch may then be any permutation of the examples, without a
shuffle buffer and without a copy. Labels and positions are collected once, in
one pass. Datasets stored in another format are copied into such a file.
"""

import hashlib
import itertools
import json
import math
import mmap
import os
import re
import struct

import numpy as np
import tensorflow as tf

from keras_transfer.data.cache import cached
from keras_transfer.data.image_files import ImageFiles, copy_images, digest
from keras_transfer.data.sources import registry
from keras_transfer.data.sources.registry import Found, names, register
from keras_transfer.errors import UserError

_MANUAL_FILES = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
}


def count_tfds(name, train_split, test_split, split_size):
    """Counts what TFDS says a dataset has, whether it is there or not.

    Args:
        name: as for `open_builder`.
        train_split: name of the training split.
        test_split: name of the test split, or None.
        split_size: at most so many of either; None for all.

    Returns:
        Names of the classes, numbers of training and of test images.

    Raises:
        UserError: as `open_builder`, or if TFDS does not know.
    """
    builder = _find_builder(name, None)
    test_split = test_split or default_test_split(builder)
    try:
        counts = [
            builder.info.splits[split].num_examples
            for split in (train_split, test_split)
        ]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"TFDS does not say how many images it has. Received: name={name!r}"
        ) from error
    limit = split_size or max(counts)
    return class_names(builder), *(min(count, limit) for count in counts)


@register(count=count_tfds)
def find_tfds(
    name,
    data_dir,
    train_split,
    test_split,
    split_size,
    split_seed,
    cache_dir,
    validation_split,
):
    """Finds the encoded images and the labels of a dataset.

    Args:
        name: as for `open_builder`.
        data_dir: likewise.
        train_split: as TFDS takes it: "train", "train[:80%]".
        test_split: likewise; None for "test" or else "validation".
        split_size: how many examples of either split are drawn; None for all.
        split_seed: seed of that draw: NumPy's `RandomState`.
        cache_dir: where positions (or a copy) are kept, see `cached`.
        validation_split: name of another split, or None.

    Returns:
        A `Found`.

    Raises:
        UserError: as `open_builder` and `read_split`.
    """
    builder = open_builder(name, data_dir)
    splits = {
        "train": train_split,
        "test": test_split or default_test_split(builder),
    }
    if validation_split is not None:
        splits["validation"] = validation_split
    for pair in itertools.combinations(splits, 2):
        _check_apart(builder, {name: splits[name] for name in pair})
    read = {
        name: _draw(
            *read_split(builder, split, cache_dir), split_size, split_seed
        )
        for name, split in splits.items()
    }
    height, width, channels = image_shape(builder)
    return Found.of_splits(
        class_names(builder),
        **read,
        image_size=(height, width) if height and width else None,
        channels=channels,
    )


def _check_apart(builder, splits):
    """Raises a `UserError` if two splits, by what they are for, overlap."""
    if not builder.info.splits:
        return
    instructions = (_instructions(builder, split) for split in splits.values())
    for a, b in itertools.product(*instructions):
        if a.filename == b.filename and max(a.skip, b.skip) < min(
            _end(a), _end(b)
        ):
            given = ", ".join(f"{k}_split={v!r}" for k, v in splits.items())
            raise UserError(
                f"{' and '.join(splits).capitalize()} examples have to be "
                f"others, and these splits overlap. Received: {given}; bind "
                "them to parts such as 'train[:80%]' and 'train[80%:]'."
            )


def _end(instruction):
    """Returns the position in its file at which a part of it ends."""
    if instruction.take < 0:
        return math.inf
    return instruction.skip + instruction.take


def _draw(images, labels, size, seed):
    """Draws `size` examples, if there are more; keeps their order."""
    if size is None or size >= len(labels):
        return images, labels
    rows = np.random.RandomState(seed).permutation(len(labels))[:size]
    rows = np.sort(rows)
    return images.select(rows), labels[rows]


def open_builder(name, data_dir):
    """Returns a TFDS builder, its data downloaded and prepared.

    Args:
        name: as TFDS takes it: "cifar10", "domainnet/real", "mnist:3.*.*".
        data_dir: where TFDS keeps its data; None for its default.

    Returns:
        `tfds.core.DatasetBuilder`.

    Raises:
        UserError: if there is no such dataset, it is not for image
            classification, or it is not there and cannot be had.
    """
    builder = _find_builder(name, data_dir)
    _prepare(builder)
    return builder


def _find_builder(name, data_dir):
    import tensorflow_datasets as tfds

    _check_fetching(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(
            f"There is no dataset {name!r}. Received: name={name!r}; use one "
            f"of {', '.join(names())}, or a name that tfds.list_builders() "
            f"lists; import the module of a source of your own first. TFDS "
            f"said: {str(error).splitlines()[0]}"
        ) from error
    features = dict(builder.info.features)
    image, label = builder.info.supervised_keys or (None, None)
    if not isinstance(features.get(image), tfds.features.Image) or not (
        isinstance(features.get(label), tfds.features.ClassLabel)
    ):
        raise UserError(
            "Of TFDS' datasets, those that map one image to one class can be "
            f"used. Received: name={name!r}, with features "
            f"{', '.join(features)}."
        )
    return builder


def _check_fetching(name, data_dir):
    """Raises a `UserError` if a name would fetch code or data unasked."""
    is_remote = re.match(r"[^/:]+:[A-Za-z_]", name) or "://" in (
        f"{name} {data_dir}"
    )
    if is_remote and not registry.may_fetch():
        raise UserError(
            "What only a run's data.json names is not fetched. Received: "
            f"name={name!r}, data_dir={data_dir!r}; give data of your own to "
            "analyze the run with (Models.data)."
        )


def _prepare(builder):
    """Downloads and prepares what is not there yet; TFDS does so atomically."""
    import tensorflow_datasets as tfds

    if not registry.may_fetch() and not builder.is_prepared():
        raise UserError(
            f"{builder.name} is not in {builder.data_dir}, and what only a "
            "run's data.json names is not fetched. Prepare it first, with "
            f"`tfds build {builder.name}` or by training on it."
        )
    root = str(builder.data_dir_root)
    manual = os.path.join(root, "downloads", "manual")
    try:
        _check_manual_files(builder, manual)
        builder.download_and_prepare()
    except AssertionError as error:
        # How TFDS says that files to be downloaded by hand are missing.
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(
            f"{builder.name} has to be downloaded by hand, into {manual}; the "
            "same command then prepares it. Received: load.data_dir="
            f"{root!r}, the folder that holds downloads/manual. "
            f"{str(error).splitlines()[0]} {instructions}"
        ) from error
    except (OSError, tfds.download.DownloadError) as error:
        raise UserError(
            f"{builder.name} is not in {builder.data_dir} and cannot be "
            "downloaded and prepared. Check the connection and the free "
            "space and run the same command again, or bind load.data_dir to a "
            "TFDS folder in which it is prepared; files fetched in another way "
            f"can be put into {manual}. TFDS said: {error}"
        ) from error


def _check_manual_files(builder, manual):
    """Asks for all files; TFDS would prepare what splits it has files for."""
    if builder.is_prepared():
        return
    for name in _MANUAL_FILES.get(builder.name, ()):
        if not tf.io.gfile.exists(os.path.join(manual, name)):
            raise AssertionError(f"{name} is not there.")


def class_names(builder):
    """Returns the names of a builder's classes."""
    label = builder.info.features[builder.info.supervised_keys[1]]
    return tuple(label.names or map(str, range(label.num_classes)))


def image_shape(builder):
    """Returns (height, width, channels) of a builder's images; None: various.

    "Various" channels are colour and gray.
    """
    return builder.info.features[builder.info.supervised_keys[0]].shape


def read_split(builder, split, cache_dir=None):
    """Returns the encoded images and labels of a split.

    Args:
        builder: as `open_builder` gives it.
        split: as TFDS takes it: "train", "train[:80%]".
        cache_dir: where positions (or a copy) are kept, see `cached`.

    Returns:
        images: `ImageFiles`, in the order in which they are stored.
        labels: int32 [n].

    Raises:
        UserError: if there is no such split, or examples have no class.
    """
    instructions = _record_files(builder, split)
    if instructions is None:
        images, labels = _copied(builder, split, cache_dir)
    else:
        images, labels = _indexed(builder, instructions, cache_dir)
    if not len(labels) or labels.min() < 0:
        raise UserError(
            f"Split {split!r} of {builder.name} has no examples, or examples "
            "without a class. Bind load.train_split and load.test_split to "
            f"others. TFDS has: {', '.join(builder.info.splits) or split}."
        )
    return images, labels


def default_test_split(builder):
    """Returns "test", or "validation" if there is none."""
    return "test" if "test" in builder.info.splits else "validation"


def _record_files(builder, split):
    """Returns TFDS' file instructions for TFRecord files, else None."""
    import tensorflow_datasets as tfds

    tfrecord = tfds.core.FileFormat.TFRECORD
    if not builder.info.splits or builder.info.file_format != tfrecord:
        return None
    instructions = _instructions(builder, split)
    return None if _are_remote(instructions) else instructions


def _are_remote(instructions):
    return any("://" in str(i.filename) for i in instructions)


def _instructions(builder, split):
    """Returns TFDS' file instructions for a split."""
    try:
        return builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{builder.name} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits)}. Bind load.train_split and "
            "load.test_split to these or parts of them, such as "
            "'train[:80%]'."
        ) from error


def _indexed(builder, instructions, cache_dir):
    """Finds images in TFRecord files."""
    from tqdm import tqdm

    paths = [str(i.filename) for i in instructions]
    parts = [(i.skip, i.take) for i in instructions]

    def write(folder):
        found = []
        for file, part in enumerate(
            tqdm(parts, "Indexing images", delay=2, disable=None, leave=None)
        ):
            keys = builder.info.supervised_keys
            for entry in _scan(paths[file], *part, *keys):
                found.append((file, *entry))
        np.save(folder / "index.npy", np.array(found, np.int64).reshape(-1, 4))

    def read(folder):
        index = np.load(folder / "index.npy", allow_pickle=False)
        if index.dtype != np.int64 or index.ndim != 2 or index.shape[1] != 4:
            raise ValueError(f"the index is {index.dtype} {index.shape}")
        return index

    state = json.dumps([digest(paths), parts])
    num_bytes = 32 * sum(i.examples_in_shard for i in instructions)
    file, offset, length, label = cached(
        state, write, read, num_bytes, cache_dir
    ).T
    key = hashlib.sha256(state.encode()).hexdigest()
    images = ImageFiles(tuple(paths), key, file, offset, length)
    return images, label.astype(np.int32)


def _scan(path, skip, take, image_key, label_key):
    """Yields (offset, length, label) of the images in one TFRecord file.

    A record is its length (uint64), a checksum (4 bytes), a serialized
    `tf.train.Example` and another checksum. `take` is -1 for all.
    """
    if not os.path.getsize(path):
        return
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        position = number = 0
        while position < len(content):
            begin = position + 12
            (length,) = struct.unpack_from("<Q", content, position)
            position = begin + length + 4
            if position > len(content):
                raise UserError(
                    f"{path} is cut short. Remove the folder it is in and "
                    "prepare the dataset again."
                )
            number += 1
            if number <= skip:
                continue
            if take >= 0 and number > skip + take:
                return
            record = content[begin : begin + length]
            features = tf.train.Example.FromString(record).features.feature
            (image,) = features[image_key].bytes_list.value
            (label,) = features[label_key].int64_list.value
            yield begin + record.find(image), len(image), label


def _encoded(builder, split):
    """Returns examples with their images encoded, in the order of their files.

    Raises:
        UserError: if they are stored in a way that cannot be read here.
    """
    import tensorflow_datasets as tfds

    decoders = {builder.info.supervised_keys[0]: tfds.decode.SkipDecoding()}
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        return builder.as_dataset(
            split=split,
            decoders=decoders,
            # In sequence, so that the same split is in the same order.
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
            shuffle_files=False,
        ).as_numpy_iterator()
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except (ImportError, NotImplementedError, ValueError, OSError) as error:
        raise UserError(
            f"{builder.name} is stored as ArrayRecord and cannot be read. "
            "Install the package array_record, or prepare it again as "
            "TFRecord: tfds build --file_format=tfrecord. TFDS said: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _copied(builder, split, cache_dir):
    """Copies encoded images into one file."""
    image_key, label_key = builder.info.supervised_keys

    def pairs():
        for example in _encoded(builder, split):
            yield bytes(example[image_key]), int(example[label_key])

    key = [builder.info.full_name, str(builder.data_dir), split]
    if builder.info.splits:
        instructions = _instructions(builder, split)
        if not _are_remote(instructions):
            # Prepared anew, they may be others.
            paths = [str(i.filename) for i in instructions]
            key.append(digest(filter(os.path.exists, paths)))
    num_bytes = builder.info.dataset_size or 0
    return copy_images(pairs, key, num_bytes, cache_dir)
