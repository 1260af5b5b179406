"""What the environment of a command brings, and what a command needs.

A notebook's MPLBACKEND, another library's KERAS_BACKEND, a ~/.keras/keras.json
and closed or full standard streams neither change results nor end a command.
"""

import errno
import os
import sys

from keras_transfer.errors import UserError

# What Keras has without a keras.json.
_FLOATX, _EPSILON, _DATA_FORMAT = "float32", 1e-7, "channels_last"


def prepare():
    """Sets what must be set before TensorFlow, Keras or Matplotlib is imported.

    Returns:
        list of str, sentences on what was found and is not used.
    """
    _open_standard_descriptors()
    # While the rest is imported; from then on `app.run` answers.
    sys.excepthook = _show_error
    # Quiet the start-up banners of TensorFlow's C++ side; errors still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Figures go to files; a notebook's backend may not even be installed here.
    os.environ["MPLBACKEND"] = "agg"
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if backend == "tensorflow":
        return []
    return [f"KERAS_BACKEND={backend} is not used: this needs TensorFlow."]


def prepare_keras():
    """Imports Keras with its own defaults, whatever ~/.keras/keras.json says.

    Raises:
        UserError: if Keras does not start with that file.
    """
    try:
        import keras
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        folder = os.environ.get("KERAS_HOME", "~/.keras")
        raise UserError(
            f"Keras does not start ({type(error).__name__}: {error}), most "
            f"likely for what is in {folder}/keras.json. Mend or remove that "
            "file."
        ) from error
    keras.config.set_floatx(_FLOATX)
    keras.config.set_epsilon(_EPSILON)
    keras.config.set_image_data_format(_DATA_FORMAT)


def _show_error(kind, error, trace):
    """Shows what ends the process, Ctrl-C without a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nError: Interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _open_standard_descriptors():
    """Opens those that are closed, so that no file of ours gets their number.

    What TensorFlow's C++ side says would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = open(number, "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


class Stream:
    """A standard stream that goes quiet when it can no longer be written.

    Args:
        stream: text stream on a descriptor, such as `sys.stdout`.

    Attributes:
        error: the `OSError` that ended it, or None.
    """

    def __init__(self, stream):
        self._stream = stream
        self.error = None
        if hasattr(stream, "reconfigure"):
            # File names need not be UTF-8.
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Writes, or leaves it out; returns the number of characters."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._end(error)
            return len(text)

    def flush(self):
        """Flushes what has been written, if it still can be."""
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    @property
    def is_lost(self):
        """Whether something was not written, and somebody would read it."""
        return self.error is not None and self.error.errno != errno.EPIPE

    def _end(self, error):
        self.error = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        # What could not be written is kept in a buffer and would be again.
        self._stream.flush()
