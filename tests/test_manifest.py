import json
import os
import shutil
import threading

import numpy as np
import pytest
import written_runs

from keras_transfer import files, manifest
from keras_transfer.analysis.output import Output
from keras_transfer.errors import UserError
from keras_transfer.manifest import Manifest
from keras_transfer.runs import Run, architecture


@pytest.fixture
def directory(tmp_path):
    found = Manifest(tmp_path / "a", "analysis")
    found.claim()
    found.write_text("table.csv", "a,b\n1,2\n")
    return found


def test_what_is_written_is_read(directory):
    assert directory.read_text("table.csv") == "a,b\n1,2\n"
    assert directory.read_table("table.csv").b.tolist() == [2]
    assert Manifest(directory.directory).kind == "analysis"
    directory.check()


def test_every_flipped_bit_is_noticed(directory, monkeypatch):
    monkeypatch.setattr(manifest, "_TRIES", 1)
    for name in ("table.csv", manifest.NAME):
        path = directory.directory / name
        content = path.read_bytes()
        for position in range(len(content)):
            for bit in (0, 3, 6):
                changed = bytearray(content)
                changed[position] ^= 1 << bit
                path.write_bytes(changed)
                try:
                    found = directory.read_text("table.csv")
                except UserError as error:
                    assert "is damaged" in str(error)
                else:
                    # White space of the JSON that became another one.
                    assert name == manifest.NAME and found == "a,b\n1,2\n"
        path.write_bytes(content)


@pytest.mark.parametrize("calls", range(4))
def test_killed_at_any_moment_a_file_is_readable(directory, monkeypatch, calls):
    left = iter(range(calls))
    replace = os.replace

    def killed(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed)
    for text in ("second", "third"):
        try:
            directory.write_text("table.csv", text)
        except KeyboardInterrupt:
            break
    monkeypatch.undo()
    expected = ["a,b\n1,2\n", "a,b\n1,2\n", "second", "second", "third"][calls]
    assert directory.read_text("table.csv") == expected
    directory.write_text("table.csv", "last")
    assert directory.read_text("table.csv") == "last"


def test_reading_while_it_is_written(directory):
    stop = threading.Event()

    def write():
        count = 0
        while not stop.is_set():
            count += 1
            directory.write_text("table.csv", f"{count}\n" * 20)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert directory.read_text("table.csv")
    finally:
        stop.set()
        writer.join()


def test_a_directory_stays_what_it_is(directory):
    for kind in ("run", "study"):
        with pytest.raises(UserError, match=r"the results of bin/analyze and"):
            Manifest(directory.directory, kind).claim()
    directory.claim()


def test_what_somebody_else_has_written_is_not_overwritten(tmp_path):
    (tmp_path / "config.gin").write_text("mine")
    with pytest.raises(UserError, match="config.gin is there already"):
        Manifest(tmp_path, "study").claim(("config.gin",))
    assert os.listdir(tmp_path) == ["config.gin"]
    (tmp_path / "b").mkdir()
    found = Manifest(tmp_path / "b", "analysis")
    found.claim()
    (tmp_path / "b" / "table.csv").write_text("mine")
    with pytest.raises(UserError, match="table.csv is there already"):
        found.write_text("table.csv", "ours")
    assert (tmp_path / "b" / "table.csv").read_text() == "mine"


def test_a_link_is_not_written_through(directory, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in ("table.csv", manifest.NAME):
        path = directory.directory / name
        os.rename(path, tmp_path / "kept")
        path.symlink_to(tmp_path / "kept")
        before = (tmp_path / "kept").read_bytes()
        directory.write_text("table.csv", f"new {name}")
        assert (tmp_path / "kept").read_bytes() == before
        assert not path.is_symlink()
    log = tmp_path / "evaluated.jsonl"
    log.symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="evaluated.jsonl cannot be written"):
        files.append_text(log, "line\n")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_directory_made_anew_meanwhile_is_not_written_into(tmp_path):
    path = tmp_path / "run"
    with files.hold(path):
        found = Manifest(path, "run")
        found.claim()
        shutil.rmtree(path)
        path.mkdir()
        with pytest.raises(UserError, match="was removed or moved while"):
            found.write_text("metrics.csv", "x")
        assert os.listdir(path) == []


