"""A run directory: the only thing that passes from training to analysis.

    config.gin      the operative configuration, which repeats the run
    model.json      the architecture, as `keras.Model.to_json` writes it
    data.json       the arguments of `data.load` and the dataset's `Info`
    checkpoints/    epoch-0000/ (the initialization), epoch-0001/, ... and
                    best.json, which tells the best of them
                    (and, of a run stopped by a signal, .epoch-0002.partial/:
                    the same within an epoch, and what its steps added up)
    metrics.csv     one row per evaluation
    tensorboard/    event files

Everything but the event files appears whole or not at all: it is written aside
and renamed.
"""

import contextlib
import csv
import dataclasses
import functools
import inspect
import io
import json
import os
import pathlib
import re
import shutil
import tokenize

import keras
import numpy as np
import tensorflow as tf
from gin import config_parser

from keras_transfer import data
from keras_transfer.config import schema
from keras_transfer import models as _models  # noqa: F401, its layers load
from keras_transfer.errors import UserError
from keras_transfer.files import write_text, writing

_EPOCH_DIRECTORY = re.compile(r"epoch-(\d{4,})")
# What TensorFlow raises for a damaged checkpoint; of one that is cut short, an
# IndexError.
_UNREADABLE = (
    tf.errors.OpError,
    ValueError,
    OSError,
    IndexError,
    RuntimeError,
)


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
        with writing(self._path), self._writer.as_default(step=step):
            yield
            self._writer.flush()

    @functools.cached_property
    def _writer(self):
        return tf.summary.create_file_writer(str(self._path))


