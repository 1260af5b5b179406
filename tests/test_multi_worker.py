import json
import socket
import time

import commands
import numpy as np
import pytest

from keras_transfer.runs import Run

WORKER = commands.ROOT / "tests" / "worker.py"
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


def cluster(index, addresses):
    return json.dumps(
        {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
    )


def start_worker(config, *flags, monkeypatch, report=None):
    """Starts bin/train, or, with a report to write, tests/worker.py."""
    flags = *QUICK, "--gin_bindings=strategy.name = 'multi_worker'", *flags
    with monkeypatch.context() as patch:
        patch.setenv("TF_CONFIG", config)
        if report is None:
            return commands.start("train", *flags)
        return commands.start_script(WORKER, f"--report={report}", *flags)


def starter(work_dir, monkeypatch):
    """Returns a function that starts the worker of an index."""
    addresses = free_addresses(2)

    def start(index):
        return start_worker(
            cluster(index, addresses),
            f"--work_dir={work_dir}",
            monkeypatch=monkeypatch,
        )

    return start


def end(processes):
    results = []
    for process in processes:
        output, errors = process.communicate()
        results.append((process.returncode, output, errors))
    return results


def assert_close(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A cluster of two, each with a directory of its own, and one process."""
    root = tmp_path_factory.mktemp("cluster")
    addresses = free_addresses(2)
    names = ["chief", "other"]
    with pytest.MonkeyPatch.context() as patch:
        processes = [
            start_worker(
                cluster(index, addresses),
                f"--work_dir={root / name}",
                report=root / f"{name}.npz",
                monkeypatch=patch,
            )
            for index, name in enumerate(names)
        ]
        for status, _, errors in end(processes):
            assert status == 0, errors
    alone = commands.start_script(
        WORKER,
        *QUICK,
        f"--work_dir={root / 'one'}",
        f"--report={root / 'one.npz'}",
    )
    ((status, _, errors),) = end([alone])
    assert status == 0, errors
    reports = {
        name: dict(np.load(root / f"{name}.npz")) for name in (*names, "one")
    }
    examples = {name: r.pop("examples") for name, r in reports.items()}
    weights = {name: list(r.values()) for name, r in reports.items()}
    return root, weights, examples


def test_two_workers_are_one_run(three):
    root, weights, _ = three
    assert_close(weights["chief"], weights["other"])
    assert_close(weights["one"], weights["chief"])
    one, two = Run(root / "one"), Run(root / "chief")
    assert one.epochs() == two.epochs() == [0, 1, 2, 3, 4]
    assert_close(two.load_model().get_weights(), weights["chief"])
    assert_close(one.load_model().get_weights(), weights["one"])


def test_only_the_chief_writes(three):
    root, _, _ = three
    assert (root / "chief" / "config.gin").exists()
    assert not (root / "other").exists()


def test_each_worker_reads_its_shard(three):
    _, _, examples = three
    joined = np.concatenate([examples["chief"], examples["other"]], axis=1)
    np.testing.assert_array_equal(joined, examples["one"])
    assert all(len(set(step)) == len(step) for step in joined)


@pytest.mark.long
def test_workers_resume_after_one_was_killed(tmp_path, monkeypatch):
    start = starter(tmp_path / "two", monkeypatch)
    for status, _, errors in end([start(0), start(1)]):
        assert status == 0, errors
    whole, killed = Run(tmp_path / "two"), Run(tmp_path / "killed")
    start = starter(killed.path, monkeypatch)
    chief, other = start(0), start(1)
    while 1 not in killed.epochs():
        assert other.poll() is None
        time.sleep(0.01)
    other.kill()
    began = time.monotonic()
    # Its machine starts it again at once, as a supervisor would, ...
    other = start(1)
    ((status, _, errors),) = end([chief])
    # ... and the chief's does when it has noticed, within a bounded time.
    assert time.monotonic() - began < 120
    assert status == 1 and "Traceback" not in errors
    assert "Another worker of the cluster is gone" in errors
    for status, _, errors in end([start(0), other]):
        assert status == 0, errors
    assert killed.metrics_path.read_text() == whole.metrics_path.read_text()


@pytest.mark.long
def test_fine_tuning_on_two_workers_is_that_on_one(tmp_path, monkeypatch):
    flags = [
        f"--gin_file={commands.ROOT}/gin/fine_tuning.gin",
        "--gin_bindings=AdamW.gradient_accumulation_steps = 2",
        "--gin_bindings=train.epochs = 8",
        "--gin_bindings=train.patience = 1",
    ]
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    addresses = free_addresses(2)
    workers = [
        start_worker(
            cluster(index, addresses),
            *flags,
            f"--work_dir={two.path}",
            monkeypatch=monkeypatch,
        )
        for index in range(2)
    ]
    for status, _, errors in end(workers):
        assert status == 0, errors
    status, _, errors = commands.run(
        "train", *QUICK, *flags, f"--work_dir={one.path}"
    )
    assert status == 0, errors
    assert one.epochs() == two.epochs() and one.best() == two.best()
    for epoch in one.epochs():
        assert_close(
            one.load_weights(epoch).values(), two.load_weights(epoch).values()
        )


def misconfigured(config, tmp_path, monkeypatch):
    """Starts a worker that waits 4 seconds; returns its error."""
    process = start_worker(
        config,
        f"--work_dir={tmp_path}/run",
        "--gin_bindings=cluster_timeout.seconds = 4",
        monkeypatch=monkeypatch,
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("Error: ") == 1 and "TF_CONFIG" in errors
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize(
    "index, others",
    [
        # A worker that was not started: nothing listens there.
        pytest.param(0, None, marks=pytest.mark.long),
        # Of the others, the first waits for the chief.
        (1, None),
        # Wrong addresses: no such host, and one that no answer comes from.
        pytest.param(0, "nowhere.invalid:2222", marks=pytest.mark.long),
        pytest.param(0, "192.0.2.1:2222", marks=pytest.mark.long),
    ],
)
def test_cluster_that_does_not_come_together_ends_in_a_sentence(
    tmp_path, monkeypatch, index, others
):
    addresses = free_addresses(2)
    addresses[1 - index] = others or addresses[1 - index]
    errors = misconfigured(cluster(index, addresses), tmp_path, monkeypatch)
    assert "did not come together within 4 seconds" in errors


@pytest.mark.long
@pytest.mark.parametrize(
    "config, named",
    [
        ("{not JSON", "not JSON"),
        (cluster(2, ["127.0.0.1:2222", "127.0.0.1:2223"]), "2"),
        ('{"cluster": {"worker": ["127.0.0.1:2222"]}}', "task"),
        (cluster(0, ["127.0.0.1"]), "127.0.0.1"),
        (cluster(0, []), "worker"),
        ("[]", "must be a JSON object"),
    ],
)
def test_malformed_cluster_ends_in_a_sentence(
    tmp_path, monkeypatch, config, named
):
    assert named in misconfigured(config, tmp_path, monkeypatch)
