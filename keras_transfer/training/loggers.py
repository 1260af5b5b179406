"""Trackers of experiments that are told of a run, besides TensorBoard.

    train.logger = @MLflowLogger    # pip install 'keras_transfer[mlflow]'
    MLflowLogger.tracking_uri = "http://localhost:5000"

A run that is resumed goes on there, too: its identity tells which it is.
"""

import contextlib

import gin

from keras_transfer.errors import UserError


@gin.configurable
class MLflowLogger:
    """Tells MLflow of a run: its configuration and the numbers of each epoch.

    Args:
        name: str, the run's.
        identity: str, which tells it from all others.
        config: {parameter: value}, what gin bound for it.
        tracking_uri: str, where MLflow keeps runs; "" for its default.
        experiment: str, the experiment that runs are part of.

    Raises:
        UserError: if MLflow is not installed, or cannot be reached.
    """

    def __init__(
        self,
        name,
        identity,
        config,
        tracking_uri: str = "",
        experiment: str = "keras_transfer",
    ):
        with _of("mlflow"):
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri or None)
            found = self._client.get_experiment_by_name(experiment)
            where = (
                found.experiment_id
                if found
                else self._client.create_experiment(experiment)
            )
            tag = "keras_transfer.identity"
            known = self._client.search_runs(
                [where], f"tags.`{tag}` = '{identity}'", max_results=1
            )
            run = (
                known[0]
                if known
                else self._client.create_run(
                    where, run_name=name, tags={tag: identity}
                )
            )
            self._id = run.info.run_id
            if not known:
                for parameter, value in config.items():
                    self._client.log_param(self._id, parameter, value)

    def log(self, epoch, numbers):
        """Tells the numbers of an epoch, {name: float}."""
        with _of("mlflow"):
            for name, value in numbers.items():
                self._client.log_metric(self._id, name, value, step=epoch)

    def finish(self):
        """Says that the run is finished."""
        with _of("mlflow"):
            self._client.set_terminated(self._id)


@gin.configurable
class WandbLogger:
    """Tells Weights & Biases of a run, as `MLflowLogger` does.

    Args:
        name: str, the run's.
        identity: str, which tells it from all others.
        config: {parameter: value}, what gin bound for it.
        project: str, that runs are part of.
        mode: "offline", which writes files to be sent by `wandb sync`, or
            "online".
        directory: str, for these files; "" for the current one.

    Raises:
        UserError: if it is not installed, or cannot be reached.
    """

    def __init__(
        self,
        name,
        identity,
        config,
        project: str = "keras_transfer",
        mode: str = "offline",
        directory: str = "",
    ):
        with _of("wandb"):
            import wandb

            self._run = wandb.init(
                project=project,
                name=name,
                id=identity,
                config=config,
                mode=mode,
                dir=directory or None,
                # Online; offline files of one id are put together when sent.
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(silent=True),
            )

    def log(self, epoch, numbers):
        """Tells the numbers of an epoch, {name: float}."""
        with _of("wandb"):
            self._run.log(numbers, step=epoch)

    def finish(self):
        """Says that the run is finished."""
        with _of("wandb"):
            self._run.finish()


@contextlib.contextmanager
def _of(package):
    """Has what goes wrong with a tracker end in a sentence."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"train.logger needs {package}: pip install "
            f"'keras_transfer[{package}]'. Python said: {error}"
        ) from error
    except Exception as error:  # Whatever a server or a client raises.
        raise UserError(
            f"{package} could not be told of the run, whose files are complete "
            f"up to here; the same command goes on. It said: {error}"
        ) from error