class Run:
    """The files of one training run; nothing is read before it is asked for.

    Args:
        path: the run directory (the `--work_dir` of `bin/train`).
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.config_path = self.path / "config.gin"
        self.metrics_path = self.path / "metrics.csv"
        self.tensorboard_path = self.path / "tensorboard"
        self.checkpoints_path = self.path / "checkpoints"
        self._model_path = self.path / "model.json"
        self._data_path = self.path / "data.json"
        self._best_path = self.checkpoints_path / "best.json"

    # Writing, the training loop's side.

    def describe(self, config, model, dataset):
        """Writes what is needed to repeat the run and to read it back.

        Args:
            config: str, the operative gin configuration.
            model: the `keras.Model` that is trained.
            dataset: the `data.Dataset` it is trained on.
        """
        with writing(self.path):
            self.checkpoints_path.mkdir(parents=True, exist_ok=True)
        write_text(self._model_path, model.to_json())
        description = {
            "arguments": dataset.arguments,
            "info": dataclasses.asdict(dataset.info),
        }
        write_text(self._data_path, json.dumps(description, indent=2) + "\n")
        # Last, because its presence says that the directory is a run.
        write_text(self.config_path, config)

    def save(self, epoch, checkpoint):
        """Writes one epoch's checkpoint; it appears when it is complete.

        Args:
            epoch: int, epochs finished.
            checkpoint: the `tf.train.Checkpoint` to write.

        Raises:
            UserError: if it cannot be written; those before are kept.
        """
        with self._appearing(self._checkpoint_directory(epoch)) as aside:
            checkpoint.write(str(aside / "checkpoint"))
        for partial in self.checkpoints_path.glob(".epoch-*.partial"):
            shutil.rmtree(partial)

    def save_partial(self, epoch, checkpoint, sums):
        """Writes a checkpoint within an epoch; `save` removes it.

        Args:
            epoch: int, the epoch that is not finished (1 is the first).
            checkpoint: the `tf.train.Checkpoint` to write.
            sums: float32 array [steps taken in the epoch, 2], loss and hits
                summed over each step's examples.

        Raises:
            UserError: if it cannot be written; the checkpoints are kept.
        """
        with self._appearing(self._partial_directory(epoch)) as aside:
            np.save(aside / "sums.npy", sums, allow_pickle=False)
            checkpoint.write(str(aside / "checkpoint"))

    @contextlib.contextmanager
    def _appearing(self, directory):
        """Gives a directory aside, which takes its place when filled."""
        aside = directory.with_name(f".{directory.name.lstrip('.')}.tmp")
        with writing(directory):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            try:
                yield aside
            except (OSError, tf.errors.OpError):
                # What did arrive takes room that may be what is lacking.
                shutil.rmtree(aside, ignore_errors=True)
                raise
            shutil.rmtree(directory, ignore_errors=True)
            os.replace(aside, directory)

    def remove(self, epoch):
        """Removes one epoch's checkpoint."""
        directory = self._checkpoint_directory(epoch)
        doomed = directory.with_name(f".{directory.name}.old")
        os.replace(directory, doomed)
        shutil.rmtree(doomed)

    def write_best(self, epoch, metric, value):
        """Records which epoch is the best by a test metric."""
        record = {"epoch": epoch, "metric": metric, "value": value}
        write_text(self._best_path, json.dumps(record) + "\n")

    def write_metrics(self, rows):
        """Writes metrics.csv from dicts that share the first one's keys."""
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics_path, text.getvalue())

    # Reading.

    @property
    def exists(self):
        """Whether a run was begun here."""
        return self.config_path.is_file()

    def epochs(self):
        """Returns the epochs that have a checkpoint, ascending."""
        if not self.checkpoints_path.is_dir():
            return []
        matches = map(
            _EPOCH_DIRECTORY.fullmatch, os.listdir(self.checkpoints_path)
        )
        return sorted(int(match[1]) for match in matches if match)

    def best(self):
        """Returns the best epoch (the earliest of equals) by test metric.

        Returns:
            dict: "epoch" (int), "metric" (str) and "value" (float).

        Raises:
            UserError: if none was recorded.
        """
        best = self._read_json(self._best_path, "epoch", "metric", "value")
        if not isinstance(best["epoch"], int):
            raise UserError(
                f"{self._best_path} is damaged: its epoch is not a whole "
                f"number. Received: {best['epoch']!r}"
            )
        return best

    def resolve_epoch(self, epoch):
        """Returns the checkpointed epoch meant by "best", "last" or a number.

        Raises:
            UserError: if there is no such checkpoint.
        """
        epochs = self.epochs()
        if not epochs:
            raise UserError(
                f"{self.path} holds no checkpoint. Train it first with "
                "bin/train, or name another run."
            )
        if epoch == "last":
            return epochs[-1]
        if epoch == "best":
            epoch = self.best()["epoch"]
        elif not str(epoch).isdigit():
            raise UserError(
                f'An epoch is "best", "last" or a number. Received: {epoch!r}'
            )
        if int(epoch) not in epochs:
            raise UserError(
                f"{self.path} has no checkpoint of epoch {epoch}; it has "
                f"{_ranges(epochs)}."
            )
        return int(epoch)

    def restore(self, checkpoint, epoch):
        """Reads one epoch's checkpoint into a `tf.train.Checkpoint`.

        Returns:
            TensorFlow's load status, to assert on what was matched.

        Raises:
            UserError: naming the checkpoint if it is damaged.
        """
        directory = self._checkpoint_directory(epoch)
        try:
            return checkpoint.read(str(directory / "checkpoint"))
        except _UNREADABLE as error:
            raise UserError(
                f"The checkpoint {directory} is damaged: it cannot be read. "
                "Remove that directory and run the training command again, or "
                f"name another epoch. TensorFlow said: {error}"
            ) from error

    def restore_partial(self, checkpoint, epoch):
        """Reads what `save_partial` wrote.

        Args:
            checkpoint: the `tf.train.Checkpoint` to read into.
            epoch: int, the epoch that was not finished.

        Returns:
            Its float32 array `sums`, or None if there is nothing.

        Raises:
            UserError: if it is damaged; `checkpoint` may then be half read.
        """
        directory = self._partial_directory(epoch)
        if not directory.is_dir():
            return None
        try:
            sums = np.load(directory / "sums.npy", allow_pickle=False)
            status = checkpoint.read(str(directory / "checkpoint"))
            status.assert_existing_objects_matched()
            return sums.reshape(-1, 2)
        except (*_UNREADABLE, AssertionError) as error:
            raise UserError(
                f"{directory} is damaged: {error} The epoch is trained from "
                "its beginning."
            ) from error

    def load_model(self, epoch="last"):
        """Returns the `keras.Model` with one epoch's weights.

        Args:
            epoch: "best", "last" or int.

        Raises:
            UserError: if this is not a run, the epoch has no checkpoint, or
                the checkpoint is damaged or of another architecture.
        """
        self.check_exists()
        epoch = self.resolve_epoch(epoch)
        model = self._build_model()
        status = self.restore(tf.train.Checkpoint(model=model), epoch)
        try:
            status.assert_existing_objects_matched().expect_partial()
        except AssertionError as error:
            raise UserError(
                f"The checkpoint {self._checkpoint_directory(epoch)} does not "
                f"fit the model in {self._model_path}: {error}"
            ) from error
        return model

    def load_data(self):
        """Returns the `data.Dataset` the run was trained on."""
        self.check_exists()
        arguments = self._description("arguments")
        with self._damaged(self._data_path):
            inspect.signature(data.load).bind(**arguments)
            schema.check_values(data.load, arguments, "load")
        return data.load(**arguments)

    def info(self):
        """Returns the `data.Info` of the run's dataset, without loading it."""
        self.check_exists()
        description = self._description("info")
        with self._damaged(self._data_path):
            return data.Info(**description)

    def metrics(self):
        """Returns metrics.csv as a `pandas.DataFrame`.

        Columns: epoch, step (optimizer steps taken), split ("train": the mean
        over the epoch's augmented batches; "test": an evaluation), loss (nats)
        and accuracy (in [0, 1]), or auc and one column per finding.
        """
        import pandas

        self.check_exists()
        with self._damaged(self.metrics_path):
            table = pandas.read_csv(self.metrics_path, index_col=False)
            if not len(table) or table["split"].dtype.kind in "iufb":
                raise ValueError("it has no rows of an evaluation")
            numbers = table.drop(columns="split").dtypes
            for name in ("epoch", "step", *numbers.index):
                if numbers[name].kind not in "iuf":
                    raise ValueError(f"column {name} holds more than numbers")
            if numbers["epoch"].kind == "f" or table["split"].isna().any():
                raise ValueError("a row is cut short")
            return table

    def binding(self, name):
        """Returns what a parameter was bound to in training.

        Args:
            name: str, configurable and parameter, such as "train.seed".

        Returns:
            The value in config.gin, defaults included; of a reference to a
            configurable, the str "@..." that stands there.

        Raises:
            UserError: if this is not a run, or nothing is bound.
        """
        self.check_exists()
        try:
            found = _bindings(_read_text(self.config_path))
        except (SyntaxError, tokenize.TokenError) as error:
            raise UserError(
                f"{self.config_path} is damaged: {error}"
            ) from error
        for key, value in found.items():
            # Gin writes module names before a name that is not unique.
            if f".{key}".endswith(f".{name}"):
                return value
        raise UserError(
            f"{self.config_path} must bind {name}, as that of a run of "
            "bin/train does. Received: nothing of that name."
        )

    def metric_rows(self):
        """Returns metrics.csv as a list of dicts of strings, [] if absent."""
        if not self.metrics_path.is_file():
            return []
        with open(self.metrics_path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def check_exists(self):
        """Raises a `UserError` if no run was begun here."""
        if not self.exists:
            raise UserError(
                f"{self.path} is not a run directory: it has no config.gin. "
                "Give the --work_dir of a bin/train command."
            )

    def _build_model(self):
        architecture = _read_text(self._model_path)
        try:
            model = keras.models.model_from_json(architecture)
            if not isinstance(model, keras.Model):
                raise TypeError(f"{type(model).__name__} is no model")
            return model
        # What a changed description makes Keras' constructors raise.
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            IndexError,
        ) as error:
            raise UserError(
                f"{self._model_path} does not give a model. If it has layers "
                "of your own, import the module that defines them first (in a "
                f"gin file: `import my_layers`). Keras said: {error}"
            ) from error

    def _checkpoint_directory(self, epoch):
        return self.checkpoints_path / f"epoch-{epoch:04d}"

    def _partial_directory(self, epoch):
        return self.checkpoints_path / f".epoch-{epoch:04d}.partial"

    def _description(self, part):
        found = self._read_json(self._data_path, "arguments", "info")[part]
        with self._damaged(self._data_path):
            return dict(found)

    def _read_json(self, path, *keys):
        """Returns the object in a JSON file, which must have these keys."""
        text = _read_text(path)
        with self._damaged(path):
            found = json.loads(text)
            if not isinstance(found, dict):
                raise TypeError("it does not hold an object")
            if missing := set(keys) - found.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return found

    @contextlib.contextmanager
    def _damaged(self, path):
        """Turns what the content of a file leads to into a plain sentence."""
        try:
            yield
        except UserError:
            raise
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            csv.Error,
        ) as error:
            raise UserError(
                f"{path} is damaged: {error}. Put back a copy of it, or train "
                "the run again."
            ) from error


