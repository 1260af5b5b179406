"""The published Fixup ResNet in PyTorch, for tests to compare with."""

import numpy as np
import pytest


def torch_network(stem, num_channels, widths, blocks, num_convs, num_classes):
    """Fixup ResNet in PyTorch, parameters named as in torchvision and Fixup."""
    torch = pytest.importorskip("torch", reason="the reference is in PyTorch")
    nn, relu = torch.nn, torch.nn.functional.relu

    def scalar(value=0.0):
        return nn.Parameter(torch.full((1,), value))

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            if num_convs == 2:
                shapes = [(width, 3, stride), (width, 3, 1)]
            else:
                shapes = [
                    (width, 1, 1),
                    (width, 3, stride),
                    (4 * width, 1, 1),
                ]
            before = channels
            for i, (after, size, step) in enumerate(shapes, start=1):
                setattr(self, f"bias{i}a", scalar())
                conv = nn.Conv2d(
                    before, after, size, step, size // 2, bias=False
                )
                setattr(self, f"conv{i}", conv)
                setattr(self, f"bias{i}b", scalar())
                before = after
            self.scale = scalar(1.0)
            self.shortcut = None
            if stride != 1 or channels != before:
                self.shortcut = nn.Conv2d(
                    channels, before, 1, stride, bias=False
                )

        def forward(self, x):
            biased = x + self.bias1a
            out = relu(self.conv1(biased) + self.bias1b)
            if num_convs == 2:
                out = self.conv2(out + self.bias2a) * self.scale + self.bias2b
            else:
                out = relu(self.conv2(out + self.bias2a) + self.bias2b)
                out = self.conv3(out + self.bias3a) * self.scale + self.bias3b
            return relu(
                out + (x if self.shortcut is None else self.shortcut(biased))
            )

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            size, step = (7, 2) if stem == "imagenet" else (3, 1)
            self.conv1 = nn.Conv2d(
                num_channels, widths[0], size, step, size // 2, bias=False
            )
            self.bias1 = scalar()
            channels = widths[0]
            for s, width in enumerate(widths):
                layers = []
                for b in range(blocks[s]):
                    layers.append(
                        Block(channels, width, 2 if s > 0 and b == 0 else 1)
                    )
                    channels = width * (4 if num_convs == 3 else 1)
                setattr(self, f"layer{s + 1}", nn.Sequential(*layers))
            self.bias2 = scalar()
            self.fc = nn.Linear(channels, num_classes)

        def forward(self, x):
            x = relu(self.conv1(x) + self.bias1)
            if stem == "imagenet":
                x = nn.functional.max_pool2d(x, 3, 2, 1)
            for s in range(len(widths)):
                x = getattr(self, f"layer{s + 1}")(x)
            return self.fc(x.mean((2, 3)) + self.bias2)

    return Network().eval()


def torch_name(path):
    """The PyTorch parameter that a Keras variable's path corresponds to."""
    special = {
        "conv1.conv/kernel": "conv1.weight",
        "conv1.bias/bias": "bias1",
        "fc.bias/bias": "bias2",
        "fc.dense/kernel": "fc.weight",
        "fc.dense/bias": "fc.bias",
    }
    layer, kind = path.split("/")
    return special.get(path, f"{layer}.weight" if kind == "kernel" else layer)


def to_torch(values):
    """Keras' layout of a kernel, or of any other weight, in PyTorch's."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[np.ndim(values)]
    return np.ascontiguousarray(np.transpose(values, axes))


def copy_weights(model, network):
    """Gives a PyTorch network the weights of a Keras model."""
    torch = pytest.importorskip("torch", reason="the reference is in PyTorch")
    weights = {
        torch_name(v.path): torch.tensor(to_torch(v.numpy()))
        for v in model.variables
    }
    network.load_state_dict(weights, strict=True)
