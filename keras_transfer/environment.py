"""What the environment of a command brings, and what a command needs.

A notebook's MPLBACKEND, another library's KERAS_BACKEND, a ~/.keras/keras.json
and closed or full standard streams neither change results nor end a command.
"""

import contextlib
import errno
import os
import signal
import sys
import tempfile

from keras_transfer.errors import UserError

# What Keras has without a keras.json.
_FLOATX, _EPSILON, _DATA_FORMAT = "float32", 1e-7, "channels_last"

# Of a warning by TensorFlow.
_RETRACING = "triggered tf.function retracing"
# More than the functions that TensorFlow writes out to compile them.
_TEMPORARY_BYTES = 2**18


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


def check_temporary_files():
    """Checks that there is room for temporary files: TensorFlow needs some.

    Without it, functions that it compiles end in an error about their code.

    Raises:
        UserError: if there is none.
    """
    folder = os.environ.get("TMPDIR", "/tmp")
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile() as file:
            file.write(bytes(_TEMPORARY_BYTES))
            file.flush()
    except OSError as error:
        raise UserError(
            f"Temporary files cannot be written into {folder}: "
            f"{error.strerror}. Make room there, or set TMPDIR to a directory "
            "that has some."
        ) from error


def prepare_keras():
    """Imports Keras with its own defaults, whatever ~/.keras/keras.json says.

    What TensorFlow says meanwhile of the processor and of drivers that are not
    there is only shown if it fails, or does not see a GPU that is there. What
    it would say later of functions that are traced again is not.

    Raises:
        UserError: if Keras does not start with that file.
    """
    try:
        with _held_back() as reasons:
            import keras
            import tensorflow as tf

            # Looks for drivers, and does not yet settle anything.
            if not tf.config.list_physical_devices("GPU") and _has_gpu():
                reasons.append("TensorFlow does not see this machine's GPU.")
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        folder = os.environ.get("KERAS_HOME", "~/.keras")
        raise UserError(
            f"Keras does not start ({type(error).__name__}: {error}), most "
            f"likely for what is in {folder}/keras.json. Mend or remove that "
            "file."
        ) from error
    # An analysis compiles what it needs for each module: that is no fault.
    tf.get_logger().addFilter(lambda record: _RETRACING not in str(record.msg))
    keras.config.set_floatx(_FLOATX)
    keras.config.set_epsilon(_EPSILON)
    keras.config.set_image_data_format(_DATA_FORMAT)


def use_threads(number):
    """Has numerical libraries use so many threads, for the rest of the process.

    A sum is added up in as many parts, and numbers depend on that. TensorFlow
    can no longer be told when it has begun to compute; a warning says so.

    Args:
        number: int.
    """
    # Of libraries that are loaded later, and of those that are there.
    os.environ["OMP_NUM_THREADS"] = str(number)
    import tensorflow as tf
    import threadpoolctl
    from absl import logging

    threadpoolctl.threadpool_limits(number)
    variables = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(number)
        tf.config.threading.set_inter_op_parallelism_threads(number)
    except RuntimeError:
        if any(os.environ.get(name) != str(number) for name in variables):
            logging.warning(
                "TensorFlow has begun to compute with another number of "
                "threads than %d, and keeps it: numbers will not be the same "
                "to the last bits. Do this first in a new process.",
                number,
            )


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


@contextlib.contextmanager
def _held_back():
    """Holds back what is written to descriptor 2; shows it if the block fails.

    Also if the process is ended within, as TensorFlow does on a processor that
    it was not compiled for: a child waits for that, and does nothing else.
    Whoever has chosen a TF_CPP_MIN_LOG_LEVEL that lets more through sees it.

    Yields:
        list, to which the block adds str to have it shown with them.
    """
    reasons = []
    with contextlib.ExitStack() as stack:
        is_wanted = os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1")
        if is_wanted or "tensorflow" in sys.modules:
            yield reasons
            return
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
            child, verdict = _start_child(file.fileno())
        except OSError:
            # On a full disk, say. That is no reason not to go on.
            yield reasons
            return
        shown = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield reasons
        except Exception:
            reasons.append("")
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            with contextlib.suppress(OSError):
                os.write(verdict, b"" if reasons else b"well")
            os.close(verdict)
            with contextlib.suppress(OSError):
                os.waitpid(child, 0)
            for reason in filter(None, reasons):
                print(f"Warning: {reason}", file=sys.stderr)


def _has_gpu():
    """Returns whether there is an NVIDIA GPU that is meant to be used."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return os.path.exists("/dev/nvidia0") and not is_hidden


def _start_child(held_back):
    """Starts a process that shows what was held back, unless told not to.

    Args:
        held_back: int, the descriptor of a file.

    Returns:
        (child, verdict): ints, its id, and the descriptor that tells it; closed
        without a word, also by the end of this process, it shows the file.
    """
    receiving, verdict = os.pipe()
    child = os.fork()
    if child:
        os.close(receiving)
        return child, verdict
    try:
        # It ends with its parent, whatever a terminal sends to both.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(verdict)
        if not os.read(receiving, 1):
            size = os.fstat(held_back).st_size
            os.write(2, os.pread(held_back, size, 0))
    finally:
        os._exit(0)


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
