"""Arrays by name, with the layout that they are in."""

import contextlib

from keras_transfer.errors import UserError


class Weights(dict):
    """{name: array}, as a source names and orders them.

    Attributes:
        source: str, where they come from.
        layout: "keras" (paths of variables, kernels as Keras has them),
            "keras_h5" (the same, named by their place in a .weights.h5 file) or
            "torch" (dotted names, kernels as PyTorch has them).
        mean: tuple of float, one a channel, of the images that the network was
            trained on, in units of pixel / 255; None if the source does not
            tell.
        std: their standard deviation, like `mean`.
        ordered: bool, whether they come in the order of the network's layers,
            not sorted by name, say.
    """

    def __init__(
        self,
        named,
        source="the weights given",
        layout="keras",
        mean=None,
        std=None,
        ordered=True,
    ):
        super().__init__(named)
        self.source = str(source)
        self.layout = layout
        self.mean, self.std = mean, std
        self.ordered = ordered


@contextlib.contextmanager
def damaged(path, kind):
    """Turns whatever a library says of a damaged file into a sentence.

    Args:
        path: the file, to name it.
        kind: str, what it begins as: "a safetensors file".

    Raises:
        UserError: instead of any other error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Libraries raise all kinds.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} begins as {kind}, and cannot be read as one: it is "
            "damaged, or was cut short as it was fetched. Received: "
            f"{reason[:200]}. Fetch it again."
        ) from error
