"""Examples to look at models with, from arrays, `tf.data` or a `PyDataset`.

What analyses need of data is here: inputs as the model takes them, targets, and
batches of both in any order. `Dataset.examples` gives the same of what
`data.load` returns.
"""

import copy
import dataclasses
import functools
import hashlib

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.data.labels import read_labels
from keras_transfer.data.streams import PARALLEL_CALLS, in_order
from keras_transfer.errors import UserError

# Bytes up to which the examples of a stream are read into memory.
MEMORY_BUDGET = 4 * 2**30
_BATCH = 256  # Examples read at a time.
_NAMES = ("train", "test")


class Examples:
    """Training and test examples, either or both, in the form a model takes.

    A split is a pair of arrays (inputs, targets), a batched or unbatched
    `tf.data.Dataset` of such pairs, a `keras.utils.PyDataset`, or an
    `ExampleSplit` of other examples. Arrays are used where they are; a stream
    is read once, into memory. Inputs of any shape are what the model takes,
    preprocessed if it does not do that itself. Targets are class indices [n] or
    [n, 1], or rows of zeros and ones [n, K], one-hot or multi-hot.

    Args:
        train: training examples; None if no analysis needs them.
        test: test examples, likewise.
        class_names: one name a class; None for "0", "1", ... as far as targets
            go. Say `range(1000)` where a class has no example.
        multi_label: whether several classes may hold at once. None: they may if
            there are rows of targets that do not sum to one. True also makes
            zeros and ones [n] one finding.

    Attributes:
        image_shape: shape of one input, (h, w, c) for images.
        class_names: tuple of str.
        multi_label: bool.

    Raises:
        UserError: if these are not finite, matching examples with targets.

    Example:
        examples = Examples(test=(x_test, y_test))
        for inputs, targets, weights in examples.split("test").batches(64): ...
    """

    def __init__(
        self, train=None, test=None, class_names=None, multi_label=None
    ):
        given = {"train": train, "test": test}
        splits = {
            name: _read(source, name)
            for name, source in given.items()
            if source is not None
        }
        if not splits:
            raise UserError(
                "There are no examples. Received: train=None, test=None; give "
                "test=(inputs, targets), train= or both."
            )
        self.image_shape = _common_shape(splits)
        known = [s for s in given.values() if isinstance(s, ExampleSplit)]
        if multi_label is None and known:
            multi_label = any(split.multi_label for split in known)
        labels, self.class_names, self.multi_label = read_labels(
            {name: targets for name, (_, _, targets) in splits.items()},
            class_names,
            multi_label,
            max((split.num_classes for split in known), default=1),
        )
        self._splits = {
            name: ExampleSplit(inputs, rows, labels[name], self.num_classes)
            for name, (inputs, rows, _) in splits.items()
        }

    @property
    def num_classes(self):
        """Number of classes, or of findings."""
        return len(self.class_names)

    def split(self, name):
        """Returns an `ExampleSplit`.

        Args:
            name: "test" or "train".

        Raises:
            UserError: if there is no such split.
        """
        if name not in _NAMES:
            raise UserError(
                f"Splits are 'train' and 'test'. Received: {name!r}."
            )
        if name not in self._splits:
            raise UserError(
                f"These examples have no {name} split. Received: {name!r}; "
                f"give {name}= to Examples."
            )
        return self._splits[name]

    @property
    def splits(self):
        """Names of the splits that were given, "test" before "train"."""
        return tuple(sorted(self._splits))

    def has(self, name):
        """Returns whether a split, "test" or "train", was given."""
        return name in self._splits

    def draw(self, name, count, seed=0):
        """Returns these examples with one split smaller, drawn at random.

        Args:
            name: "test" or "train".
            count: how many examples at most, drawn without replacement.
            seed: of NumPy's `RandomState`.
        """
        chosen = self.split(name)
        order = np.random.RandomState(seed).permutation(len(chosen))[:count]
        drawn = copy.copy(self)
        drawn._splits = self._splits | {name: chosen.select(np.sort(order))}
        return drawn

    @property
    def fingerprint(self):
        """Text that changes with the inputs, the labels or their names."""
        told = [self.class_names, self.multi_label, self.image_shape]
        told += [self._splits[name].fingerprint for name in self.splits]
        return hashlib.blake2b(repr(told).encode()).hexdigest()[:32]

    def __repr__(self):
        sizes = (f"{len(split)} {k}" for k, split in self._splits.items())
        kind = "findings" if self.multi_label else "classes"
        return (
            f"<Examples: {', '.join(sizes)}; inputs {self.image_shape}, "
            f"{self.num_classes} {kind}>"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleSplit:
    """The training or the test examples; see `Examples`.

    Attributes:
        inputs: where inputs are fetched from: has `shape` of one input,
            `fingerprint`, `load(rows)` inside `tf.data` and `images(rows)`.
        rows: integers [n], the row in `inputs` of each example.
        labels: int32 class indices [n], or for multi-label data float32
            [n, num_classes] of zeros and ones.
        num_classes: int.
    """

    inputs: object
    rows: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __len__(self):
        """Returns the number of examples."""
        return len(self.rows)

    @property
    def multi_label(self):
        """Whether several classes may hold at once."""
        return self.labels.ndim == 2

    @property
    def targets(self):
        """Targets float32 [n, num_classes], one-hot or multi-hot."""
        if self.multi_label:
            return self.labels
        return np.eye(self.num_classes, dtype=np.float32)[self.labels]

    def batches(self, batch_size, order=None):
        """Makes batches of equal size, the last one filled up.

        Args:
            batch_size: number of examples in a batch.
            order: integers [m], which examples in which order; None for all in
                their own.

        Returns:
            A finite `tf.data.Dataset` of inputs float32 [batch_size, ...],
            targets float32 [batch_size, num_classes] and weights float32
            [batch_size]: 1, and 0 for what fills up the last batch.

        Raises:
            UserError: if there is no such batch size or example.
        """
        if not _is_whole(batch_size) or batch_size < 1:
            raise UserError(
                "A batch has at least one example. Received: "
                f"batch_size={batch_size!r}."
            )
        order = np.arange(len(self)) if order is None else order
        order = self._checked(order)
        if not len(order):
            raise UserError(
                "Batches are made of at least one example. Received: an empty "
                "order."
            )
        steps = -(-len(order) // batch_size)
        padding = np.full(steps * batch_size - len(order), order[0])
        examples = np.concatenate([order, padding]).astype(np.int32)
        weights = np.arange(len(examples)) < len(order)
        pairs = [
            x.reshape(steps, batch_size)
            for x in (examples, weights.astype(np.float32))
        ]
        rows, labels = self._tensors

        def load(examples, weights):
            targets = tf.gather(labels, examples)
            if not self.multi_label:
                targets = tf.one_hot(targets, self.num_classes)
            inputs = self.inputs.load(tf.gather(rows, examples))
            return inputs, targets, weights

        batches = tf.data.Dataset.from_tensor_slices(tuple(pairs)).map(
            load, num_parallel_calls=PARALLEL_CALLS
        )
        return in_order(batches, steps)

    def images(self, rows):
        """Returns images to look at.

        Inputs of whole levels (uint8) are given as they are, others are spread
        over 0..255 from the least to the largest value among all inputs.

        Args:
            rows: integers [m], which examples.

        Returns:
            uint8 [m, h, w, c].

        Raises:
            UserError: if inputs are no images.
        """
        return self.inputs.images(self.rows[self._checked(rows)])

    def select(self, rows):
        """Returns the `ExampleSplit` of the given examples (integers [m])."""
        rows = self._checked(rows)
        return dataclasses.replace(
            self, rows=self.rows[rows], labels=self.labels[rows]
        )

    @functools.cached_property
    def fingerprint(self):
        """Text that changes with the inputs or the labels."""
        state = hashlib.blake2b(self.inputs.fingerprint.encode())
        for array in (self.rows.astype(np.int32), self.labels):
            state.update(f"{array.dtype} {array.shape}".encode())
            state.update(np.ascontiguousarray(array))
        state.update(str(self.num_classes).encode())
        return state.hexdigest()[:32]

    def _checked(self, rows):
        rows = np.asarray(rows)
        if not rows.size:
            return np.empty(0, np.int64)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise UserError(
                "Examples are chosen by a list of whole numbers. Received: "
                f"{rows.dtype} of shape {rows.shape}."
            )
        if rows.min() < 0 or rows.max() >= len(self):
            raise UserError(
                f"There are {len(self)} examples, counted from 0. Received: "
                f"{rows.min()} to {rows.max()}."
            )
        return rows

    @functools.cached_property
    def _tensors(self):
        with tf.init_scope(), tf.device("/CPU:0"):
            rows = tf.constant(self.rows, tf.int32)
            return rows, tf.constant(self.labels)


class ArrayInputs:
    """Inputs in an array, used where it is.

    Args:
        array: [n, ...], any kind of number.
    """

    def __init__(self, array):
        self._array = array

    def __len__(self):
        """Returns the number of inputs."""
        return len(self._array)

    @property
    def shape(self):
        """Shape of one input."""
        return self._array.shape[1:]

    def load(self, rows):
        """Fetches inputs float32 [b, ...], inside a `tf.data` function."""
        inputs = tf.numpy_function(
            lambda rows: self._array[rows].astype(np.float32),
            [rows],
            tf.float32,
            stateful=False,
        )
        return tf.ensure_shape(inputs, rows.shape + self.shape)

    def images(self, rows):
        """See `ExampleSplit.images`."""
        shape = (*self.shape, 1) if len(self.shape) == 2 else self.shape
        if len(shape) != 3 or shape[-1] not in (1, 3, 4):
            raise UserError(
                "Only images (height, width, and 1, 3 or 4 channels) can be "
                f"looked at. Received: inputs of shape {self.shape}."
            )
        images = self._array[rows].reshape(-1, *shape)
        if images.dtype == np.uint8:
            return images
        low, high = self._range
        scale = 255 / (high - low) if high > low else 0.0
        levels = (images.astype(np.float64) - low) * scale
        return np.round(levels).astype(np.uint8)

    @functools.cached_property
    def fingerprint(self):
        """Text that changes with the inputs."""
        levels = self._array.dtype == np.uint8
        state = hashlib.blake2b(f"{levels} {self.shape}".encode())
        for part in self._parts():
            # As the model gets them, of whichever precision they are here.
            part = part if levels else part.astype(np.float32)
            state.update(np.ascontiguousarray(part))
        return state.hexdigest()

    def check_finite(self, split):
        """Raises a `UserError` if there are inputs that are no numbers."""
        for part in self._parts():
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise UserError(
                    "Inputs must be finite numbers. Received: NaN or infinite "
                    f"values among the {split} inputs."
                )

    @functools.cached_property
    def _range(self):
        ends = [(part.min(), part.max()) for part in self._parts()]
        low, high = zip(*ends, strict=True)
        return float(min(low)), float(max(high))

    def _parts(self):
        """Yields the array in parts, so that nothing as large is made of it."""
        for start in range(0, len(self._array), _BATCH):
            yield self._array[start : start + _BATCH]


# Reading what users have.


def _read(source, split):
    """Returns inputs, rows and targets of one split."""
    if isinstance(source, ExampleSplit):
        return source.inputs, source.rows, source.labels
    if isinstance(source, tf.data.Dataset):
        inputs, targets = _join(_dataset_parts(source, split), split)
    elif isinstance(source, keras.utils.PyDataset):
        inputs, targets = _join(_py_dataset_parts(source, split), split)
    else:
        inputs, targets = _pair(source, split)
        inputs, targets = _input_array(inputs, split), np.asarray(targets)
        _check_lengths(inputs, targets, split)
    if not len(inputs):
        raise UserError(
            f"There are no {split} examples. Received: an empty data set."
        )
    inputs = ArrayInputs(inputs)
    inputs.check_finite(split)
    return inputs, np.arange(len(inputs), dtype=np.int32), targets


def _pair(element, split):
    """Returns inputs and targets of a split or of a batch of it."""
    if isinstance(element, (tuple, list)) and len(element) == 2:
        inputs, targets = element
        if isinstance(inputs, (dict, tuple)) or isinstance(
            targets, (dict, tuple)
        ):
            raise UserError(
                "Models of one input and one output are analysed. Received: "
                f"{split} examples with several; name one of them, as in "
                '.map(lambda x, y: (x["image"], y)).'
            )
        return inputs, targets
    if isinstance(element, (tuple, list)) and len(element) == 3:
        raise UserError(
            "Examples are pairs (inputs, targets), without sample weights. "
            f"Received: {split} examples of three parts; leave the third out."
        )
    names = f" with {', '.join(element)}" if isinstance(element, dict) else ""
    raise UserError(
        "Examples are pairs (inputs, targets): arrays, a tf.data.Dataset of "
        "pairs (of TFDS with as_supervised=True) or a keras.utils.PyDataset. "
        f"Received: {split} examples as {type(element).__name__}{names}."
    )


def _input_array(inputs, split):
    """Returns inputs as an array of numbers, without a copy if it is one."""
    try:
        array = np.asanyarray(inputs)
        if array.dtype.kind == "V":  # bfloat16, for one.
            array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Inputs are one array. Received: {split} inputs that are none: "
            f"{error}"
        ) from error
    if array.dtype.kind not in "uifb" or not array.ndim:
        raise UserError(
            "Inputs are numbers, one array with an entry for each example. "
            f"Received: {split} inputs of type {array.dtype} and shape "
            f"{array.shape}."
        )
    return array


def _check_lengths(inputs, targets, split):
    if targets.shape[:1] != inputs.shape[:1]:
        raise UserError(
            "There is one target for each input. Received: "
            f"{split} inputs of shape {inputs.shape} and targets of shape "
            f"{targets.shape}."
        )


def _common_shape(splits):
    shapes = {name: inputs.shape for name, (inputs, _, _) in splits.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(
            "Training and test inputs must have one shape. Received: "
            f"{shapes['train']} and {shapes['test']}."
        )
    return tuple(next(iter(shapes.values())))


def _py_dataset_parts(source, split):
    """Yields the batches of a `keras.utils.PyDataset`."""
    if source.num_batches is None:
        raise _infinite(split)
    for index in range(source.num_batches):
        inputs, targets = _pair(source[index], split)
        yield (
            keras.ops.convert_to_numpy(inputs),
            keras.ops.convert_to_numpy(targets),
        )


def _dataset_parts(source, split):
    """Yields the batches of a `tf.data.Dataset`."""
    specs = _pair(source.element_spec, split)
    if not all(isinstance(spec, tf.TensorSpec) for spec in specs):
        raise UserError(
            "Inputs and targets are plain tensors. Received: "
            f"{split} examples of {specs}."
        )
    if source.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise _infinite(split)
    if not _is_batched(source, split):
        source = source.batch(_BATCH)
    try:
        yield from source.as_numpy_iterator()
    except tf.errors.OpError as error:
        reason = str(error.message).partition("\n")[0]
        raise UserError(
            f"The {split} examples cannot be read. Received: {reason}. Images "
            "of several sizes have to be brought to one first, as in "
            ".map(lambda x, y: (tf.image.resize(x, (224, 224)), y))."
        ) from error


def _is_batched(source, split):
    """Returns whether the elements of a `tf.data.Dataset` are batches."""
    shapes = [spec.shape for spec in source.element_spec]
    if any(shape.rank is None for shape in shapes):
        shapes = [
            tf.TensorShape(part.shape) for one in source.take(1) for part in one
        ] or [tf.TensorShape([]), tf.TensorShape([])]
    inputs, targets = (shape.as_list() for shape in shapes)
    if len(targets) != 1:
        return len(targets) > 1
    # Of a batch, sizes are both unknown or equal.
    if targets[0] is None or not inputs or inputs[0] != targets[0]:
        return targets[0] is None
    if len(inputs) > 3:
        return True
    raise UserError(
        f"Elements with inputs of shape {tuple(inputs)} and targets of shape "
        f"{tuple(targets)} may be a batch or one example. Received: {split} "
        "examples of these; call .unbatch() if they are batches, .batch(64) if "
        "they are not."
    )


def _join(parts, split):
    """Returns the inputs and targets of batches, each as one array."""
    inputs, targets, num_bytes = [], [], 0
    for x, y in parts:
        x, y = _input_array(x, split), np.asarray(y)
        if x.dtype not in (np.uint8, np.float32):
            x = x.astype(np.float32)
        _check_lengths(x, y, split)
        for first, part in ((inputs, x), (targets, y)):
            if first and first[0].shape[1:] != part.shape[1:]:
                raise UserError(
                    f"All examples must have one shape. Received: {split} "
                    f"examples of {first[0].shape[1:]} and {part.shape[1:]}."
                )
        num_bytes += x.nbytes + y.nbytes
        if num_bytes > MEMORY_BUDGET:
            raise UserError(
                f"The {split} examples of a stream are read into memory, up to "
                f"{MEMORY_BUDGET / 2**30:.1f} GiB. Received: more; take fewer "
                "of them with .take(n), or give what data.load returns, which "
                "may lie on disk."
            )
        inputs.append(x)
        targets.append(y)
    if not inputs:
        return np.empty((0, 1)), np.empty(0)
    return _concatenate(inputs), np.concatenate(targets)


def _concatenate(parts):
    """Joins arrays, letting go of each as soon as it is copied."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    joined = np.empty(shape, np.result_type(*{part.dtype for part in parts}))
    start = 0
    for index, part in enumerate(parts):
        joined[start : start + len(part)] = part
        start += len(part)
        parts[index] = None
    return joined


def _infinite(split):
    return UserError(
        f"The {split} examples have no end. Received: an infinite data set; "
        "leave .repeat() out, or take a part of it with .take(n)."
    )


def _is_whole(number):
    return isinstance(number, (int, np.integer)) and not isinstance(
        number, bool
    )
