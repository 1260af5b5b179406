"""Encoded images (JPEG, PNG, BMP, GIF) in files, and decoding them.

What is the same in every epoch is decoded once and kept (`decode`). What is cut
from the whole image at random is decoded afresh every time (`FileDataset`).
"""

import dataclasses
import functools
import hashlib
import os

import numpy as np
import tensorflow as tf
from absl import logging

from keras_transfer.data.augment import augment
from keras_transfer.data.cache import cached, store
from keras_transfer.data.pipeline import Dataset, Split, mix
from keras_transfer.data.preprocessing import Fit, normalize
from keras_transfer.data.streams import PARALLEL_CALLS, prefetch
from keras_transfer.errors import UserError

_BATCH = 64  # Images handed from tf.data to Python at a time.
# Every core holds such an image as bytes and as float32 while it is resized.
_MAX_PIXELS = 2**26
# The shorter side is resized to what the model sees, the longer one with it.
_MAX_RATIO = 100


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Encoded images, each a file or a stretch of one, read by their rows.

    Equal and hashable by what they hold.

    Attributes:
        paths: paths of the files, a tuple of strings.
        digest: string that changes with the files.
        file: integers [n], the file in `paths` of each image.
        offset: int64 [n], where in the file it begins, in bytes; None if
            images are whole files.
        length: int64 [n], how long it is, in bytes; None likewise.
    """

    paths: tuple[str, ...]
    digest: str
    file: np.ndarray
    offset: np.ndarray | None = None
    length: np.ndarray | None = None

    in_memory = False

    @classmethod
    def of_files(cls, paths):
        """Returns the images that are the given files."""
        paths = tuple(map(str, paths))
        return cls(paths, digest(paths), np.arange(len(paths)))

    def __len__(self):
        """Returns the number of images."""
        return len(self.file)

    def __eq__(self, other):
        """Whether both hold the same images."""
        return self.digest == other.digest

    def __hash__(self):
        """Returns a hash of what is held."""
        return hash(self.digest)

    def select(self, rows):
        """Returns the images of the given rows (integer array [m])."""
        rows = np.asarray(rows, np.int64)
        text = self.digest.encode() + rows.tobytes()
        return ImageFiles(
            self.paths,
            hashlib.sha256(text).hexdigest(),
            self.file[rows],
            None if self.offset is None else self.offset[rows],
            None if self.length is None else self.length[rows],
        )

    def concatenate(self, other):
        """Returns these images followed by others of the same source."""
        both = hashlib.sha256((self.digest + other.digest).encode())
        pairs = [
            (self.offset, other.offset),
            (self.length, other.length),
        ]
        return ImageFiles(
            self.paths + other.paths,
            both.hexdigest(),
            np.concatenate([self.file, other.file + len(self.paths)]),
            *(None if a is None else np.concatenate([a, b]) for a, b in pairs),
        )

    def name(self, row):
        """Returns words for one image, for messages."""
        path = self.paths[self.file[row]]
        if self.offset is None:
            return path
        return f"{path} (from byte {self.offset[row]})"

    def read(self, row):
        """Reads one image's bytes, inside a `tf.data` function.

        Args:
            row: integer scalar tensor.

        Returns:
            Scalar string tensor.
        """
        if self.offset is None:
            paths, file = self._tensors
            return tf.io.read_file(tf.gather(paths, tf.gather(file, row)))
        content = tf.numpy_function(
            self._read_stretch, [row], tf.string, stateful=False
        )
        return tf.ensure_shape(content, [])

    def _read_stretch(self, row):
        with open(self.paths[self.file[row]], "rb", buffering=0) as file:
            return os.pread(
                file.fileno(), int(self.length[row]), int(self.offset[row])
            )

    @functools.cached_property
    def _tensors(self):
        with tf.init_scope(), tf.device("/CPU:0"):
            # As bytes: a name on disk need not be UTF-8.
            paths = [os.fsencode(path) for path in self.paths]
            return tf.constant(paths, tf.string), tf.constant(self.file)


def digest(paths):
    """Returns a string that changes with the files' names, sizes and times."""
    state = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        line = (path, status.st_size, status.st_mtime_ns)
        state.update(repr(line).encode())
    return state.hexdigest()


def decode(images, fit, on_damaged, memory_budget, cache_dir=None):
    """Decodes images once, at one size, into memory or a cache file.

    Args:
        images: `ImageFiles`.
        fit: `Fit`, how they are brought to one size.
        on_damaged: what to do about images that cannot be decoded: "error" or
            "skip".
        memory_budget: as in `store`.
        cache_dir: as in `store`.

    Returns:
        decoded: `Images`, one row an image.
        valid: bool [len(images)], False for damaged images.

    Raises:
        UserError: if there are damaged images and `on_damaged` is "error".
    """
    decoded, valid = _decoded(images, fit, memory_budget, cache_dir)
    _report_damaged(images, valid, on_damaged)
    return decoded, valid


