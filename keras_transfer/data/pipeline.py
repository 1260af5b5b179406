"""Batches for training and evaluation, the same for any number of devices.

A *global batch* is cut into `num_workers * num_replicas` equal contiguous
parts. The dataset of one worker yields the parts of its replicas one after
another, as elements of their own, which is the form in which
`tf.distribute` hands them to replicas. Everything random is a function of
(seed, epoch, example) or (seed, epoch, step), so a resumed run continues the
very stream it left.
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from keras_transfer.data.augment import augment, check_augmentation
from keras_transfer.data.cache import Images, unnamed_file
from keras_transfer.data.examples import Examples, ExampleSplit
from keras_transfer.data.fingerprint import fingerprint
from keras_transfer.data.preprocessing import (
    Info,
    center_crop,
    normalize,
    shuffle_function,
    to_uint8,
)
from keras_transfer.data.streams import PARALLEL_CALLS, in_order
from keras_transfer.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The training, test or validation examples of a dataset.

    Attributes:
        images: `Images` that may hold other splits' images too.
        rows: integers [n], the row in `images` of each example.
        labels: integer class indices [n], or for multi-label data float32
            [n, num_classes] of zeros and ones.
    """

    images: Images
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self):
        """Returns the number of examples."""
        return len(self.rows)

    def select(self, examples):
        """Returns the split of the given examples (integer array)."""
        return dataclasses.replace(
            self, rows=self.rows[examples], labels=self.labels[examples]
        )

    def targets(self, num_classes):
        """Returns float32 [n, num_classes], one-hot or multi-hot."""
        if self.labels.ndim == 2:
            return self.labels
        return np.eye(num_classes, dtype=np.float32)[self.labels]

    def raw_images(self, examples):
        """Returns stored images uint8 [b, h, w, c] as a NumPy array."""
        return np.asarray(self.images.array[self.rows[examples]])

    def map_images(self, function, cache_dir=None):
        """Returns the split with its stored images changed, once.

        They are kept in memory if these are, else in a file without a name,
        which is gone with the process.

        Args:
            function: takes uint8 images [b, h, w, c], returns as many.
            cache_dir: folder for that file; see `cache.cached`.

        Raises:
            OSError: if there is no room for the file.
        """
        chunks = np.array_split(np.arange(len(self)), len(self) // 256 + 1)
        array = None
        with tf.init_scope():  # Also when first asked for inside a graph.
            for chunk in tqdm(
                chunks, "Moving blocks", delay=2, disable=None, leave=None
            ):
                images = function(self.raw_images(chunk)).numpy()
                if array is None:
                    shape = (len(self), *images.shape[1:])
                    array = (
                        np.empty(shape, np.uint8)
                        if self.images.in_memory
                        else unnamed_file(shape, cache_dir)
                    )
                array[chunk] = images
        return Split(Images(array), np.arange(len(self)), self.labels)

    def fetch(self, examples, num_classes, tensors=None):
        """Fetches examples inside a graph.

        Args:
            examples: int32 tensor [b].
            num_classes: number of classes.
            tensors: the `tensors` of the split to fetch from, so that one graph
                does for several; None for this one.

        Returns:
            Stored images uint8 [b, h, w, c] and targets float32
            [b, num_classes], one-hot or multi-hot.
        """
        if tensors is not None:
            images, rows, labels = tensors
            images = tf.gather(images, tf.gather(rows, examples))
            return images, _targets(labels, examples, num_classes)
        rows, _ = self._tensors
        images = self.images.gather(tf.gather(rows, examples))
        return images, self.fetch_targets(examples, num_classes)

    def fetch_targets(self, examples, num_classes):
        """Fetches targets alone; see `fetch`."""
        _, labels = self._tensors
        return _targets(labels, examples, num_classes)

    @property
    def tensors(self):
        """What `fetch` reads of a split in memory: images, rows, labels."""
        return (self.images.tensor, *self._tensors)

    @property
    def fingerprint(self):
        """Text that changes with the stored images and which they are."""
        state = hashlib.blake2b(self.images.digest.encode())
        state.update(np.asarray(self.rows, np.int64).tobytes())
        return state.hexdigest()

    @property
    def contents(self):
        """Numbers uint64 [n], one an example, which change with its image."""
        return np.asarray(self.images.contents, np.uint64)[self.rows]

    @functools.cached_property
    def _tensors(self):
        with tf.init_scope(), tf.device("/CPU:0"):
            return tf.constant(self.rows), tf.constant(self.labels)


def _targets(labels, examples, num_classes):
    targets = tf.gather(labels, examples)
    if targets.dtype.is_integer:
        targets = tf.one_hot(targets, num_classes)
    return targets


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with all that is known about them.

    Attributes:
        info: `Info`.
        train: `Split` of training examples.
        test: `Split` of held-out examples.
        arguments: JSON-able dict; the factory called with it gives the same
            data.
        factory: what `rebuild` knows the function by that made this; "load"
            for `load`, None if it is not known.
        has_own_normalization: whether a mean or std was asked for, rather than
            the default.
        validation: `Split` of examples held out to choose the best epoch on;
            None if there is none.
    """

    info: Info
    train: Split
    test: Split
    arguments: dict = dataclasses.field(default_factory=dict)
    factory: str | None = None
    has_own_normalization: bool = False
    validation: Split | None = None

    @property
    def splits(self):
        """{name: `Split`} of those that there are."""
        splits = {"train": self.train, "test": self.test}
        if self.validation is not None:
            splits["validation"] = self.validation
        return splits

    def normalized_as(self, info):
        """Returns this dataset with the mean and std of another.

        Args:
            info: `Info` of the other.

        Raises:
            UserError: if it has one mean a channel and other channels.
        """
        channels = self.info.image_shape[-1]
        scale = {}
        for name in ("mean", "std"):
            values = getattr(info, name)
            if len(values) != channels and len(set(values)) > 1:
                raise UserError(
                    f"Images of {channels} channels cannot be normalized as "
                    f"those of {info.name!r}. Received: {name}={values}; set "
                    f"channels={len(values)}, or mean and std of your own."
                )
            scale[name] = (
                values if len(values) == channels else (values[:1] * channels)
            )
        is_loaded = self.factory == "load"
        return dataclasses.replace(
            self,
            info=dataclasses.replace(self.info, **scale),
            arguments=self.arguments | (scale if is_loaded else {}),
            has_own_normalization=True,
        )

    def steps_per_epoch(self, batch_size, num_parts=1):
        """Returns the number of whole global batches in the training split.

        Args:
            batch_size: size of the global batch.
            num_parts: replicas that it is spread over.

        Raises:
            UserError: if the batch is larger than the training split or cannot
                be cut into equal parts.
        """
        _check_batch_size(batch_size, num_parts)
        if batch_size > len(self.train):
            raise UserError(
                f"There are only {len(self.train)} training examples. "
                f"Received: batch_size={batch_size}; choose a smaller one."
            )
        return len(self.train) // batch_size

    def train_batches(
        self,
        batch_size,
        seed,
        augmentation=(),
        mixup_alpha=0.0,
        **position,
    ):
        """Makes the endless stream of training batches of a run.

        Epoch e is a permutation of the training examples keyed by (seed, e),
        cut into `steps_per_epoch` global batches; what is left over is not
        seen in that epoch.

        Args:
            batch_size: size of the global batch.
            seed: integer seed of order, augmentation and mixup.
            augmentation: sequence of `Augmentation`, applied in turn. Images
                still larger than the model's input are then cropped at the
                centre.
            mixup_alpha: as `train_parts`.
            **position: where in the stream to start and which worker's part
                of it to make, as `train_parts`.

        Returns:
            An infinite `tf.data.Dataset` of images float32 [b, h, w, c] and
            targets float32 [b, num_classes],
            b = batch_size / (num_workers * num_replicas).

        Raises:
            UserError: as `train_parts`.
        """
        parts = self.train_parts(
            batch_size, seed, augmentation, mixup_alpha, **position
        )
        batches = self._load_batches(parts, augmentation)
        return in_order(batches, tf.data.INFINITE_CARDINALITY)

    def _load_batches(self, parts, augmentation):
        """Turns what `train_parts` gives into training batches."""
        return parts.map(
            lambda part: self.finish(part, augmentation),
            num_parallel_calls=PARALLEL_CALLS,
        )

    def train_parts(
        self,
        batch_size,
        seed,
        augmentation=(),
        mixup_alpha=0.0,
        first_epoch=0,
        first_step=0,
        num_replicas=1,
        num_workers=1,
        worker=0,
    ):
        """Makes the stream of what `finish` turns into training batches.

        For a training step that runs on the CPU itself: with images in memory
        it finishes its batch sooner than another thread, competing for the
        same cores, hands it over.

        Args:
            batch_size: size of the global batch.
            seed: integer seed of order, augmentation and mixup.
            augmentation: sequence of `Augmentation`, applied in turn. Images
                still larger than the model's input are then cropped at the
                centre.
            mixup_alpha: mixup (Zhang et al. 2018) with one
                lambda ~ Beta(alpha, alpha) for each global batch; partners
                come from the same part of the batch. 0 for none.
            first_epoch: epoch to start in, from 0.
            first_step: step of that epoch to start at, from 0.
            num_replicas: replicas of each worker.
            num_workers: number of workers.
            worker: index of this worker.

        Returns:
            An infinite `tf.data.Dataset` of dicts: "examples" int32 [b],
            "uniforms" float32 [b, k], and for mixup "weight" float32 scalar
            and "partners" int32 [b].

        Raises:
            UserError: if the batch is larger than the training split or
                cannot be cut into equal parts.
        """
        num_parts = num_workers * num_replicas
        check_augmentation(augmentation)
        steps = self.steps_per_epoch(batch_size, num_parts)

        def epoch_parts(epoch):
            parts, uniforms = _draw_epoch(
                [seed, epoch],
                len(self.train),
                [steps, num_parts, batch_size // num_parts],
                sum(a.num_uniforms for a in augmentation),
                mixup_alpha,
            )
            start = tf.where(epoch == first_epoch, first_step, 0)
            parts = tf.nest.map_structure(
                lambda x: _own(x[start:], worker, num_replicas), parts
            )
            return tf.data.Dataset.from_tensor_slices(parts).map(
                lambda part: (
                    part | {"uniforms": tf.gather(uniforms, part["examples"])}
                )
            )

        parts = tf.data.Dataset.counter(first_epoch).flat_map(epoch_parts)
        return in_order(parts, tf.data.INFINITE_CARDINALITY)

    def train_tensors(self, augmentation):
        """Returns the tensors that `finish` reads, of images in memory.

        Args:
            augmentation: the sequence of `Augmentation`.
        """
        return self._finished_from(augmentation).train.tensors

    def _finished_from(self, augmentation):
        return self if augmentation else self._blocks_moved

    def finish(self, part, augmentation, tensors=None):
        """Fetches, augments and normalizes one batch, inside a graph.

        Args:
            part: element of `train_parts`.
            augmentation: the sequence of `Augmentation` it was drawn for.
            tensors: `train_tensors` of this dataset, or of one with the same
                `info`; None for this one's.

        Returns:
            Images float32 [b, h, w, c] and targets float32
            [b, num_classes].
        """
        source = self._finished_from(augmentation)
        size = self.info.image_shape[:2]
        images, targets = source.train.fetch(
            part["examples"], self._num_classes, tensors
        )
        images = augment(augmentation, images, part["uniforms"], size)
        # In whole levels there is a quarter as much to move and shuffle.
        images = to_uint8(center_crop(images, size))
        images = normalize(images, source.info)
        return mix(images, targets, part)

    @property
    def in_memory(self):
        """Whether all images are in memory, decoded."""
        return self.train.images.in_memory

    def eval_batches(
        self,
        split="test",
        batch_size=256,
        num_replicas=1,
        num_workers=1,
        worker=0,
    ):
        """Makes the batches of one evaluation, in the split's own order.

        The last global batch is filled up with examples of weight 0, so that
        shapes are static and every replica gets the same number of elements.

        Args:
            split: "test", "train" or "validation".
            batch_size: size of the global batch.
            num_replicas: replicas of each worker.
            num_workers: number of workers.
            worker: index of this worker.

        Returns:
            A finite `tf.data.Dataset` of images float32 [b, h, w, c], targets
            float32 [b, num_classes] and weights float32 [b],
            b = batch_size / (num_workers * num_replicas).

        Raises:
            UserError: if the batch cannot be cut into equal parts.
        """
        num_parts = num_workers * num_replicas
        _check_batch_size(batch_size, num_parts)
        num_examples = len(self.splits[split])
        steps = -(-num_examples // batch_size)
        position = np.arange(steps * batch_size, dtype=np.int32).reshape(
            steps, num_parts, batch_size // num_parts
        )

        def finish(position):
            real = position < num_examples
            examples = tf.where(real, position, 0)
            return *self.evaluated(split, examples), tf.cast(real, tf.float32)

        batches = tf.data.Dataset.from_tensor_slices(
            _own(tf.constant(position), worker, num_replicas)
        )
        batches = batches.map(finish, num_parallel_calls=PARALLEL_CALLS)
        return in_order(batches, steps * num_replicas)

    def evaluated(self, split, examples):
        """Fetches examples as an evaluation sees them, inside a graph.

        Args:
            split: "test", "train" or "validation".
            examples: int32 tensor [b].

        Returns:
            Images float32 [b, h, w, c] and targets float32
            [b, num_classes].
        """
        source = self._blocks_moved
        images, targets = source.splits[split].fetch(
            examples, self._num_classes
        )
        images = center_crop(images, self.info.image_shape[:2])
        return normalize(images, source.info), targets

    @functools.cached_property
    def examples(self):
        """The `Examples` of what an evaluation sees: nothing is augmented."""
        return Examples(
            *(
                ExampleSplit(
                    _EvaluatedInputs(self, name),
                    np.arange(len(split), dtype=np.int32),
                    split.labels,
                    self._num_classes,
                )
                for name, split in (("train", self.train), ("test", self.test))
            ),
            self.info.class_names,
            self.info.multi_label,
        )

    @functools.cached_property
    def fingerprint(self):
        """Texts that change with images or labels; see `fingerprint`."""
        return fingerprint(self.splits)

    @property
    def _num_classes(self):
        return len(self.info.class_names)

    @functools.cached_property
    def _blocks_moved(self):
        """This dataset with blocks moved, once, in the stored images.

        Where nothing random comes first, crop and shuffle are the same for
        every epoch; done again and again, moving small blocks would cost as
        much as the rest of the pipeline.
        """
        decoded = isinstance(self.train.images, Images)
        if self.info.shuffle != "blocks" or not decoded:
            return self
        size, shuffle = self.info.image_shape[:2], shuffle_function(self.info)
        try:
            splits = {
                name: split.map_images(
                    lambda x: shuffle(center_crop(x, size)),
                    self.arguments.get("cache_dir"),
                )
                for name, split in self.splits.items()
            }
        except OSError as error:
            logging.warning(
                "Blocks are moved anew in every epoch, which takes longer: "
                "there is no room to keep the shuffled images. %s",
                error,
            )
            return self
        info = dataclasses.replace(self.info, shuffle=None, block_size=None)
        return Dataset(info, **splits)


@dataclasses.dataclass(frozen=True)
class _EvaluatedInputs:
    """Where `Dataset.examples` are fetched from; see `ExampleSplit.inputs`."""

    dataset: Dataset
    split: str

    @property
    def shape(self):
        return self.dataset.info.image_shape

    @property
    def fingerprint(self):
        # Of how images are prepared, all that their inputs depend on.
        info = dataclasses.replace(
            self.dataset.info,
            name="",
            class_names=(),
            num_train=0,
            num_test=0,
            num_validation=0,
        )
        stored = self.dataset.splits[self.split].fingerprint
        return f"{stored} {dataclasses.astuple(info)}"

    def load(self, rows):
        images, _ = self.dataset.evaluated(self.split, rows)
        return images

    def images(self, rows):
        split = self.dataset.splits[self.split]
        size = self.dataset.info.image_shape[:2]
        return np.asarray(center_crop(split.raw_images(rows), size))


def _check_batch_size(batch_size, num_parts):
    whole = isinstance(batch_size, (int, np.integer))
    if not whole or batch_size < 1 or batch_size % num_parts:
        raise UserError(
            f"The global batch is cut into {num_parts} equal parts, one a "
            f"replica. Received: batch_size={batch_size!r}; choose a positive "
            f"multiple of {num_parts}."
        )


def _draw_epoch(seed, num_examples, shape, num_uniforms, mixup_alpha):
    """Draws all that is random in an epoch.

    Args:
        seed: pair (seed, epoch).
        num_examples: number of training examples.
        shape: [steps, num_parts, b].
        num_uniforms: random numbers an example needs for its augmentation.
        mixup_alpha: parameter of mixup's Beta distribution; 0 for none.

    Returns:
        parts: Dict of "examples" int32 `shape`, and for mixup "weight" float32
            `shape[:2]`, equal over the parts of a step, and "partners" int32
            `shape`, permutations of each part.
        uniforms: float32 [num_examples, num_uniforms].
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    order = tf.random.experimental.stateless_shuffle(
        tf.range(num_examples), seeds[0]
    )
    parts = {"examples": tf.reshape(order[: math.prod(shape)], shape)}
    if mixup_alpha:
        weight = _beta(mixup_alpha, [shape[0], 1], seeds[1])
        parts["weight"] = tf.repeat(weight, shape[1], axis=1)
        draw = tf.random.stateless_uniform(shape, seeds[2])
        parts["partners"] = tf.argsort(draw)
    # One row an example: its augmentation depends on nothing else.
    uniforms = tf.random.stateless_uniform(
        [num_examples, num_uniforms], seeds[3]
    )
    return parts, uniforms


def _own(per_part, worker, num_replicas):
    """Cuts a worker's parts out of [steps, num_parts, ...], in sequence."""
    first = worker * num_replicas
    parts = per_part[:, first : first + num_replicas]
    return tf.reshape(parts, [-1, *parts.shape[2:]])


def _beta(alpha, shape, seed):
    """Draws from Beta(alpha, alpha), as a ratio of gamma variables."""
    gamma = tf.random.stateless_gamma(
        [2, *shape], seed, alpha, dtype=tf.float64
    )
    return tf.cast(gamma[0] / (gamma[0] + gamma[1]), tf.float32)


def mix(images, targets, part):
    """Applies mixup to a batch, if `part` (of `train_parts`) asks for it."""
    if "weight" not in part:
        return images, targets
    weight, partners = part["weight"], part["partners"]
    return tuple(
        weight * x + (1 - weight) * tf.gather(x, partners)
        for x in (images, targets)
    )
