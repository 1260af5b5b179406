"""What TensorBoard shows of a run."""

import contextlib
import functools

import numpy as np
import tensorflow as tf

from keras_transfer import files


class Summaries:
    """TensorBoard's event files, made when something is first written.

    Args:
        path: their directory.
    """

    def __init__(self, path):
        self._path = path

    @contextlib.contextmanager
    def at(self, step):
        """Has the `tf.summary` calls of the block written, to their end.

        Args:
            step: int, for all of them.

        Raises:
            UserError: if they cannot be written.
        """
        with files.writing(self._path), self._writer.as_default(step=step):
            yield
            self._writer.flush()

    def write_scalars(self, step, summaries, scalars):
        """Writes numbers.

        Args:
            step: int.
            summaries: {split: {name: value}}, shown as "name/split".
            scalars: {name: value}, further ones.
        """
        with self.at(step):
            for split, summary in summaries.items():
                for name, value in summary.items():
                    tf.summary.scalar(f"{name}/{split}", value)
            for name, value in scalars.items():
                tf.summary.scalar(name, value)

    def write_config(self, config):
        """Writes a gin configuration as text."""
        text = "\n".join("    " + line for line in config.splitlines())
        with self.at(step=0):
            tf.summary.text("config", text)

    def write_images(self, images, info):
        """Writes a grid of training images, as the model sees them.

        Args:
            images: float32 [n, h, w, c], normalized.
            info: the dataset's `data.Info`.
        """
        pixels = np.clip(images * np.array(info.std) + info.mean, 0.0, 1.0)
        with self.at(step=0):
            tf.summary.image("train_images", _grid(pixels)[None])

    @functools.cached_property
    def _writer(self):
        return tf.summary.create_file_writer(str(self._path))


def _grid(images):
    """Returns up to 64 images [n, h, w, c] as one, 8 to a row."""
    columns = min(8, len(images))
    rows = min(8, len(images) // columns)
    n, (height, width, channels) = rows * columns, images.shape[1:]
    tiles = images[:n].reshape(rows, columns, height, width, channels)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(
        rows * height, columns * width, channels
    )
