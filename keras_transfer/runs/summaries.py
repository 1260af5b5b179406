"""What TensorBoard shows of a run."""

import contextlib
import functools
import re

import numpy as np
import tensorflow as tf

from keras_transfer import files
from keras_transfer.runs import metrics


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

        With those of step 0 it is written which belong in one chart, for
        TensorBoard's custom scalars: those of one name, of all splits.

        Args:
            step: int.
            summaries: {split: {name: value}}, shown as "name/split".
            scalars: {name: value}, further ones.
        """
        with self.at(step):
            for name, value in (metrics.flat(summaries) | scalars).items():
                tf.summary.scalar(name, value)
            if step == 0 and summaries:
                names = dict.fromkeys(
                    name for summary in summaries.values() for name in summary
                )
                _write(_layout(names))

    def write_hparams(self, hparams):
        """Writes what TensorBoard's HParams tell of a run.

        Args:
            hparams: {name: bool, int, float or str}.
        """
        from tensorboard.plugins.hparams import api

        with self.at(step=0):
            _write(api.hparams_pb(hparams, trial_id=str(self._path)))

    def write_experiment(self, hparams, metrics):
        """Writes which HParams and metrics the runs in this directory have.

        Args:
            hparams: names.
            metrics: {name of a scalar: what it is called}.
        """
        from tensorboard.plugins.hparams import api

        told = api.hparams_config_pb(
            [api.HParam(name) for name in hparams],
            [api.Metric(tag, display_name=m) for tag, m in metrics.items()],
        )
        with self.at(step=0):
            _write(told)

    def close(self):
        """Closes the event file."""
        self._writer.close()

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


def _write(summary):
    """Writes a summary that TensorBoard made, to the writer of the block."""
    tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)


def _layout(names):
    """Returns the charts of custom scalars: one a name, with every split."""
    from tensorboard.plugins.custom_scalar import layout_pb2, summary

    charts = [
        layout_pb2.Chart(
            title=name,
            multiline=layout_pb2.MultilineChartContent(
                tag=[f"^{re.escape(name)}/"]
            ),
        )
        for name in names
    ]
    category = layout_pb2.Category(title="training and test", chart=charts)
    return summary.pb(layout_pb2.Layout(category=[category]))


def _grid(images):
    """Returns up to 64 images [n, h, w, c] as one, 8 to a row."""
    columns = min(8, len(images))
    rows = min(8, len(images) // columns)
    n, (height, width, channels) = rows * columns, images.shape[1:]
    tiles = images[:n].reshape(rows, columns, height, width, channels)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(
        rows * height, columns * width, channels
    )
