import os
import random
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.runs import Run

QUICK = [
    f"--gin_file={commands.ROOT}/gin/rit_digits.gin",
    "--gin_bindings=fixup_resnet.widths = (4, 8)",
    "--gin_bindings=load.num_train = 64",
    "--gin_bindings=train.epochs = 12",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    status, output, errors = commands.run(
        "train", *QUICK, f"--work_dir={work_dir}"
    )
    assert status == 0, errors
    assert "best test accuracy" in output
    assert f"tensorboard --logdir {work_dir}" in output
    return Run(work_dir)


@pytest.mark.long
def test_killed_at_random_and_rerun_is_the_same_run(tmp_path, finished):
    # The seed makes the moments repeatable as far as a clock can be.
    moments = random.Random(2020)
    work_dir = tmp_path / "killed"
    flags = [*QUICK, f"--work_dir={work_dir}"]
    for _ in range(2):
        process = commands.start("train", *flags)
        begun = len(Run(work_dir).epochs())
        while process.poll() is None and len(Run(work_dir).epochs()) <= begun:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Not finished before the kill, or the test shows nothing.
        assert Run(work_dir).epochs()[-1] < 12
    status, _, errors = commands.run("train", *flags)
    assert status == 0, errors
    whole = finished.load_model().get_weights()
    for a, b in zip(
        whole, Run(work_dir).load_model().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert (
        Run(work_dir).metrics_path.read_text()
        == finished.metrics_path.read_text()
    )


def test_config_of_a_run_repeats_it(tmp_path, finished):
    status, _, errors = commands.run(
        "train",
        f"--gin_file={finished.config_path}",
        f"--work_dir={tmp_path / 'again'}",
        cwd=tmp_path,
    )
    assert status == 0, errors
    again = Run(tmp_path / "again")
    assert again.metrics_path.read_text() == finished.metrics_path.read_text()
    assert again.config_path.read_text() == finished.config_path.read_text()


def test_another_configuration_in_the_same_directory_is_refused(finished):
    status, _, errors = commands.run(
        "train",
        *QUICK,
        "--gin_bindings=train.seed = 1",
        f"--work_dir={finished.path}",
    )
    assert status == 1
    assert "another configuration" in errors
    assert "there: train.seed = 0" in errors
    assert "now:   train.seed = 1" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--work_dir=x"], "No configuration was given"),
        (["--work_dir=x", "--gin_file=nowhere.gin"], "nowhere.gin"),
        (["--work_dir=x", *QUICK, "--gin_bindings=train.x = 1"], "'x'"),
        (["--work_dir=x", *QUICK, "--gin_bindings=train.seed 1"], "seed 1"),
        (["--work_dir=x", "--gin_bindings=a = 1", "b"], "Received: b"),
        (QUICK, "work_dir"),
    ],
)
def test_bad_commands_end_in_a_sentence(tmp_path, flags, message):
    status, _, errors = commands.run("train", *flags, cwd=tmp_path)
    assert status == 1
    assert message in errors
    assert "Traceback" not in errors
    assert not os.listdir(tmp_path)


def test_exported_model_serves_without_this_package(tmp_path, finished):
    output = tmp_path / "exported"
    status, _, errors = commands.run(
        "export", f"--run={finished.path}", "--epoch=best", f"--output={output}"
    )
    assert status == 0, errors
    dataset = finished.load_data()
    images = dataset.test.raw_images(np.arange(50))
    np.save(tmp_path / "images.npy", images)
    # -I: isolated, so this package cannot be imported from here.
    script = (
        "import sys, numpy as np, tensorflow as tf\n"
        "model = tf.saved_model.load('exported/saved_model')\n"
        "images = np.load('images.npy')\n"
        "serve = model.signatures['serving_default']\n"
        "out = serve(images=tf.constant(images))\n"
        "real = model.signatures['serving_float']\n"
        "floats = real(images=tf.constant(images / 255, tf.float32))\n"
        "assert 'keras_transfer' not in sys.modules\n"
        "np.savez('served.npz', logits=out['logits'],\n"
        "    probabilities=out['probabilities'], floats=floats['logits'])\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, check=True
    )
    served = np.load(tmp_path / "served.npz")
    batch = next(iter(dataset.eval_batches(batch_size=50)))[0]
    expected = finished.load_model("best")(batch).numpy()
    for name in ("logits", "floats"):
        np.testing.assert_allclose(served[name], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        served["probabilities"], tf.nn.softmax(expected), atol=1e-6
    )
    status, _, errors = commands.run(
        "export", f"--run={finished.path}", f"--output={output}"
    )
    assert status == 1 and "exists already" in errors
