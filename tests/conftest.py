import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of several workers, and the commands it starts, have a core.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import gin
import keras
import pytest
import tensorflow as tf
from absl import logging

from keras_transfer import memory

memory.keep_freed()
logging.set_verbosity(logging.WARNING)
# Two devices on any machine, for what is spread over replicas.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


def pytest_configure(config):
    # Files in their order: by default those of few tests come last, and of
    # those some take minutes, for which the other workers would wait.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.fixture(autouse=True)
def _clean_state():
    gin.clear_config()
    yield
    gin.clear_config()
    keras.config.set_dtype_policy("float32")
