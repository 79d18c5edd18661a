"""Cached distillation in a PyTorch training loop of your own; what it adds to a plain loop is marked with `mc.`.

python docs/examples/own_loop.py data/demo/samples.zarr data/demo/logits.zarr
"""

import sys

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader

import mtkd_cache as mc

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def own_network(anatomies: int) -> nn.Module:
    """Any network will do that maps images (B, 3, H, W) in [0, 1] to logits (B, anatomies, H, W)."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, anatomies, 3, padding=1))


def train(store_url: str, cache_url: str, epochs: int = 3, workers: int = 2) -> list[float]:
    """Train `own_network` and return the mean loss of each epoch."""
    store, cache = mc.SampleStore.open(store_url), mc.LogitCache.open(cache_url)
    dataset = mc.CachedDistillationDataset(store, cache, augmentation=mc.load_recipe("paper").augmentation)
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers)
    network = own_network(len(store.anatomies)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    history = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)  # every epoch has views of its own
        total = 0.0
        for stored in loader:
            batch = send_to_device(stored, device)
            images, masks, valid = mc.apply_views(batch["image"], batch["mask"], batch["view"])
            teachers = cache.warp(batch["logits"], batch["logits_affine"], masks.shape[1:])  # upsampled, in the same view
            students = network(images)
            supervised = mc.exclusive_cross_entropy(students, masks, batch["anatomy"], valid)
            loss = supervised + 3.0 * mc.channelwise_kl(students, teachers, temperature=4.0, valid=valid)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        history.append(total / len(loader))
        print(f"epoch {epoch}: loss {history[-1]:.4f}")
    return history


if __name__ == "__main__":
    train(*sys.argv[1:3])