def check(images, on_damaged, cache_dir=None):
    """Finds out, once, which images can be decoded.

    Args:
        images: `ImageFiles`.
        on_damaged: as in `decode`.
        cache_dir: where the answer is kept, as in `cached`.

    Returns:
        bool [len(images)], False for damaged images.

    Raises:
        UserError: if there are damaged images and `on_damaged` is "error".
    """

    def write(folder):
        valid = np.zeros(len(images), bool)
        stream = _read_all(
            images, lambda x: tf.shape(decode_image(x)), "Checking images"
        )
        for rows, _ in stream:
            valid[rows] = True
        np.save(folder / "valid.npy", valid)

    def read(folder):
        valid = np.load(folder / "valid.npy", allow_pickle=False)
        if (valid.shape, valid.dtype) != ((len(images),), np.bool_):
            raise ValueError(f"validity is {valid.dtype} {valid.shape}")
        return valid

    key = ["valid", images.digest]
    valid = cached(key, write, read, len(images), cache_dir)
    _report_damaged(images, valid, on_damaged)
    return valid


# Four: source and target domain may be in use in turn.
@functools.lru_cache(maxsize=4)
def _decoded(images, fit, memory_budget, cache_dir):
    return store(
        shape=(len(images), fit.crop, fit.crop, fit.channels),
        fill=functools.partial(_fill, images=images, fit=fit),
        key=[images.digest, dataclasses.astuple(fit)],
        memory_budget=memory_budget,
        cache_dir=cache_dir,
    )


def _fill(array, images, fit):
    """Decodes all images into `array`; returns which could be decoded."""
    valid = np.zeros(len(images), bool)
    stream = _read_all(
        images,
        lambda x: fit(decode_image(x, fit.decoded_channels)),
        "Decoding images",
    )
    for rows, decoded in stream:
        array[rows] = decoded
        valid[rows] = True
    return valid


def _read_all(images, function, description):
    """Yields (rows, `function` of their bytes) without those it fails for."""
    from tqdm import tqdm

    def load(row):
        content = images.read(row)
        with tf.control_dependencies([_check_size(content)]):
            return row, function(tf.identity(content))

    dataset = tf.data.Dataset.range(len(images)).map(
        load, num_parallel_calls=PARALLEL_CALLS, deterministic=False
    )
    # A damaged file drops out here and its row is never seen.
    dataset = dataset.ignore_errors(log_warning=False)
    dataset = prefetch(dataset.batch(_BATCH))
    with tqdm(
        total=len(images),
        desc=description,
        delay=2,
        disable=None,
        leave=None,
    ) as progress:
        for rows, results in dataset.as_numpy_iterator():
            yield rows, results
            progress.update(len(rows))


def decode_image(content, channels=3):
    """Decodes the content of an image file.

    Args:
        content: scalar string tensor: a JPEG, PNG, BMP or GIF (first frame).
        channels: 1 or 3.

    Returns:
        uint8 [height, width, channels].
    """
    return tf.io.decode_image(
        content, channels=channels, expand_animations=False
    )


def _check_size(content):
    """Returns an operation that fails for an image that is too large.

    A file of a few KB can hold more pixels than there is memory for, so its
    header is asked before it is decoded.
    """
    sides = tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.int64),
        lambda: _sides_in_header(content),
    )
    shorter, longer = tf.reduce_min(sides), tf.reduce_max(sides)
    # A quotient: the product of two sides of 32 bits could overflow.
    fits = (shorter > 0) & (longer <= _MAX_RATIO * shorter)
    fits &= longer <= _MAX_PIXELS // tf.maximum(shorter, 1)
    return tf.debugging.Assert(fits, [sides])


def _sides_in_header(content):
    """Returns the sides, int64 [2], that a PNG, GIF or BMP claims to have."""
    start = tf.strings.substr(content, 0, 26)
    # Shorter files get zeros, which no image has for a side.
    padded = tf.strings.join([start, tf.constant(bytes(26))])
    octets = tf.cast(tf.io.decode_raw(padded, tf.uint8), tf.int64)

    def number(first, powers):
        part = octets[first : first + len(powers)]
        return tf.reduce_sum(part * np.array(powers, np.int64))

    upwards = [1, 2**8, 2**16, 2**24]
    downwards = upwards[::-1]
    png = tf.stack([number(16, downwards), number(20, downwards)])
    gif = tf.stack([number(6, upwards[:2]), number(8, upwards[:2])])
    height = number(22, upwards)
    # Rows from top to bottom are told by a negative height.
    bmp = tf.stack([number(18, upwards), tf.minimum(height, 2**32 - height)])
    is_gif = tf.strings.substr(padded, 0, 3) == b"GIF"
    is_bmp = tf.strings.substr(padded, 0, 2) == b"BM"
    return tf.where(is_gif, gif, tf.where(is_bmp, bmp, png))


