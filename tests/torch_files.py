"""Writes networks of PyTorch's, their images and their outputs.

Run as a program, beside which no TensorFlow is: torch_files.py KIND DIRECTORY
"""

import os
import pathlib
import sys

import numpy as np


def main(kind, directory):
    """Writes what one kind of file and network needs."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    directory = pathlib.Path(directory)
    if kind == "hostile":
        torch.save(Hostile(directory / "was_here"), directory / "hostile.pth")
        torch.save({"lr": 0.1}, directory / "nothing.pth")
        both = {"model": {"a.weight": torch.ones(2)}}
        both["ema"] = both["model"]
        torch.save(both, directory / "both.pth")
        return
    network = {"fixup": fixup, "resnet": resnet}[kind]()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.2)
    network.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        outputs = network(images)
    np.savez(
        directory / "expected.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        outputs=outputs.numpy(),
    )
    state = network.state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save(state, directory / "plain.pth")
    torch.save({"epoch": 3, "state_dict": wrapped}, directory / "wrapped.pth")
    torch.save(
        state, directory / "old.pth", _use_new_zipfile_serialization=False
    )
    import safetensors.torch

    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in state.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )


class Hostile:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def fixup():
    """The published Fixup ResNet, small."""
    from torch_fixup import torch_network

    return torch_network("imagenet", 3, (64, 128, 256, 512), (2,) * 4, 2, 7)


def resnet():
    """torchvision's ResNet of bottlenecks, narrow, in its names."""
    import torch
    from torch import nn

    def conv(before, after, size, step=1):
        return nn.Conv2d(before, after, size, step, size // 2, bias=False)

    class Bottleneck(nn.Module):
        def __init__(self, before, width, step):
            super().__init__()
            self.conv1, self.bn1 = conv(before, width, 1), nn.BatchNorm2d(width)
            self.conv2 = conv(width, width, 3, step)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = conv(width, 4 * width, 1)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.downsample = None
            if step > 1 or before != 4 * width:
                self.downsample = nn.Sequential(
                    conv(before, 4 * width, 1, step), nn.BatchNorm2d(4 * width)
                )

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return torch.relu(
                y + (x if self.downsample is None else self.downsample(x))
            )

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(8)
            self.layer1 = nn.Sequential(
                Bottleneck(8, 64, 1), Bottleneck(256, 64, 1)
            )
            self.layer2 = nn.Sequential(
                Bottleneck(256, 96, 2), Bottleneck(384, 96, 1)
            )
            self.fc = nn.Linear(384, 7)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = nn.functional.max_pool2d(x, 3, 2, 1)
            x = self.layer2(self.layer1(x))
            return self.fc(x.mean((2, 3)))

    return ResNet()


if __name__ == "__main__":
    main(*sys.argv[1:])
