"""The data sets that `data.load` knows by name."""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from keras_transfer.data.image_files import ImageFiles
from keras_transfer.data.preprocessing import Size
from keras_transfer.data.sampling import stratified_draw
from keras_transfer.errors import UserError

_SOURCES = {}
_may_fetch = contextvars.ContextVar("may_fetch", default=True)


def may_fetch():
    """Returns whether data, and code that reads them, may be downloaded."""
    return _may_fetch.get()


@contextlib.contextmanager
def not_fetching():
    """Has nothing downloaded in the block: others say what data are wanted."""
    token = _may_fetch.set(False)
    try:
        yield
    finally:
        _may_fetch.reset(token)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The images and labels of a data set, all splits in one list.

    Attributes:
        class_names: one name a class or finding.
        images: paths of image files, `ImageFiles`, or an array uint8
            [n, h, w, c].
        labels: class indices int32 [n], or for multi-label data float32
            [n, num_classes] of zeros and ones.
        is_test: bool [n].
        image_size: side in pixels, or (height, width), if images are of one
            size.
        channels: 1 or 3, of the images' own; None for the source's.
        is_validation: bool [n]; None if there is no such split. The others are
            for training.
    """

    class_names: tuple[str, ...]
    images: Sequence[str] | ImageFiles | np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    image_size: Size | None = None
    channels: int | None = None
    is_validation: np.ndarray | None = None

    @property
    def is_train(self):
        """Which are for training, bool [n]."""
        if self.is_validation is None:
            return ~self.is_test
        return ~(self.is_test | self.is_validation)

    @classmethod
    def of_splits(cls, class_names, train, test, validation=None, **attributes):
        """Returns what is found as two or three splits.

        Args:
            class_names: one name a class or finding.
            train: pair of images and labels, in any form of these.
            test: another, in the same form.
            validation: another, or None.
            **attributes: `image_size` and `channels`.
        """
        splits = [train, test] + ([validation] if validation else [])
        images, labels = zip(*splits, strict=True)
        split = np.repeat(np.arange(len(splits)), [len(x) for x in labels])
        if isinstance(images[0], ImageFiles):
            images = functools.reduce(ImageFiles.concatenate, images)
        elif isinstance(images[0], np.ndarray):
            images = np.concatenate(images)
        else:
            images = [*itertools.chain(*images)]
        return cls(
            tuple(class_names),
            images,
            np.concatenate(labels),
            split == 1,
            is_validation=split == 2 if validation else None,
            **attributes,
        )

    def hold_out(self, share, seed):
        """Returns the same with a share of the training images for validation.

        Args:
            share: float in (0, 1), of each class alike.
            seed: integer seed.

        Raises:
            UserError: if that is none of them, or all.
        """
        training = np.flatnonzero(self.is_train)
        drawn = stratified_draw(self.labels[training], share, seed)
        if not 0 < len(drawn) < len(training):
            raise UserError(
                f"Of {len(training)} training images, {len(drawn)} would be "
                f"for validation. Received: validation_split={share}; choose a "
                "share that leaves some for either."
            )
        # Those of the source's own, too.
        is_validation = ~(self.is_train | self.is_test)
        is_validation[training[drawn]] = True
        return dataclasses.replace(self, is_validation=is_validation)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What a data set, or a family of them, is; see `register`."""

    find: Callable[..., Found]
    count: Callable | None = None
    mean: float = 0.5
    std: float = 0.5
    fit: str = "crop"
    keep: str = "decoded"
    channels: int = 3
    repeat: Callable | None = None
    needs_every_class: bool = False

    def takes(self, argument):
        """Returns whether an argument of `data.load` is for the source."""
        return argument in inspect.signature(self.find).parameters

    def call(self, function, arguments):
        """Calls `find` or `count` with what it takes of `data.load`'s."""
        wanted = inspect.signature(function).parameters
        unknown = [name for name in wanted if name not in arguments]
        if unknown:
            raise UserError(
                "A source takes arguments of data.load. Received: "
                f"{function.__module__}.{function.__name__} with "
                f"{', '.join(unknown)}; what needs others is a function of "
                "your own that returns data.from_arrays(...), bound to "
                "train.dataset."
            )
        return function(**{name: arguments[name] for name in wanted})


def register(*names, **attributes):
    """Registers a function that finds a data set, as a decorator.

    The function takes whichever arguments of `data.load` it needs, by name, and
    returns a `Found`:

        @data.sources.register("pets")
        def pets(data_dir):
            ...
            return data.sources.Found.of_splits(
                ["cat", "dog"], (paths, labels), (test_paths, test_labels)
            )

    Args:
        *names: what `load.name` may be; none for all names that nobody else
            registers.
        **attributes: attributes of `Source`, where the defaults are not right:
            count: function like it that returns the names of the classes and
                the numbers of training and test images, where finding takes
                long or more than there is.
            mean, std: of pixels / 255, that images are normalized with.
            fit: how images are brought to one size: "crop" or "xray"; see
                `preprocessing.Fit`.
            keep: what `load.keep` = None stands for.
            channels: 1 or 3, what `load.channels` = None stands for.
            repeat: function from training labels to the rows to train on, for
                examples that are seen twice.
            needs_every_class: whether each class needs a training image that
                can be decoded.

    Returns:
        The decorator, which leaves the function as it is.

    Raises:
        UserError: if another function has the name.
    """

    def decorate(function):
        source = Source(function, **attributes)
        for name in names or [None]:
            other = _SOURCES.get(name)
            if other and _path(other.find) != _path(function):
                raise UserError(
                    "A data set has a name of its own. Received: "
                    f"{name!r}, which is {'.'.join(_path(other.find))} already."
                )
            _SOURCES[name] = source
        return function

    return decorate


def find(name):
    """Returns the `Source` of a data set's name."""
    return _SOURCES.get(name) or _SOURCES[None]


def names():
    """Returns the registered names, sorted."""
    return sorted(name for name in _SOURCES if name)


def _path(function):
    return function.__module__, function.__qualname__
