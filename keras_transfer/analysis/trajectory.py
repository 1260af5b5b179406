"""Where a model's weights come from: one model, or weights over time."""

import dataclasses

import keras
import pandas

from keras_transfer import objectives
from keras_transfer.errors import UserError
from keras_transfer.models import assign_weights, named_weights
from keras_transfer.runs import Run


class Trajectory(keras.callbacks.Callback):
    """A model's weights over time, recorded in Keras' own training.

    Rewinding, criticality, feature reuse and the choice of a checkpoint look at
    how a model came about, not only at where it ended.

    Example:
        trajectory = Trajectory()
        model.fit(x, y, validation_data=test, callbacks=[trajectory], epochs=5)
        models = Models({"P-T": [trajectory, ...]}, data=...)

    Weights are kept in memory, those of epoch 0 (before the first step) too.

    Args:
        epochs: the epochs to keep, beside 0 and the last; None for all.
        **about: what the model was trained on or from, for the analyses that
            compare such things: shuffle ("blocks", "pixels" or "channels"),
            block_size (px) and shuffle_seed for feature reuse, pretrained_epoch
            for pretraining, num_train (images) for label efficiency.
    """

    def __init__(self, epochs=None, **about):
        super().__init__()
        self.about = about
        self._wanted = None if epochs is None else {0, *epochs}
        self._weights = {}
        self._rows = []
        self._blank = None

    def on_train_begin(self, logs=None):
        """Records the initialization."""
        self._weights, self._rows = {0: named_weights(self.model)}, []
        self._blank = None

    def on_epoch_end(self, epoch, logs=None):
        """Records the weights after an epoch (Keras counts from 0)."""
        epoch += 1
        previous = max(self._weights)
        if self._wanted is not None and previous not in self._wanted:
            del self._weights[previous]
        self._weights[epoch] = named_weights(self.model)
        self._rows.append({"epoch": epoch} | (logs or {}))

    def epochs(self):
        """Returns the epochs whose weights were kept, ascending."""
        return sorted(self._weights)

    def resolve_epoch(self, epoch):
        """Returns the kept epoch meant by "best", "last" or a number.

        "best" is that of the highest validation accuracy or AUC.

        Raises:
            UserError: if its weights were not kept.
        """
        if not self._weights:
            raise UserError(
                "A trajectory holds what model.fit has done with it among its "
                "callbacks. Received: one that has recorded nothing; train "
                "first: model.fit(..., callbacks=[trajectory])."
            )
        if epoch == "last":
            return self.epochs()[-1]
        if epoch == "best":
            _, curve = self.learning_curve()
            kept = curve[curve.index.isin(self._weights)]
            return int(kept.idxmax())
        if epoch not in self._weights:
            kept = ", ".join(map(str, self.epochs()))
            raise UserError(
                f"The trajectory has epochs {kept}. Received: epoch {epoch!r}."
            )
        return int(epoch)

    def load_weights(self, epoch="last"):
        """Returns {path: array} of one epoch, as `named_weights` does."""
        return self._weights[self.resolve_epoch(epoch)]

    def load_model(self, epoch="last"):
        """Returns a copy of the model with one epoch's weights."""
        self.resolve_epoch(epoch)
        model = copy_of(self.model)
        assign_weights(model, self.load_weights(epoch), "The trajectory")
        return model

    def learning_curve(self):
        """Returns what was learned, epoch by epoch.

        Returns:
            The metric's name ("accuracy" or "auc") and a `pandas.Series` of its
            values on the validation data by epoch, from 1 on.

        Raises:
            UserError: if `model.fit` had no validation data or no metric.
        """
        table = pandas.DataFrame(self._rows)
        for column in table:
            name = column.removeprefix("val_")
            if name != column and name.endswith(("accuracy", "acc", "auc")):
                kind = "auc" if name.endswith("auc") else "accuracy"
                return kind, table.set_index("epoch")[column]
        raise UserError(
            "A learning curve needs the accuracy or AUC on validation data. "
            "Received: a trajectory without; compile the model with "
            'metrics=["accuracy"] and give model.fit validation_data.'
        )


class SingleModel:
    """One Keras model as it is: a trajectory of one point.

    Args:
        model: `keras.Model`.
    """

    about = {}

    def __init__(self, model):
        self.model = model

    def epochs(self):
        """Returns no epoch: what the model was before is not known."""
        return []

    def resolve_epoch(self, epoch):
        """Returns None, which stands for the model as it is.

        Raises:
            UserError: for anything but "last", "best" or None.
        """
        if epoch in ("last", "best", None):
            return None
        raise UserError(
            f"Model '{self.model.name}' has no epochs: it is given as it is. "
            f"Received: epoch {epoch!r}; analyses that look back need a run "
            "directory or a Trajectory."
        )

    def load_weights(self, epoch=None):
        """Returns {path: array}, as `named_weights` does."""
        self.resolve_epoch(epoch)
        return named_weights(self.model)

    def load_model(self, epoch=None):
        """Returns the model itself."""
        self.resolve_epoch(epoch)
        return self.model

    def learning_curve(self):
        """Raises a `UserError`: there is none."""
        raise UserError(
            f"How model '{self.model.name}' was trained is not known. "
            "Received: a model without its history; give a run directory or a "
            "Trajectory."
        )


def about(source):
    """Returns what is known of the images that a model was trained on.

    Args:
        source: `Run`, `Trajectory` or `SingleModel`.

    Returns:
        dict: image_shape, and where there are any shuffle ("blocks", "pixels"
        or "channels"), block_size (px) and shuffle_seed; of a run the rest of
        its `data.Info`, of a trajectory what else it was given.
    """
    if isinstance(source, Run):
        return dataclasses.asdict(source.info())
    return {"image_shape": tuple(source.model.input_shape[1:])} | source.about


def learning_curve(source):
    """Returns what a model learned, epoch by epoch.

    Args:
        source: `Run`, `Trajectory` or `SingleModel`.

    Returns:
        The metric's name ("accuracy" or "auc") and a `pandas.Series` of its
        values on the test (validation) data by epoch, from 1 on.

    Raises:
        UserError: if it is not known.
    """
    if not isinstance(source, Run):
        return source.learning_curve()
    metric = objectives.metric_name(source.info().multi_label)
    metrics = source.metrics()
    rows = metrics[(metrics.split == "test") & (metrics.epoch > 0)]
    if rows.empty:
        raise UserError(
            "What was learned is read from metrics.csv, which must hold test "
            f"rows of epoch 1 or later. Received: {source.metrics_path}."
        )
    return metric, rows.sort_values("epoch").set_index("epoch")[metric]


def copy_of(model):
    """Returns a copy of a Keras model with weights of its own.

    Args:
        model: functional or sequential `keras.Model`.

    Raises:
        UserError: if Keras cannot copy it.
    """
    try:
        copy = keras.models.clone_model(model)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"Model '{model.name}' cannot be copied. Give its layers a "
            f"get_config. Keras said: {error}"
        ) from error
    assign_weights(copy, named_weights(model), "The weights")
    return copy
