"""Which devices work is spread over, and how much of it goes into a call."""

import functools

import gin
import tensorflow as tf

from keras_transfer.errors import UserError

# Long enough that Python between calls costs nothing, short enough that the
# progress bar moves and an interrupt is answered.
_SECONDS_PER_CALL = 2.0

NAMES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


@gin.configurable
def strategy(
    name: str = "auto", devices: tuple[str, ...] | None = None, tpu: str = ""
) -> tf.distribute.Strategy:
    """Returns the `tf.distribute.Strategy` to train or analyze under.

    Args:
        name: one of
            "auto": all GPUs of this machine, else its CPU;
            "one_device": `devices[0]`, or the first GPU, or the CPU;
            "mirrored": MirroredStrategy over `devices`, or all GPUs;
            "multi_worker": MultiWorkerMirroredStrategy, the cluster read from
            the TF_CONFIG environment variable;
            "tpu": TPUStrategy on the TPU called `tpu`.
        devices: list of device names such as "GPU:0", or None.
        tpu: str, the TPU's name or address; "local" on a Cloud TPU VM.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        UserError: for an unknown name, a device this machine lacks or a TPU
            that cannot be reached.
    """
    if name == "multi_worker":
        # Before anything else touches TensorFlow's runtime, as it demands.
        return _multi_worker_strategy()
    _check_devices(devices)
    gpus = [
        f"GPU:{i}" for i in range(len(tf.config.list_logical_devices("GPU")))
    ]
    if name == "auto":
        name = "mirrored" if len(devices or gpus) > 1 else "one_device"
    if name == "one_device":
        return _one_device_strategy((devices or gpus or ["CPU:0"])[0])
    if name == "mirrored":
        return _mirrored_strategy(tuple(devices or gpus or ["CPU:0"]))
    if name == "tpu":
        return _tpu_strategy(tpu)
    raise UserError(
        f"strategy.name must be one of {', '.join(NAMES)}. Received: {name!r}"
    )


def _check_devices(devices):
    present = {
        f"{device.device_type}:{device.name.rsplit(':', 1)[1]}"
        for device in tf.config.list_logical_devices()
    }
    missing = [name for name in devices or () if name not in present]
    if missing:
        raise UserError(
            f"strategy.devices names {', '.join(missing)}, but TensorFlow sees "
            f"only {', '.join(sorted(present))} on this machine."
        )


# One of a kind in a process: two strategies over the same devices would number
# their collective operations alike, and one be taken for another; to set a TPU
# up again would clear its memory; what is compiled for one is not for another.


@functools.cache
def _one_device_strategy(device):
    return tf.distribute.OneDeviceStrategy(device)


@functools.cache
def _multi_worker_strategy():
    return tf.distribute.MultiWorkerMirroredStrategy()


@functools.cache
def _mirrored_strategy(devices):
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _tpu_strategy(tpu):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"No TPU could be reached as strategy.tpu={tpu!r}; give the TPU's "
            f'name, or "local" on a Cloud TPU VM. TensorFlow said: {error}'
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def has_accelerator():
    """Returns whether TensorFlow sees a GPU or a TPU."""
    return any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))


def jit_compile(asked):
    """Returns `tf.function`'s argument of this name, for what replicas run.

    Args:
        asked: bool, whether XLA is to compile it; None: yes on GPU and TPU, no
            on CPU, where it is slower.
    """
    if tf.config.list_logical_devices("TPU"):
        # TPUStrategy compiles all that replicas run, as a whole.
        return None
    return (has_accelerator() if asked is None else asked) or None


class Pace:
    """How many units of work go into one call of a compiled function."""

    def __init__(self):
        self._seconds_per_unit = None

    def count(self, size=1):
        """Returns how many pieces of `size` units to do in the next call."""
        if self._seconds_per_unit is None:
            return 1
        return max(1, int(_SECONDS_PER_CALL / (self._seconds_per_unit * size)))

    def note(self, units, seconds):
        """Learns from a call that did so many units in so many seconds."""
        # The first call of all traces and compiles, so it tells nothing.
        first = self._seconds_per_unit is None
        self._seconds_per_unit = _SECONDS_PER_CALL if first else seconds / units
