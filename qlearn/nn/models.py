"""The two networks of the lessons, small enough to train in a minute and to read in one look.

Both take pixels divided by 255, float32 of shape (N, 1, 28, 28), and give logits of shape (N, 10).
Both are a plain `nn.Sequential` with named steps, so that a step can be looked up, replaced and observed.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from qlearn import datasets
from qlearn.nn.network import check_seed


def mlp(*, seed: int = 0) -> nn.Sequential:
    """A multi-layer perceptron 784 → 100 → 100 → 10 with ReLU between: 89,610 parameters.

    Args:
        seed: of the initial weights. The same seed gives the same network; torch's own random state is
            neither used nor changed.

    >>> list(mlp()._modules)
    ['flatten', 'linear1', 'relu1', 'linear2', 'relu2', 'linear3']
    >>> mlp()(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """
    check_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                linear1=nn.Linear(28 * 28, 100),
                relu1=nn.ReLU(),
                linear2=nn.Linear(100, 100),
                relu2=nn.ReLU(),
                linear3=nn.Linear(100, 10),
            )
        )


def cnn(*, seed: int = 0) -> nn.Sequential:
    """A small convolutional network, 16 and 32 channels with batch norm: 20,538 parameters.

    The convolutions have no bias, because the batch norm behind each one would take it away again.

    Args:
        seed: of the initial weights, as for `mlp`.

    >>> list(cnn()._modules)
    ['conv1', 'bn1', 'relu1', 'pool1', 'conv2', 'bn2', 'relu2', 'pool2', 'flatten', 'linear']
    >>> cnn()(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """
    check_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(16),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(32),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear=nn.Linear(32 * 7 * 7, 10),
            )
        )


def load_trained(name: str) -> nn.Sequential:
    """The network "mlp" or "cnn" with the weights that come with this package, in eval mode.

    Raises:
        ValueError: for another name.

    >>> load_trained("mlp").training
    False
    """
    networks = {"mlp": mlp, "cnn": cnn}
    if not isinstance(name, str) or name not in networks:
        raise ValueError(
            f"name={name!r}: there are trained weights for 'mlp' and 'cnn'. The language model comes from "
            "nn.load_language_model()."
        )
    weights, model = datasets.trained(name), networks[name]()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return model.eval()
