"""The study on a P that is there already, at its smallest."""

import commands
import domains
import numpy as np
import pytest

from keras_transfer import models
from keras_transfer.runs import Run


def write_folder(root):
    """Writes 8 training and 8 test images of two classes."""
    for i in range(16):
        folder = root / ("test" if i >= 8 else "train") / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = domains.photograph(i, 36, 40)
        (folder / f"{i}.jpg").write_bytes(domains.jpeg(image))


@pytest.mark.long
def test_the_study_starts_from_a_file_of_weights(tmp_path):
    write_folder(tmp_path / "photo")
    p = models.keras_application(
        7,
        (32, 32, 3),
        name="MobileNetV2",
        arguments={"alpha": 0.35},
        seed=9,
    )
    p.save_weights(tmp_path / "p.weights.h5")
    bindings = {
        "pretrained": "p.weights.h5",
        "targets": {"photo": {"load.data_dir": str(tmp_path / "photo")}},
        "replications": 1,
        "block_sizes": [],
        "analyses": ["distance.gin", "mistakes.gin"],
        "analyses_of_one": [],
        "analyses_of_three": [],
        "bindings": {
            "keras_application.arguments": {"alpha": 0.35},
            "load.image_size": 32,
            "train.epochs": 1,
            "train.batch_size": 4,
            "cosine.warmup_epochs": 0.0,
        },
    }
    status, output, errors = commands.run(
        "reproduce",
        f"--gin_file={commands.ROOT}/gin/study_pretrained.gin",
        "--work_dir=study",
        *(f"--gin_bindings=Study.{k} = {v!r}" for k, v in bindings.items()),
        cwd=tmp_path,
    )
    assert status == 0, errors
    report = tmp_path / "study" / "report.html"
    assert f"Report: {report}" in output and report.is_file()
    runs = tmp_path / "study" / "replication_0" / "runs" / "photo"
    assert sorted(path.name for path in runs.iterdir()) == [
        "P-T_0",
        "P-T_1",
        "RI-T_0",
        "RI-T_1",
    ]
    body = [weight.numpy() for weight in p.weights][:-2]
    for name, is_p in (("P-T_0", True), ("P-T_1", True), ("RI-T_0", False)):
        start = list(Run(runs / name).load_weights(0).values())
        same = [
            np.array_equal(a, b)
            for a, b in zip(start, body, strict=False)
            if a.ndim > 1
        ]
        assert all(same) if is_p else not any(same)
