import json
import socket
import time

import commands
import numpy as np
import pytest

from keras_transfer.runs import Run

QUICK = [
    f"--gin_file={commands.ROOT}/gin/rit_digits.gin",
    "--gin_bindings=fixup_resnet.widths = (4,)",
    "--gin_bindings=load.image_size = 8",
    "--gin_bindings=load.num_train = 64",
    "--gin_bindings=train.epochs = 4",
]


def free_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def start_worker(index, addresses, *flags, monkeypatch):
    config = {
        "cluster": {"worker": addresses},
        "task": {"type": "worker", "index": index},
    }
    with monkeypatch.context() as patch:
        patch.setenv("TF_CONFIG", json.dumps(config))
        return commands.start(
            "train",
            *QUICK,
            "--gin_bindings=strategy.name = 'multi_worker'",
            *flags,
        )


def start_two(work_dir, monkeypatch, *flags):
    addresses = free_addresses(2)
    return [
        start_worker(
            index,
            addresses,
            f"--work_dir={work_dir}",
            *flags,
            monkeypatch=monkeypatch,
        )
        for index in range(2)
    ]


def end(processes):
    results = []
    for process in processes:
        output, errors = process.communicate()
        results.append((process.returncode, output, errors))
    return results


def test_two_workers_are_one_run(tmp_path, monkeypatch):
    processes = start_two(tmp_path / "two", monkeypatch)
    for status, _, errors in end(processes):
        assert status == 0, errors
    status, _, errors = commands.run(
        "train", *QUICK, f"--work_dir={tmp_path / 'one'}"
    )
    assert status == 0, errors
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    assert one.epochs() == two.epochs() == [0, 1, 2, 3, 4]
    for a, b in zip(
        one.load_model().get_weights(),
        two.load_model().get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_workers_resume_after_one_was_killed(tmp_path, monkeypatch):
    processes = start_two(tmp_path / "two", monkeypatch)
    for status, _, errors in end(processes):
        assert status == 0, errors
    whole, killed = Run(tmp_path / "two"), Run(tmp_path / "killed")
    processes = start_two(killed.path, monkeypatch)
    while 1 not in killed.epochs():
        assert processes[1].poll() is None
        time.sleep(0.01)
    processes[1].kill()
    began = time.monotonic()
    end(processes)
    # The other notices within a bounded time.
    assert time.monotonic() - began < 120
    for status, _, errors in end(start_two(killed.path, monkeypatch)):
        assert status == 0, errors
    assert killed.metrics_path.read_text() == whole.metrics_path.read_text()


def test_missing_worker_ends_in_a_sentence(tmp_path, monkeypatch):
    process = start_worker(
        0,
        free_addresses(2),
        f"--work_dir={tmp_path}/run",
        "--gin_bindings=cluster_timeout.seconds = 4",
        monkeypatch=monkeypatch,
    )
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - began < 40
    assert "did not come together within 4 seconds" in errors
    assert "Traceback" not in errors