# Runs.


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs, not to be changed."""
    path = tmp_path_factory.mktemp("runs")
    dataset = written_runs.digits()
    for seed in range(2):
        run = written_runs.write_run(path / str(seed), dataset, seed)
        run.write_metrics(
            [{"epoch": 0, "step": 0, "split": "test", "loss": 2.5 + seed}]
        )
        run.write_best(0, "accuracy", 0.25 + seed / 4)
    return path


@pytest.fixture
def copied(pair, tmp_path):
    shutil.copytree(pair, tmp_path / "runs")
    return Run(tmp_path / "runs/0"), Run(tmp_path / "runs/1")


USES = {
    "model.json": Run.load_model,
    "data.json": Run.info,
    "metrics.csv": Run.metrics,
    "checkpoints/best.json": Run.best,
    "config.gin": lambda run: run.binding("train.seed"),
    "checkpoints/epoch-0002/weights.safetensors": Run.load_weights,
}


@pytest.mark.parametrize("name", USES)
def test_files_of_another_run_are_noticed(copied, name):
    run, other = copied
    (other.path / "config.gin").write_text("train.seed = 1\n")
    if name != "model.json":
        shutil.copy(other.path / name, run.path / name)
    else:
        text = (run.path / name).read_text()
        (run.path / name).write_text(text.replace('"relu"', '"gelu"', 1) + " ")
    if name == "data.json":
        text = (run.path / name).read_text().replace("8", "9", 1)
        (run.path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name.split('/')[-1]} is damaged"):
        USES[name](run)


def test_checkpoints_that_changed_places_are_noticed(copied):
    run, _ = copied
    for place in ("epoch-0001", "epoch-0002"):
        shutil.rmtree(run.checkpoints_path / place, ignore_errors=True)
        shutil.copytree(
            run.checkpoints_path / "epoch-0000", run.checkpoints_path / place
        )
    with pytest.raises(UserError, match="epoch-0000, and not of epoch-0002"):
        run.load_weights()


def test_a_run_without_manifest_is_read(copied):
    run, _ = copied
    expected = run.load_weights()
    (run.path / manifest.NAME).unlink()
    assert run.best()["epoch"] == 0 and len(run.metrics()) == 1
    found = run.load_model().variables
    for value, (name, array) in zip(found, expected.items(), strict=True):
        np.testing.assert_array_equal(value, array, err_msg=name)


def test_a_live_run_that_thins_its_checkpoints_is_read(copied, monkeypatch):
    run, _ = copied
    resolve = Run.resolve_epoch

    def late(self, epoch):
        found = resolve(self, epoch)
        if found == 2:
            # What another process does between two looks.
            Run(run.path).remove(2)
        return found

    monkeypatch.setattr(Run, "resolve_epoch", late)
    expected = run._checkpoints.read_weights(0)
    found = run.load_weights("last")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_an_epoch_removed_meanwhile_is_not_called_damaged(copied, monkeypatch):
    run, _ = copied
    monkeypatch.setattr(Run, "resolve_epoch", lambda self, epoch: 1)
    with pytest.raises(UserError, match="no longer has") as caught:
        run.load_weights(1)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("epoch", ["²", "9" * 5000, "-1", "1.0", ""])
def test_odd_epochs_are_a_sentence(copied, epoch):
    with pytest.raises(UserError, match="An epoch is"):
        copied[0].resolve_epoch(epoch)


def test_a_run_that_is_not_finished_is_told_once(copied, caplog):
    run, _ = copied
    (run.path / "config.gin").write_text("train.epochs = 9\n")
    written_runs.reseal(run.path)
    run.load_model()
    run.load_weights()
    assert (
        caplog.text.count("is not finished: it has come to epoch 2 of 9") == 1
    )


def test_weights_that_are_not_finite_are_named(copied):
    run, _ = copied
    weights = run.load_weights()
    name = list(weights)[-1]
    run.save(3, weights | {name: np.full_like(weights[name], np.nan)})
    with pytest.raises(UserError, match=f"NaN or infinite: {name}"):
        run.load_model()


def test_an_analysis_or_a_new_run_does_not_take_a_runs_directory(copied):
    run, _ = copied
    config = run.config_path.read_bytes()
    with pytest.raises(UserError, match="holds a run of bin/train"):
        Output(run.path)
    (run.path / manifest.NAME).unlink()
    with pytest.raises(UserError, match="config.gin is there already"):
        Output(run.path)
    assert run.config_path.read_bytes() == config


def test_checkpoints_without_a_configuration_are_not_trained_over(copied):
    run, _ = copied
    run.config_path.unlink()
    dataset = written_runs.digits()
    with pytest.raises(UserError, match="holds checkpoints but no config.gin"):
        run.begin("", run_model(), dataset)


def run_model():
    return written_runs.build(num_classes=10, input_shape=(8, 8, 3), seed=0)


def test_a_model_for_other_images_than_the_data_is_named(copied):
    run, _ = copied
    path = run.path / "data.json"
    description = json.loads(path.read_text())
    description["info"]["image_shape"] = [9, 9, 1]
    path.write_text(json.dumps(description))
    written_runs.reseal(run.path)
    with pytest.raises(UserError, match=r"data.json do not belong together.*9"):
        run.load_model()


# Architectures.


@pytest.mark.parametrize("size", [10**9, 10**12, 10**30])
def test_a_model_of_impossible_size_is_refused_before_it_is_built(size):
    config = json.loads(architecture.to_text(run_model()))
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "Dense":
            layer["config"]["units"] = size
    with pytest.raises(UserError, match="model.json has layers of .* GiB of"):
        architecture.from_text(json.dumps(config), "model.json")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("keras.layers", "Lambda"),
        ("keras.layers", "TorchModuleWrapper"),
        ("keras.layers", "TFSMLayer"),
        ("os", "system"),
        ("subprocess", "Popen"),
        ("keras.utils", "get_file"),
        ("keras.src.saving.saving_lib", "load_model"),
    ],
)
def test_a_class_with_code_of_its_own_is_not_made(module, name):
    config = json.loads(architecture.to_text(run_model()))
    layer = config["config"]["layers"][1]
    layer |= {"module": module, "class_name": name, "registered_name": None}
    with pytest.raises(UserError, match=f"{name}.*(would run|not Keras)"):
        architecture.from_text(json.dumps(config), "model.json")
