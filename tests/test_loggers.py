"""What trackers of experiments are told of a run."""

import gin
import pytest
from test_trainers import run

from keras_transfer.errors import UserError
from keras_transfer.runs import Run


@pytest.fixture(autouse=True)
def no_configuration():
    yield
    gin.clear_config()


def of_metrics(path):
    """Returns {(name, epoch): value}, as metrics.csv has them."""
    table = Run(path).metrics()
    return {
        (f"{name}/{row.split}", row.epoch): getattr(row, name)
        for row in table.itertuples()
        for name in ("loss", "accuracy")
    }


def test_mlflow_has_every_epoch(tmp_path, monkeypatch):
    # Of what is told, the same as a server would get.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "tracked").as_uri()
    bindings = ["train.logger = @MLflowLogger"]
    bindings += [f"MLflowLogger.tracking_uri = {uri!r}"]
    path = tmp_path / "run"
    run(path, *bindings)
    expected = of_metrics(path)
    # Taken up again, it is the same run there.
    Run(path).remove(2)
    run(path, *bindings)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("keras_transfer")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params["train.epochs"] == "2"
    for (name, epoch), value in expected.items():
        history = client.get_metric_history(found.info.run_id, name)
        told = [each.value for each in history if each.step == epoch]
        # The last epoch was done twice.
        assert told == pytest.approx([value] * (2 if epoch == 2 else 1))


def test_wandb_is_told_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    bindings = ["train.logger = @WandbLogger"]
    bindings += [f"WandbLogger.directory = {str(tmp_path)!r}"]
    run(tmp_path / "run", *bindings)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert Run(tmp_path / "run").identity in str(written)
    assert b"accuracy/test" in content and b"learning_rate" in content


def test_a_tracker_that_fails_is_a_sentence(tmp_path):
    pytest.importorskip("mlflow")
    bindings = ["train.logger = @MLflowLogger"]
    bindings += ["MLflowLogger.tracking_uri = 'nowhere://x'"]
    with pytest.raises(
        UserError, match="(?s)mlflow could not be told.*nowhere"
    ):
        run(tmp_path / "run", *bindings)
