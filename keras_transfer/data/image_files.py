"""Encoded images (JPEG, PNG, BMP, GIF) in files, and decoding them.

What is the same in every epoch is decoded once and kept (`decode`). What is cut
from the whole image at random is decoded afresh every time (`FileDataset`).

Pixels are used as they are stored, as by Pillow's `Image.open`: images that
EXIF wants turned are not turned, but counted. Of 16 bits a channel the upper
8 are used, which suits no images of 12 bits: these are refused.
"""

import dataclasses
import functools
import hashlib
import os

import numpy as np
import tensorflow as tf
from absl import logging

from keras_transfer.data.augment import augment
from keras_transfer.data.cache import (
    ReadingFailed,
    cached,
    load_arrays,
    save_arrays,
    store,
)
from keras_transfer.data.image_headers import read_header
from keras_transfer.data.pipeline import Dataset, Split, mix
from keras_transfer.data.preprocessing import (
    MAX_PIXELS,
    MAX_RATIO,
    Fit,
    both_sides,
    convert_channels,
    has_usual_sides,
    normalize,
    to_uint8,
)
from keras_transfer.data.streams import PARALLEL_CALLS, prefetch
from keras_transfer.errors import UserError

_BATCH = 64  # Images handed from tf.data to Python at a time.
# A value of 16-bit data that all use of it leaves unreached.
_HALF_OF_16_BITS = 2**15


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
        contents: uint64 [n], numbers that change with each image's bytes; None
            before they were read.
        max_pixels: of how many pixels an image is decoded at most.
    """

    paths: tuple[str, ...]
    digest: str
    file: np.ndarray
    offset: np.ndarray | None = None
    length: np.ndarray | None = None
    contents: np.ndarray | None = None
    max_pixels: int = MAX_PIXELS

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
        arrays = {
            name: None if array is None else array[rows]
            for name, array in self._arrays.items()
        }
        return dataclasses.replace(
            self, digest=hashlib.sha256(text).hexdigest(), **arrays
        )

    def limited(self, max_pixels):
        """Returns these images, of at most so many pixels each."""
        text = f"{self.digest} {max_pixels}"
        return dataclasses.replace(
            self,
            digest=hashlib.sha256(text.encode()).hexdigest(),
            max_pixels=max_pixels,
        )

    def concatenate(self, other):
        """Returns these images followed by others of the same source."""
        both = hashlib.sha256((self.digest + other.digest).encode())
        shifted = other._arrays | {"file": other.file + len(self.paths)}
        arrays = {
            name: None if array is None else np.concatenate([array, others])
            for (name, array), others in zip(
                self._arrays.items(), shifted.values(), strict=True
            )
        }
        return dataclasses.replace(
            self,
            paths=self.paths + other.paths,
            digest=both.hexdigest(),
            **arrays,
        )

    @property
    def _arrays(self):
        """What there is of each image."""
        names = ("file", "offset", "length", "contents")
        return {name: getattr(self, name) for name in names}

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

    def read_now(self, row):
        """Reads one image's bytes.

        Raises:
            OSError: if that cannot be.
        """
        if self.offset is not None:
            return self._read_stretch(row)
        with open(self.paths[self.file[row]], "rb") as file:
            return file.read()

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


def copy_images(examples, key, num_bytes, cache_dir=None):
    """Copies encoded images, once, into one file of the cache.

    Args:
        examples: function without arguments that yields (bytes, label) pairs.
        key: as in `cached`.
        num_bytes: likewise.
        cache_dir: likewise.

    Returns:
        images: `ImageFiles`.
        labels: int32 [n].

    Raises:
        UserError: as `cached`.
    """
    from tqdm import tqdm

    def write(folder):
        lengths, labels = [], []
        with open(folder / "images.bin", "wb") as file:
            for content, label in tqdm(
                examples(), "Copying images", delay=2, disable=None, leave=None
            ):
                file.write(content)
                lengths.append(len(content))
                labels.append(label)
        table = np.array([lengths, labels], np.int64).reshape(2, -1)
        np.save(folder / "index.npy", table)

    def read(folder):
        lengths, labels = np.load(folder / "index.npy", allow_pickle=False)
        path = folder / "images.bin"
        if path.stat().st_size != lengths.sum():
            raise ValueError(f"{path} has not the length it should have")
        return str(path), lengths, labels

    path, lengths, labels = cached(key, write, read, num_bytes, cache_dir)
    images = ImageFiles(
        (path,),
        digest([path]),
        np.zeros(len(lengths), np.int64),
        np.cumsum(lengths) - lengths,
        lengths,
    )
    return images, labels.astype(np.int32)


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
    decoded, found = _decoded(images, fit, memory_budget, cache_dir)
    _report(images, found, on_damaged)
    return decoded, found["valid"]


def check(images, on_damaged, cache_dir=None):
    """Finds out, once, which images can be decoded.

    Args:
        images: `ImageFiles`.
        on_damaged: as in `decode`.
        cache_dir: where the answer is kept, as in `cached`.

    Returns:
        images: the `ImageFiles`, with their `contents`.
        valid: bool [len(images)], False for damaged images.

    Raises:
        UserError: if there are damaged images and `on_damaged` is "error", or
            images cannot be read.
    """

    def write(folder):
        found, read = (
            _nothing_found(images),
            _read_all(
                images, lambda x: tf.shape(decode_image(x)), "Checking images"
            ),
        )
        for rows, facts, _ in read:
            _note(found, rows, facts)
        _check_readable(images, found["valid"])
        save_arrays(folder, found)

    key = ["valid", images.digest]
    found = cached(
        key,
        write,
        lambda folder: load_arrays(folder, len(images)),
        len(images),
        cache_dir,
    )
    _report(images, found, on_damaged)
    images = dataclasses.replace(images, contents=found["contents"])
    return images, found["valid"]


# Four: source and target domain may be in use in turn.
@functools.lru_cache(maxsize=4)
def _decoded(images, fit, memory_budget, cache_dir):
    return store(
        shape=(len(images), *both_sides(fit.crop), fit.channels),
        fill=functools.partial(_fill, images=images, fit=fit),
        key=[images.digest, dataclasses.astuple(fit)],
        memory_budget=memory_budget,
        cache_dir=cache_dir,
    )


def _fill(array, images, fit):
    """Decodes all images into `array`; returns what was found out of each."""
    found, read = (
        _nothing_found(images),
        _read_all(
            images,
            lambda x: fit(decode_image(x, fit.decoded_channels)),
            "Decoding images",
        ),
    )
    for rows, facts, decoded in read:
        array[rows] = decoded
        _note(found, rows, facts)
    _check_readable(images, found["valid"])
    return found


def _nothing_found(images):
    """Returns what is known of images of which none could be decoded.

    Returns:
        {name: array [n]}: "valid", whether it can be decoded; "contents", a
        number that changes with its bytes; "turned", whether EXIF wants it
        turned; "largest", its largest value if it has 16 bits, else -1.
    """
    number = len(images)
    return {
        "valid": np.zeros(number, bool),
        "contents": np.zeros(number, np.uint64),
        "turned": np.zeros(number, bool),
        "largest": np.full(number, -1, np.int32),
    }


def _note(found, rows, facts):
    found["valid"][rows] = True
    for name, values in facts.items():
        found[name][rows] = values


def _read_all(images, function, description):
    """Reads all images once, without those that cannot be decoded.

    Yields:
        rows, {fact: array} as in `_nothing_found`, and results of `function` of
        their bytes.
    """
    from tqdm import tqdm

    def header(content):
        read = read_header(content, images.max_pixels)
        sides = (0, 0) if read.problem else (read.height, read.width)
        return np.array([*sides, read.is_turned, read.is_deep], np.int64)

    def load(row):
        content = images.read(row)
        told = tf.numpy_function(header, [content], tf.int64, stateful=False)
        told = tf.ensure_shape(told, [4])
        with tf.control_dependencies(
            [_check_size(content, told[:2], images.max_pixels)]
        ):
            content = tf.identity(content)
        facts = {
            "contents": tf.strings.to_hash_bucket_fast(content, 2**63 - 1),
            "turned": told[2] > 0,
            "largest": tf.cond(
                told[3] > 0, lambda: _largest(content), lambda: -1
            ),
        }
        return row, facts, function(content)

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
        for rows, facts, results in dataset.as_numpy_iterator():
            yield rows, facts, results
            progress.update(len(rows))


def _largest(content):
    # Without alpha, which always reaches the largest value there is.
    return tf.cast(
        tf.reduce_max(tf.io.decode_png(content, 3, tf.uint16)), tf.int32
    )


def decode_image(content, channels=3):
    """Decodes the content of an image file.

    Args:
        content: scalar string tensor: a JPEG, PNG, BMP or GIF (first frame).
        channels: 1 or 3.

    Returns:
        uint8 [height, width, channels].
    """
    image = tf.cond(
        tf.strings.substr(content, 0, 2) == b"BM",
        lambda: _decode_bmp(content, channels),
        lambda: tf.io.decode_image(
            content, channels=channels, expand_animations=False
        ),
    )
    return tf.ensure_shape(image, [None, None, channels])


def _decode_bmp(content, channels):
    """Decodes a BMP, whose pixels may be numbers of colours in a palette."""
    image = tf.io.decode_bmp(content, channels=0)
    image = tf.cond(
        tf.shape(image)[-1] == 1,
        lambda: tf.gather(_palette(content), tf.cast(image[..., 0], tf.int32)),
        lambda: image[..., :3],
    )
    image = tf.ensure_shape(image, [None, None, 3])
    return to_uint8(convert_channels(image, channels))


def _palette(content):
    """Returns the colours of a BMP of 8 bits a pixel, uint8 [256, 3]."""

    def number(position):
        octets = tf.strings.substr(content, position, 4)
        return tf.reshape(tf.io.decode_raw(octets, tf.int32), [])

    start = 14 + number(14)
    # What lies between the header and the pixels, 4 bytes a colour.
    count = tf.clip_by_value((number(10) - start) // 4, 0, 256)
    octets = tf.io.decode_raw(
        tf.strings.substr(content, start, 4 * count), tf.uint8
    )
    colours = tf.reshape(octets, [-1, 4])[:, 2::-1]
    colours = tf.pad(colours, [[0, 256 - tf.shape(colours)[0]], [0, 0]])
    gray = tf.cast(tf.repeat(tf.range(256)[:, None], 3, axis=1), tf.uint8)
    return tf.where(count > 0, colours, gray)


def _check_size(content, sides, max_pixels):
    """Returns an operation that fails for an image that is too large.

    Args:
        content: scalar string tensor.
        sides: int64 [2], height and width as its header tells them.
        max_pixels: how many pixels it may have.
    """
    sides = tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.int64),
        lambda: sides,
    )
    return tf.debugging.Assert(has_usual_sides(sides, max_pixels), [sides])


def _check_readable(images, valid):
    """Raises a `ReadingFailed` if an image was not decoded for not being read.

    It may be read tomorrow, and must not be taken for damaged then.
    """
    unreadable = []
    for row in np.flatnonzero(~valid):
        try:
            images.read_now(row)
        except OSError as error:
            unreadable.append(f"{images.name(row)} ({error.strerror})")
    if unreadable:
        raise ReadingFailed(
            f"{len(unreadable)} of {len(images)} images cannot be read. "
            f"Received: {some(unreadable)}. See that they may be read, or "
            "remove them, and run the same command again."
        )


def _report(images, found, on_damaged):
    """Tells of images that are left out, or other than they seem."""
    if on_damaged not in ("error", "skip"):
        raise UserError(
            "on_damaged must be 'error' or 'skip'. "
            f"Received: on_damaged={on_damaged!r}."
        )
    damaged = np.flatnonzero(~found["valid"])
    if len(damaged):
        _report_damaged(images, damaged, on_damaged)
    _check_depth(images, found["largest"])
    turned = np.count_nonzero(found["turned"])
    if turned:
        logging.warning(
            "%d of %d images are marked as turned or mirrored (EXIF "
            "orientation). They are used as they are stored; to have them "
            "upright, turn the files.",
            turned,
            len(images),
        )


def _report_damaged(images, damaged, on_damaged):
    named = some([_described(images, row) for row in damaged])
    if on_damaged == "error":
        raise UserError(
            f"{len(damaged)} of {len(images)} files cannot be decoded as "
            f"images. Received: {named}. Repair or remove them (what can be "
            "decoded is JPEG, PNG, GIF, and BMP of 8, 24 or 32 bits, of at "
            f"most load.max_pixels={images.max_pixels}, one side at most "
            f"{MAX_RATIO} times the other), or set on_damaged='skip' to go "
            "on without them."
        )
    logging.warning(
        "Skipped %d of %d files that cannot be decoded as images: %s",
        len(damaged),
        len(images),
        named,
    )


def _described(images, row):
    """Returns words for an image that cannot be decoded."""
    header = read_header(images.read_now(row), images.max_pixels)
    sides = sorted((header.height, header.width))
    problem, name = header.problem, images.name(row)
    if any(sides) and not has_usual_sides(sides, images.max_pixels):
        problem = problem or f"{header.width} x {header.height} pixels"
    return f"{name} ({problem})" if problem else name


def _check_depth(images, largest):
    """Raises a `UserError` if 16-bit images use few of their 16 bits."""
    deep = np.flatnonzero(largest >= 0)
    top = largest.max(initial=-1)
    if 0 < top < _HALF_OF_16_BITS:
        bits = int(top).bit_length()
        raise UserError(
            f"{len(deep)} of {len(images)} images have 16 bits a channel and "
            f"no value above {top}, as images of {bits} bits have: of 16 bits "
            "the upper 8 are used, and little would be left. Received: "
            f"{some([images.name(row) for row in deep])}. Multiply their "
            f"values by {2 ** (16 - bits)}, or save them with 8 bits."
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
        """Returns fitted images uint8 [b, h, w, c], as an array."""
        return self.fetch(tf.constant(examples, tf.int32), 1)[0].numpy()

    def fetch(self, examples, num_classes):
        """Fetches examples fitted, not augmented; see `Split.fetch`."""
        shape = [*both_sides(self.fit.crop), self.fit.channels]
        rows, _ = self._tensors
        images = tf.map_fn(
            lambda row: self.fit(self._decode(row)),
            tf.gather(rows, examples),
            fn_output_signature=tf.TensorSpec(shape, tf.uint8),
        )
        return images, self.fetch_targets(examples, num_classes)

    def load(self, example, augmentation, uniforms):
        """Decodes, augments and fits one image, inside a `tf.data` function.

        Args:
            example: integer scalar tensor.
            augmentation: sequence of `Augmentation`.
            uniforms: float32 [k], the random numbers these need.

        Returns:
            uint8 [h, w, c].
        """
        rows, _ = self._tensors
        size, fit = both_sides(self.fit.crop), self.fit
        image = self._decode(tf.gather(rows, example))[None]
        image = augment(augmentation, image, uniforms[None], size)
        if image.shape[1:3] == size:
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
