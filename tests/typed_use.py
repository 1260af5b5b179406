"""Code as people write it, for mypy to check; nothing here is run."""

import keras
import numpy as np
import pandas

import keras_transfer as kt


def look(first: keras.Model, second: keras.Model) -> float:
    """Every public name, with the types that it takes and gives."""
    x, y = np.zeros((8, 4, 4, 1)), np.zeros(8, int)
    trajectory = kt.Trajectory(epochs=[1, 2], num_train=8)
    models = kt.Models(
        {"P-T": [first, "runs/pt", trajectory], "RI-T": second},
        data=kt.Examples(test=(x, y)),
        epoch="best",
    )
    table: pandas.DataFrame = kt.interpolation(models, num_points=11)
    kt.criticality(models, levels=("block",)).further["criticality_grid"]
    kt.figures.interpolation(table)
    run = kt.Run("runs/pt")
    epochs: list[int] = run.epochs()
    print(kt.initialize_from(run.load_model(epochs[0]), "p.safetensors"))
    try:
        kt.basin(models, split="test", tolerance=0.1)
    except kt.UserError as error:
        print(error)
    height: float = kt.barrier_height([0, 1], [0.5, 0.5], True)
    return height + kt.linear_cka(x[:, 0, 0], x[:, 0, 0])