class _Values(config_parser.ParserDelegate):
    """Lets a configuration be read without the configurables it names."""

    def __init__(self):
        self.macros = {}

    def configurable_reference(self, scoped_configurable_name, evaluate):
        call = "()" if evaluate else ""
        return f"@{scoped_configurable_name}{call}"

    def macro(self, macro_name):
        # Gin writes macros before what uses them; constants stay a name.
        return self.macros.get(macro_name, f"%{macro_name}")


def _bindings(config):
    """Returns {"scope/configurable.parameter": value} of a gin text."""
    delegate, found = _Values(), {}
    for statement in config_parser.ConfigParser(config, delegate):
        if not isinstance(statement, config_parser.BindingStatement):
            continue
        scope, selector, parameter, value, _ = statement
        name = f"{scope}/{selector}" if scope else selector
        if parameter:
            found[f"{name}.{parameter}"] = value
        else:
            delegate.macros[name] = value
    return found


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not text.") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read, so this is not a complete run directory: "
            f"{error.strerror}"
        ) from error


def _ranges(epochs):
    """Returns [0, 1, 2, 5] as "0-2, 5"."""
    parts = []
    for epoch in epochs:
        if parts and epoch == parts[-1][1] + 1:
            parts[-1][1] = epoch
        else:
            parts.append([epoch, epoch])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in parts)
