"""The data sets that `data.load` knows by name."""

import contextlib
import contextvars
import dataclasses
import inspect
from collections.abc import Callable, Sequence

import numpy as np

from keras_transfer.data.image_files import ImageFiles
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
    """The images and labels of a data set, training and test in one list.

    Attributes:
        class_names: one name a class or finding.
        images: paths of image files, `ImageFiles`, or an array uint8
            [n, h, w, c].
        labels: class indices int32 [n], or for multi-label data float32
            [n, num_classes] of zeros and ones.
        is_test: bool [n]; the others are for training.
        image_size: side in pixels, if images are square and of one size.
        channels: 1 or 3, of the images' own; None for the source's.
    """

    class_names: tuple[str, ...]
    images: Sequence[str] | ImageFiles | np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    image_size: int | None = None
    channels: int | None = None

    @classmethod
    def of_splits(cls, class_names, train, test, **attributes):
        """Returns what is found as two splits.

        Args:
            class_names: one name a class or finding.
            train: pair of images and labels, in any form of these.
            test: another, in the same form.
            **attributes: `image_size` and `channels`.
        """
        (images, labels), (test_images, test_labels) = train, test
        if isinstance(images, ImageFiles):
            images = images.concatenate(test_images)
        elif isinstance(images, np.ndarray):
            images = np.concatenate([images, test_images])
        else:
            images = [*images, *test_images]
        is_test = np.arange(len(images)) >= len(labels)
        labels = np.concatenate([labels, test_labels])
        return cls(tuple(class_names), images, labels, is_test, **attributes)


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
