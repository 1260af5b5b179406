"""A run directory: the only thing that passes from training to analysis.

    config.gin      the operative configuration, which repeats the run
    model.json      the architecture, as `keras.Model.to_json` writes it
    data.json       how to load the dataset again, its `Info` and fingerprint
    checkpoints/    see `checkpoints`; epoch 0 is the initialization
    metrics.csv     one row per evaluation
    manifest.json   which run this is, and hashes of the files above (see
                    `manifest`)
    tensorboard/    event files

Everything but the event files appears whole or not at all: it is written aside
and renamed. The order of writing makes every moment a good one to be killed at:
TensorBoard's events and metrics.csv first, then the checkpoint.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import tokenize

from absl import logging

# Its layers are registered, to be read back.
from keras_transfer import data, files, models, objectives, reading  # noqa: F401
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest, check_kind
from keras_transfer.models.weights import assign_weights, named_weights
from keras_transfer.runs import architecture, configuration, metrics
from keras_transfer.runs.checkpoints import (
    BEST,
    Absent,
    Checkpoints,
    check_finite,
)
from keras_transfer.runs.summaries import Summaries

_CONFIG, _MODEL, _DATA, _METRICS = (
    "config.gin",
    "model.json",
    "data.json",
    "metrics.csv",
)
# How often "last" and "best" are looked up anew when what they were is gone.
_TRIES = 5


class Run:
    """One training run on disk; nothing is read before it is asked for.

    Args:
        path: the run directory (the `--work_dir` of `bin/train`).
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.config_path = self.path / _CONFIG
        self.metrics_path = self.path / _METRICS
        self.tensorboard_path = self.path / "tensorboard"
        self.checkpoints_path = self.path / "checkpoints"
        self._model_path = self.path / _MODEL
        self._data_path = self.path / _DATA
        self._manifest = Manifest(self.path, "run")
        self._checkpoints = Checkpoints(self.checkpoints_path, self._manifest)
        self._progress_told = False

    # Writing.

    def begin(self, config, model, dataset, source=None):
        """Writes what is needed to repeat the run and to read it back.

        Args:
            config: str, the operative gin configuration.
            model: the `keras.Model` that is trained.
            dataset: the `data.Dataset` it is trained on.
            source: P's `Run`, if there is one.

        Raises:
            UserError: if it cannot be written, or the directory is another's.
        """
        text = architecture.to_text(model)
        self._check_free()
        self._manifest.claim((_MODEL, _DATA, _METRICS, "checkpoints"))
        if isinstance(source, Run):
            self._manifest.write_note("pretrained", source.identity)
        with files.writing(self.path):
            self.checkpoints_path.mkdir(parents=True, exist_ok=True)
        self._manifest.write_text(_MODEL, text)
        description = {
            "factory": dataset.factory,
            "arguments": dataset.arguments,
            "info": dataclasses.asdict(dataset.info),
            "fingerprint": dataset.fingerprint,
        }
        self._manifest.write_text(
            _DATA, json.dumps(description, indent=2) + "\n"
        )
        # Last, because its presence says that the directory is a run.
        self._manifest.write_text(_CONFIG, config)

    def _check_free(self):
        """Raises a `UserError` if a run without configuration is here."""
        if self.epochs() and not self.config_path.exists():
            raise UserError(
                f"{self.path} holds checkpoints but no config.gin, which says "
                "what run they are of. Nothing was changed; put back a copy of "
                "config.gin, or give another --work_dir."
            )

    def save(self, epoch, model, optimizer=None):
        """Writes one epoch's checkpoint; it appears when it is complete.

        Args:
            epoch: int, epochs finished; 0 is the initialization.
            model: the `keras.Model`, or its weights as {path: array}.
            optimizer: the Keras optimizer, or its state as {path: array}; None
                if nobody is to go on training from here.

        Raises:
            UserError: if it cannot be written; those before are kept.
        """
        self._checkpoints.write(epoch, _values(model), _values(optimizer))

    def save_partial(self, epoch, model, optimizer, steps):
        """Writes a checkpoint within an epoch; `save` removes it.

        Args:
            epoch: int, the epoch that is not finished (1 is the first).
            model: as for `save`.
            optimizer: as for `save`.
            steps: float32 array [steps taken in the epoch, 2], loss and
                accuracy summed over each step's examples.

        Raises:
            UserError: if it cannot be written; the checkpoints are kept.
        """
        self._checkpoints.write_partial(
            epoch, _values(model), _values(optimizer), steps
        )

    def add_metrics(self, epoch, step, summaries):
        """Writes an epoch's rows into metrics.csv, in place of later ones.

        Args:
            epoch: int, epochs finished.
            step: int, optimizer steps taken.
            summaries: {split: {column: value}}, loss and metrics.
        """
        earlier = [row for row in self._rows() if int(row["epoch"]) < epoch]
        self.write_metrics(earlier + metrics.rows_of(epoch, step, summaries))

    def write_metrics(self, rows):
        """Writes metrics.csv from dicts that share the first one's keys."""
        self._manifest.write_text(_METRICS, metrics.to_text(rows))

    def _rows(self):
        """Returns metrics.csv as a list of dicts of str, [] if absent."""
        if not self.metrics_path.exists():
            return []
        return metrics.read_rows(
            self._manifest.read_text(_METRICS), self.metrics_path
        )

    def keep(self, last, metric, epochs="all"):
        """Records the best epoch and removes checkpoints not to be kept.

        The best is chosen on validation images where there are any, else on
        test images.

        Args:
            last: int, the epoch that the run has come to.
            metric: str, the column by which the best epoch is chosen.
            epochs: "all", or the epochs whose checkpoints are kept beside the
                initialization, the best and the last.
        """
        kept = {epoch for epoch in self.epochs() if epoch <= last}
        values = {
            epoch: value
            for epoch, value in self.choosing_values(metric).items()
            if epoch in kept
        }
        best = metrics.best_epoch(values)
        self.write_best(best, metric, values[best])
        if epochs != "all":
            for epoch in kept - {0, best, last, *epochs}:
                self.remove(epoch)

    def choosing_values(self, metric):
        """Returns {epoch: value} of the metric by which the best is chosen."""
        with reading.damaged(self.metrics_path):
            return metrics.choosing_values(self._rows(), metric)

    def write_best(self, epoch, metric, value):
        """Records which epoch is the best by a metric."""
        self._checkpoints.write_best(epoch, metric, value)

    def remove(self, epoch):
        """Removes one epoch's checkpoint."""
        self._checkpoints.remove(epoch)

    @functools.cached_property
    def summaries(self):
        """The `Summaries` that TensorBoard shows."""
        return Summaries(self.tensorboard_path)

    # Going on.

    def newest(self, metric):
        """Reads what the run has come to.

        Of a damaged checkpoint a warning says so, and the one before is read.

        Args:
            metric: str, the column of metrics.csv that ranks epochs.

        Returns:
            The newest `checkpoints.Checkpoint`, of within an epoch where there
            is one; None if nothing was kept.

        Raises:
            UserError: if every checkpoint is damaged, or another file is.
        """
        epochs = self.epochs()
        if epochs and self._manifest.identity is None:
            # Of a former version, or lost.
            self._manifest.adopt(
                (_CONFIG, _MODEL, _DATA, _METRICS, BEST),
                self._checkpoints.identity(),
            )
        self.check_readable()
        for epoch in reversed(epochs):
            self._checkpoints.check_format(epoch)
            try:
                checkpoint = self._checkpoints.read(epoch)
            except UserError as error:
                logging.warning("%s Going back to an earlier one.", error)
                continue
            metrics.check_rows(
                self._rows(),
                self.metrics_path,
                epoch,
                metric,
                has_validation=self.info().num_validation > 0,
            )
            return self._newest_partial(epoch + 1) or checkpoint
        if epochs:
            raise UserError(
                f"None of the checkpoints in {self.checkpoints_path} can be "
                f"read. Remove {self.path} to train from the start."
            )
        return None

    def _newest_partial(self, epoch):
        try:
            return self._checkpoints.read_partial(epoch)
        except UserError as error:
            logging.warning(
                "%s Epoch %d is trained from its beginning.", error, epoch
            )
            return None

    def check_readable(self):
        """Checks what others will read of the run, save the weights.

        Raises:
            UserError: naming a file that is damaged.
        """
        self._manifest.read_object(_MODEL)
        self.info()

    def check_configuration(self, config, source=None):
        """Checks that a run was begun with a configuration.

        Where P lies does not matter, if it is the same P.

        Args:
            config: str, the operative gin configuration of now.
            source: P's `Run`, if there is one.

        Raises:
            UserError: saying in what they differ.
        """
        # What is the same needs no hash to be right.
        content = reading.read_bytes(self.config_path)
        text = reading.as_text(content, self.config_path)
        old, new = set(text.splitlines()), set(config.splitlines())
        if old == new:
            return
        if self._is_from(source) and _without_p(text) == _without_p(config):
            self._manifest.write_text(_CONFIG, config)
            return
        changes = "\n".join(
            [f"  there: {line}" for line in sorted(old - new)]
            + [f"  now:   {line}" for line in sorted(new - old)]
        )
        raise UserError(
            f"{self.path} holds a run of another configuration; give another "
            "--work_dir, or the configuration it was begun with, "
            f"{self.config_path}. They differ in:\n{changes}"
        )

    def _is_from(self, source):
        """Returns whether a run is the P that this one was begun from."""
        expected = self._manifest.note("pretrained")
        return (
            isinstance(source, Run)
            and expected is not None
            and expected == source.identity
        )

    # Reading.

    @property
    def exists(self):
        """Whether a run was begun here."""
        return self.config_path.is_file() and (
            self._manifest.kind in (None, "run")
        )

    @property
    def identity(self):
        """What tells the run from all others, a str; None if unknown."""
        return self._manifest.identity

    def progress(self):
        """Returns how far the run has come.

        Returns:
            (epochs trained, epochs to train); the latter None if its
            configuration does not say, and as many as were trained where
            training was stopped early.
        """
        total = patience = None
        with contextlib.suppress(KeyError), self._config() as config:
            total = configuration.value(config, "train.epochs")
            patience = configuration.value(config, "train.patience")
        done = max(self.epochs(), default=0)
        if isinstance(patience, int):
            metric = objectives.metric_name(self.info().multi_label)
            if metrics.has_stopped(self.choosing_values(metric), patience):
                total = done
        return done, total

    def epochs(self):
        """Returns the epochs that have a checkpoint, ascending."""
        return self._checkpoints.epochs()

    def best(self):
        """Returns the best epoch, the earliest of equals; see `keep`.

        Returns:
            dict: "epoch" (int), "metric" (str) and "value" (float).

        Raises:
            UserError: if none was recorded.
        """
        best = self._manifest.read_object(
            BEST, epoch=int, metric=str, value=(float, int)
        )
        return {name: best[name] for name in ("epoch", "metric", "value")}

    @property
    def choosing_split(self):
        """The split on which the best epoch was chosen, see `keep`."""
        with reading.damaged(self.metrics_path):
            return metrics.choosing_split(metrics.chosen_on(self._rows()))

    def resolve_epoch(self, epoch):
        """Returns the checkpointed epoch meant by "best", "last" or a number.

        That the run is not finished is said in a warning, once.

        Raises:
            UserError: if there is no such checkpoint.
        """
        epochs = self.epochs()
        if not epochs:
            raise UserError(
                f"{self.path} holds no checkpoint. Train it first with "
                "bin/train, or name another run."
            )
        self._tell_progress()
        if epoch == "last":
            return epochs[-1]
        if epoch == "best":
            epoch = self.best()["epoch"]
        elif not re.fullmatch("[0-9]{1,9}", str(epoch)):
            raise UserError(
                'An epoch is "best", "last" or a number. Received: '
                f"{str(epoch)!r:.80}"
            )
        if int(epoch) not in epochs:
            raise UserError(
                f"{self.path} has no checkpoint of epoch {epoch}; it has "
                f"{_ranges(epochs)}."
            )
        return int(epoch)

    def _tell_progress(self):
        if self._progress_told or not self.exists:
            return
        self._progress_told = True
        done, total = self.progress()
        if isinstance(total, int) and done < total:
            logging.warning(
                "The run %s is not finished: it has come to epoch %d of %d.",
                self.path,
                done,
                total,
            )

    def load_model(self, epoch="last"):
        """Returns the `keras.Model` with one epoch's weights, as trained.

        Args:
            epoch: "best", "last" or int.

        Raises:
            UserError: if this is not a run, the epoch has no checkpoint, or
                the checkpoint is damaged or of another architecture.
        """
        self._import_modules()
        weights = self.load_weights(epoch)
        model = architecture.from_text(
            self._manifest.read_text(_MODEL), self._model_path
        )
        self._check_images(model)
        what = f"The checkpoint of epoch {epoch} in {self.checkpoints_path}"
        assign_weights(model, weights, what)
        return model

    def _check_images(self, model):
        """Raises a `UserError` if the model is not one for the run's images."""
        taken, given = model.input_shape, self.info().image_shape
        if not isinstance(taken, tuple) or len(taken) != len(given) + 1:
            return
        if any(
            n not in (None, m) for n, m in zip(taken[1:], given, strict=True)
        ):
            raise UserError(
                f"{self._model_path} and {self._data_path} do not belong "
                f"together: the model takes images of shape {taken[1:]}, and "
                f"the data have {tuple(given)}. Put back copies of both."
            )

    def load_weights(self, epoch="last"):
        """Returns one epoch's weights by variable path.

        Args:
            epoch: "best", "last" or int.

        Returns:
            {path: array}, in the order of `model.variables`.

        Raises:
            UserError: as `load_model`.
        """
        self.check_exists()
        for left in reversed(range(_TRIES)):
            number = self.resolve_epoch(epoch)
            try:
                weights = self._checkpoints.read_weights(number)
                break
            except Absent:
                if not left:
                    raise
        directory = self._checkpoints.directory(number)
        check_finite(weights, f"The checkpoint {directory}")
        return weights

    def load_data(self, data_dir=None):
        """Returns the `data.Dataset` the run was trained on.

        If the data have changed since, a warning says in what.

        Args:
            data_dir: where its `load.data_dir` is now, if that has moved.

        Raises:
            UserError: if this is not a run, or its data are no longer there;
                or the function that made them, if it is the user's own.
        """
        self._import_modules()
        description = self._description()
        factory = description.get("factory", "load")
        arguments = description["arguments"]
        if factory is None:
            raise UserError(
                f"{self._data_path} does not say what made the data: they were "
                "made by hand, not by a function that train.dataset names. "
                "Give data of your own to analyze it with."
            )
        # A function of the user's own may have no such argument.
        if data_dir is not None and (
            factory == "load" or "data_dir" in arguments
        ):
            arguments = arguments | {"data_dir": data_dir}
        self._check_data_dir(factory, arguments)
        dataset = data.rebuild(factory, arguments, self.info())
        changes = self.changes_of_data(dataset)
        if changes:
            logging.warning(
                "The data of %s have changed since it was trained: %s.",
                self.path,
                ", ".join(changes),
            )
        return dataclasses.replace(
            dataset,
            factory=factory,
            arguments=arguments
            if dataset.factory is None
            else dataset.arguments,
        )

    def _check_data_dir(self, factory, arguments):
        """Raises a `UserError` if the folder of the data is not there."""
        data_dir = arguments.get("data_dir")
        if factory != "load" or not isinstance(data_dir, str):
            return
        path = files.user_path(data_dir, "load.data_dir")
        if "://" not in data_dir and not path.is_dir():
            raise UserError(
                f"The data of {self.path} are not in {data_dir}, where they "
                "were. If they have moved, bind Models.data_dir to the folder "
                f"in which they are now. Received: {self._data_path}"
            )

    def changes_of_data(self, dataset):
        """Says in what a `data.Dataset` is not the one of this run.

        Returns:
            List of phrases; empty if nothing differs.
        """
        description = self._description()
        recorded = description.get("fingerprint", {})
        with reading.damaged(self._data_path):
            return data.differences(dataset, self.info(), recorded)

    def info(self):
        """Returns the `data.Info` of the run's dataset, without loading it."""
        self.check_exists()
        description = self._description()
        with reading.damaged(self._data_path):
            info = data.Info(**description["info"])
            data.check_info(info)
        return info

    def _description(self):
        """Returns what is in data.json, a dict."""
        return self._manifest.read_object(
            _DATA, arguments=(dict, type(None)), info=dict
        )

    def metrics(self):
        """Returns metrics.csv as a `pandas.DataFrame`.

        Columns: epoch, step (optimizer steps taken), split ("train": the mean
        over the epoch's augmented batches; "test" and "validation": an
        evaluation), chooses (1: the best epoch is chosen on this split), loss
        (nats) and accuracy (in [0, 1]), or auc and one column per finding.
        """
        self.check_exists()
        content = self._manifest.read_bytes(_METRICS)
        return metrics.as_table(content, self.metrics_path)

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
        try:
            with self._config() as config:
                return configuration.value(config, name)
        except KeyError as error:
            raise UserError(
                f"{self.config_path} must bind {name}, as that of a run of "
                "bin/train does. Received: nothing of that name."
            ) from error

    def check_exists(self):
        """Raises a `UserError` if no run was begun here."""
        check_kind(self.path, "run", self._manifest.kind)
        if not self.exists:
            raise UserError(
                f"{self.path} is not a run directory: it has no config.gin. "
                "Give the --work_dir of a bin/train command."
            )

    def _import_modules(self):
        with self._config() as config:
            configuration.import_modules(config, self.path)

    @contextlib.contextmanager
    def _config(self):
        self.check_exists()
        config = self._manifest.read_text(_CONFIG)
        try:
            yield config
        except (
            SyntaxError,
            tokenize.TokenError,
            RecursionError,
            MemoryError,
        ) as error:
            raise UserError(
                f"{self.config_path} is damaged: {error}"
            ) from error


def _values(state):
    """Returns {path: array} of a model, an optimizer, or what is that."""
    is_read = state is None or isinstance(state, dict)
    return state if is_read else named_weights(state)


def _without_p(config):
    """Returns what a configuration binds, save where P lies."""
    try:
        found = configuration.bindings(config)
    except (SyntaxError, tokenize.TokenError):
        return None
    return {
        name: value
        for name, value in found.items()
        if not f".{name}".endswith(".train.pretrained")
    }


def _ranges(epochs):
    """Returns [0, 1, 2, 5] as "0-2, 5"."""
    parts = []
    for epoch in epochs:
        if parts and epoch == parts[-1][1] + 1:
            parts[-1][1] = epoch
        else:
            parts.append([epoch, epoch])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in parts)