def _report_damaged(images, valid, on_damaged):
    if on_damaged not in ("error", "skip"):
        raise UserError(
            "on_damaged must be 'error' or 'skip'. "
            f"Received: on_damaged={on_damaged!r}."
        )
    damaged = [images.name(i) for i in np.flatnonzero(~valid)]
    if damaged and on_damaged == "error":
        raise UserError(
            f"{len(damaged)} of {len(valid)} files cannot be decoded as "
            f"images. Received: {some(damaged)}. Repair or remove them (what "
            "can be decoded is JPEG, PNG, BMP and GIF, of at most "
            f"{_MAX_PIXELS // 10**6} million pixels, one side at most "
            f"{_MAX_RATIO} times the other), or set on_damaged='skip' to go "
            "on without them."
        )
    if damaged:
        logging.warning(
            "Skipped %d of %d files that cannot be decoded as images: %s",
            len(damaged),
            len(valid),
            some(damaged),
        )


def some(names):
    """Names the first few of many."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


@dataclasses.dataclass(frozen=True, eq=False)
class FileSplit(Split):
    """A split whose images are decoded whenever they are fetched.

    Attributes:
        fit: `Fit`, how an image becomes what is fetched.
    """

    fit: Fit

    def raw_images(self, examples):
        """Returns fitted images uint8 [b, size, size, c], as an array."""
        return self.fetch(tf.constant(examples, tf.int32), 1)[0].numpy()

    def fetch(self, examples, num_classes):
        """Fetches examples fitted, not augmented; see `Split.fetch`."""
        size, channels = self.fit.crop, self.fit.channels
        rows, _ = self._tensors
        images = tf.map_fn(
            lambda row: self.fit(self._decode(row)),
            tf.gather(rows, examples),
            fn_output_signature=tf.TensorSpec([size, size, channels], tf.uint8),
        )
        return images, self.fetch_targets(examples, num_classes)

    def load(self, example, augmentation, uniforms):
        """Decodes, augments and fits one image, inside a `tf.data` function.

        Args:
            example: integer scalar tensor.
            augmentation: sequence of `Augmentation`.
            uniforms: float32 [k], the random numbers these need.

        Returns:
            uint8 [size, size, c].
        """
        rows, _ = self._tensors
        size, fit = self.fit.crop, self.fit
        image = self._decode(tf.gather(rows, example))[None]
        image = augment(augmentation, image, uniforms[None], size)
        if image.shape[1:3] == (size, size):
            # It is cut out already: nothing is left to resize.
            fit = dataclasses.replace(fit, resize=size)
        return fit(image)[0]

    def _decode(self, row):
        return decode_image(self.images.read(row), self.fit.decoded_channels)


class FileDataset(Dataset):
    """A dataset whose training images are decoded afresh in every epoch.

    Augmentation sees the whole image at its own size. The order, the random
    numbers and the interface are those of `Dataset`; `train` is an
    `FileSplit`, `test` any `Split`.
    """

    def _load_batches(self, parts, augmentation):
        """See `Dataset`; images are loaded one by one, in parallel."""
        (batch_size,) = parts.element_spec["examples"].shape

        def load(part):
            uniforms = part.pop("uniforms")
            image = self.train.load(part["examples"], augmentation, uniforms)
            return image, part

        def finish(images, part):
            targets = self.train.fetch_targets(
                part["examples"], self._num_classes
            )
            # One weight a batch, repeated for every example of it.
            if "weight" in part:
                part["weight"] = part["weight"][0]
            return mix(normalize(images, self.info), targets, part)

        examples = parts.flat_map(
            lambda part: tf.data.Dataset.from_tensor_slices(
                {
                    name: tf.broadcast_to(
                        x, [batch_size] + x.shape[1:].as_list()
                    )
                    for name, x in part.items()
                }
            )
        )
        images = examples.map(load, num_parallel_calls=PARALLEL_CALLS)
        batches = images.batch(batch_size, drop_remainder=True)
        return batches.map(finish, num_parallel_calls=PARALLEL_CALLS)
