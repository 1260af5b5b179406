"""What a run leaves behind: metrics, kept checkpoints and TensorBoard."""

import csv
import math
import tempfile

import numpy as np
import tensorflow as tf
from absl import logging

from keras_transfer.errors import UserError
from keras_transfer.runs import Summaries


class Record:
    """Writes a run directory epoch by epoch and finds the way back into it.

    The order of writing makes every moment a good one to be killed at:
    metrics.csv first, then the checkpoint. On return, rows younger than the
    newest checkpoint are dropped, so they are written once. What a signal
    stopped within an epoch is kept beside the checkpoints until that epoch is
    finished.

    Args:
        run: the `runs.Run`.
        metric: str, the column by which the best epoch is chosen.
        keep_epochs: "all", or the epochs whose checkpoints are kept beside the
            initialization, the best and the last.
        is_chief: bool; the other workers of a cluster write nothing here.
    """

    def __init__(self, run, metric, keep_epochs, is_chief):
        self.run = run
        self.metric = metric
        self.keep_epochs = keep_epochs
        self.is_chief = is_chief
        self._rows = []
        self._summaries = Summaries(run.tensorboard_path)

    def resume(self, checkpoint):
        """Restores the newest readable checkpoint.

        Args:
            checkpoint: the `tf.train.Checkpoint` to restore into.

        Returns:
            (epochs, sums): int, the epochs it had finished, or None if nothing
            was kept; and of the epoch after that the float32 array [steps
            taken, 2] of `save_partial`.

        Raises:
            UserError: if every checkpoint is damaged, or metrics.csv is.
        """
        epochs = self.run.epochs()
        for epoch in reversed(epochs):
            if self._restore(checkpoint, epoch):
                self._rows = self._read_rows(epoch)
                if self.is_chief:
                    self._settle(epoch)
                return epoch, self._resume_partial(checkpoint, epoch)
        if epochs:
            raise UserError(
                f"None of the checkpoints in {self.run.checkpoints_path} can "
                f"be read. Remove {self.run.path} to train from the start."
            )
        return None, np.empty((0, 2), np.float32)

    def _restore(self, checkpoint, epoch):
        """Returns whether one epoch's checkpoint could be read, and reads it.

        One that could not may have been read in part.
        """
        try:
            status = self.run.restore(checkpoint, epoch)
            status.assert_existing_objects_matched()
        except (UserError, AssertionError) as error:
            logging.warning(
                "The checkpoint of epoch %d is not used: %s Going back to an "
                "earlier one.",
                epoch,
                error,
            )
            return False
        return True

    def _resume_partial(self, checkpoint, epoch):
        try:
            sums = self.run.restore_partial(checkpoint, epoch + 1)
        except UserError as error:
            logging.warning("%s", error)
            self.run.restore(checkpoint, epoch)
            sums = None
        return np.empty((0, 2), np.float32) if sums is None else sums

    def _read_rows(self, last):
        """Returns the rows of metrics.csv up to an epoch, all of them."""
        needed = {("0", "test")} | {
            (str(epoch), split)
            for epoch in range(1, last + 1)
            for split in ("train", "test")
        }
        try:
            rows = [
                row
                for row in self.run.metric_rows()
                if int(row["epoch"]) <= last
            ]
            for row in rows:
                int(row["step"]), float(row["loss"])
                # Multi-label training has no metric of its own.
                if row["split"] == "test":
                    float(row[self.metric])
            if {(row["epoch"], row["split"]) for row in rows} == needed:
                return rows
        except (ValueError, KeyError, TypeError, csv.Error):
            pass
        raise UserError(
            f"{self.run.metrics_path} is damaged: it does not have the rows of "
            f"epochs 0 to {last}, which are trained. Put back a copy of it, or "
            f"remove {self.run.path} to train from the start."
        )

    def end_epoch(self, epoch, step, summaries, checkpoint, scalars=None):
        """Records one finished epoch (0: the initialization).

        Args:
            epoch: int, epochs finished.
            step: int, optimizer steps taken.
            summaries: {split: {column: value}}, loss and metrics.
            checkpoint: the `tf.train.Checkpoint` to save.
            scalars: {name: value}, further scalars for TensorBoard.
        """
        if not self.is_chief:
            with tempfile.TemporaryDirectory() as nowhere:
                checkpoint.write(f"{nowhere}/checkpoint")
            return
        self.write_metrics(epoch, step, summaries)
        self.run.save(epoch, checkpoint)
        self._settle(epoch)
        self.write_summaries(epoch, summaries, scalars or {})

    def save_partial(self, epoch, checkpoint, taken):
        """Keeps what has been done of an epoch that is not finished.

        Args:
            epoch: int, that epoch.
            checkpoint: the `tf.train.Checkpoint` to save.
            taken: list of float32 arrays [n, 2], see `Trainer.train_epoch`.
        """
        if not self.is_chief:
            return
        try:
            self.run.save_partial(epoch, checkpoint, np.concatenate(taken))
        except UserError as error:
            logging.warning("The steps of epoch %d are lost: %s", epoch, error)

    def write_metrics(self, epoch, step, summaries):
        """Adds rows to metrics.csv; arguments as for `end_epoch`."""
        for split, summary in summaries.items():
            self._rows.append(
                {"epoch": epoch, "step": step, "split": split}
                | {name: f"{value:.9g}" for name, value in summary.items()}
            )
        self.run.write_metrics(self._rows)

    def write_summaries(self, epoch, summaries, scalars):
        """Adds scalars to TensorBoard; arguments as for `end_epoch`."""
        values = {
            f"{name}/{split}": value
            for split, summary in summaries.items()
            for name, value in summary.items()
        } | scalars
        with self._summaries.at(step=epoch):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def show_inputs(self, images, info):
        """Puts a grid of images, as the model sees them, into TensorBoard.

        Args:
            images: float32 [n, h, w, c], normalized.
            info: the dataset's `data.Info`.
        """
        pixels = np.clip(images * np.array(info.std) + info.mean, 0.0, 1.0)
        with self._summaries.at(step=0):
            tf.summary.image("train_images", _grid(pixels)[None])

    def show_config(self, config):
        """Puts the operative configuration into TensorBoard, as text."""
        text = "\n".join("    " + line for line in config.splitlines())
        with self._summaries.at(step=0):
            tf.summary.text("config", text)

    def _settle(self, last):
        """Records the best epoch and removes checkpoints not to be kept."""
        kept = self.run.epochs()
        values = {
            int(row["epoch"]): float(row[self.metric])
            for row in self._rows
            if row["split"] == "test" and int(row["epoch"]) in kept
        }
        finite = {e: v for e, v in values.items() if not math.isnan(v)}
        best = max(finite or values, key=(finite or values).get)
        self.run.write_best(best, self.metric, values[best])
        if self.keep_epochs == "all":
            return
        for epoch in set(kept) - {0, best, last, *self.keep_epochs}:
            self.run.remove(epoch)


def _grid(images):
    """Returns up to 64 images [n, h, w, c] as one, 8 to a row."""
    columns = min(8, len(images))
    rows = min(8, len(images) // columns)
    n, (height, width, channels) = rows * columns, images.shape[1:]
    tiles = images[:n].reshape(rows, columns, height, width, channels)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(
        rows * height, columns * width, channels
    )
