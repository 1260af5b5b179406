import numpy as np
import pandas
import pytest
from test_feature_reuse import write

import keras_transfer as kt
from keras_transfer.analysis.learning import (
    last_fifth,
    learned,
    learning_summary,
    unconverged,
)
from keras_transfer.errors import UserError


def test_what_has_converged(tmp_path):
    flat = [0.0, 0.2, 0.5, 0.6, 0.7, 0.7, 0.8, 0.80, 0.81, 0.80, 0.82]
    rising = [0.0, 0.2, 0.5, 0.6, 0.7, 0.7, 0.8, 0.80, 0.81, 0.85, 0.83]
    for curve in (flat, rising):
        found = last_fifth(kt.Run(write(tmp_path / f"{curve[-1]}", curve)))
        # Of ten epochs the last two and the two before.
        level, before = np.mean(curve[-2:]), np.mean(curve[-4:-2])
        assert found["averaged"] == 2
        assert found["level"] == pytest.approx(level)
        assert found["rise"] == pytest.approx(level - before)
    columns = [
        {"kind": kind, "name": f"{kind} {curve[-1]}"}
        | learned(kt.Run(tmp_path / f"{curve[-1]}"))
        for curve in (flat, rising)
        for kind in ("P-T", "RI-T")
    ]
    table = pandas.DataFrame(columns)
    assert list(table.converged) == [True, True, False, False]
    assert "RI-T 0.83" in unconverged(table)
    assert "P-T" not in unconverged(table) and "0.82" not in unconverged(table)
    assert unconverged(table[:3]) == ""
    # Of one epoch nothing is known.
    single = learned(kt.Run(write(tmp_path / "single", [0.0, 0.5])))
    assert np.isnan(single["rise"]) and not single["converged"]
    fallen = learned(kt.Run(write(tmp_path / "fallen", [0.0, 0.9, 0.5])))
    assert fallen["rise"] == pytest.approx(-0.4) and fallen["converged"]


def test_learning_summary_needs_an_epoch(tmp_path):
    run = kt.Run(write(tmp_path / "run", [0.1]))
    with pytest.raises(UserError, match="epoch 1 or later"):
        learning_summary(run)
