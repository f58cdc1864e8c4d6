"""What training minimises: cross entropy, in which each image counts by the weight of its class."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from oncequant.data import Data


@dataclass(frozen=True, eq=False)
class Loss:
    """Cross entropy, mean over the images of a batch.

    With `class_weights` the loss of an image is multiplied by the weight of its class, whatever it is compared with:
    its label or a teacher's soft answers. So subnets that are distilled learn for the same purpose as their teacher.
    The weights of the images of a batch are not divided by their sum: processes that share a batch would divide by
    different ones. torch's own class weights also multiply what label smoothing gives to other classes; then a rare
    class with a large weight would be the answer to every image. Here they do not.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    """(classes,), float32, on the device of the images; None: each image counts 1."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (N, classes) and labels (N,), 0-dim."""
        return self._mean(logits, labels, labels, self.label_smoothing)

    def taught(self, logits: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        """Of logits and a teacher's probabilities, both (N, classes), 0-dim; `labels` (N,) for the weights."""
        return self._mean(logits, answers, labels, 0.0)

    def _mean(self, logits: Tensor, target: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        if self.class_weights is None:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        return (losses * self.class_weights[labels]).mean()


UNWEIGHTED = Loss()


def balanced_weights(data: Data) -> Tensor:
    """By class, training images / (classes x training images of it), float32 (classes,), on the device: all classes
    count alike in an epoch, and the mean weight of an image is 1."""
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    return (len(data.train) / (len(data.classes) * counts.clamp(min=1))).float().to(data.device)
