"""Train the two networks of the lessons and store their weights with the package: `make weights`, 2 minutes.

Each network learns from the 55,000 training images. Settings were chosen on the validation images; the test
images are looked at once, to record in the file what the network reaches.
"""

from __future__ import annotations

import json
import time

from safetensors.numpy import save
from torch import nn

from qlearn import datasets
from qlearn.nn.models import cnn, mlp
from qlearn.nn.training import accuracy, train

SETTINGS = {
    "mlp": {"seed": 0, "epochs": 8, "batch_size": 128, "learning_rate": 4e-3},
    "cnn": {"seed": 0, "epochs": 4, "batch_size": 128, "learning_rate": 4e-3},
}


def main() -> None:
    digits = datasets.mnist_arrays()
    for name, make in {"mlp": mlp, "cnn": cnn}.items():
        settings = SETTINGS[name]
        model = make(seed=int(settings["seed"]))
        start = time.perf_counter()
        train(model, *digits.train, **settings)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        measured = {
            "validation_accuracy": round(accuracy(model, *digits.validation), 5),
            "test_accuracy": round(accuracy(model, *digits.test), 5),
        }
        content = save(weights(model), metadata={"training": json.dumps(settings | measured)})
        datasets.write_whole(datasets.SHIPPED / f"{name}.safetensors", content)
        print(f"{name}: {measured}, {len(content):,} bytes, {seconds:.1f} s")


def weights(model: nn.Module) -> dict:
    """The model's numbers as NumPy arrays, without batch norm's count of batches, which nothing reads."""
    state = model.state_dict().items()
    return {name: value.numpy() for name, value in state if not name.endswith("num_batches_tracked")}


if __name__ == "__main__":
    main()
