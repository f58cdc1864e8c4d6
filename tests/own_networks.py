"""Small networks as users write them, without oncequant."""

import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU6):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class Inverted(nn.Module):
    """An inverted residual with squeeze-and-excite."""

    def __init__(self, width, act=nn.ReLU6):
        super().__init__()
        self.expand, self.deep = (
            conv(width, 2 * width, 1, act=act),
            conv(2 * width, 2 * width, groups=2 * width, act=act),
        )
        self.reduce, self.excite = nn.Conv2d(2 * width, 8, 1), nn.Conv2d(8, 2 * width, 1)
        self.project = conv(2 * width, width, 1, act=None)

    def forward(self, x):
        y = self.deep(self.expand(x))
        gate = torch.sigmoid(self.excite(F.relu(self.reduce(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(y * gate)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = conv(width, width, act=nn.ReLU), conv(width, width, act=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv2(self.conv1(x)) + x)


class Tiny(nn.Module):
    """Some of everything that C has kernels for."""

    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.stem = conv(channels, 8, act=nn.ReLU)
        self.blocks = nn.Sequential(Inverted(8, nn.SiLU), Residual(8), Inverted(8), Residual(8), Inverted(8))
        self.head = conv(8, 16, 1, 2)
        self.classifier = nn.Linear(16, classes)

    def forward(self, x):
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def tiny():
    return Tiny()


def tiny_in_colour():
    return Tiny(3)


def two_classes():
    return Tiny(classes=2), torch.zeros(1, 1, 8, 8)


class Join(nn.Module):
    def forward(self, x, y):
        return torch.cat([x, y], 1)


class Dense(nn.Module):
    """A concatenation, an average pooling and a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.join = conv(1, 8), conv(8, 8), Join()
        self.three, self.last = conv(16, 16, groups=4), nn.Linear(16, 10)

    def forward(self, x):
        x = self.one(x)
        x = F.avg_pool2d(self.join(x, self.two(x)), 2)
        return self.last(self.three(x).mean((2, 3)))


def dense():
    return Dense()


class AllConvolutions(nn.Module):
    """Ends with a pooling."""

    def __init__(self, padding):
        super().__init__()
        self.one, self.last = conv(1, 8, stride=2), nn.Conv2d(8, 10, 3, padding=padding)

    def forward(self, x):
        return F.relu(self.last(self.one(x))).mean((2, 3))


def all_convolutions():
    return AllConvolutions(padding=0)


def widely_padded():
    return AllConvolutions(padding=3)


def first_network():
    """As in many a tutorial: no padding, and linear layers behind a flattened map."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 20), nn.ReLU(), nn.Linear(20, 10)
    )


def with_gelu():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 10))
