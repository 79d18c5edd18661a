"""A student of your own: PYTHONPATH=docs/examples mtkd-cache train-student --arch own_student:small"""

from torch import nn


def small(anatomies: int) -> nn.Module:
    """Maps images (B, 3, H, W) to logits (B, anatomies, H/4, W/4); the library upsamples them."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Conv2d(64, anatomies, 1),
    )
    network.normalization = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # optional: mean and std of R, G, B in [0, 1]
    network.multiple = 4  # optional: other images are padded to sides that are multiples of it
    return network
