"""DSB in a loop of PyTorch: features go in as NumPy, class weights come out. Digits with a long tail.

pip install torch && python launch/examples/pytorch_loop.py
"""

import jax
import numpy as np
import torch
from sklearn.datasets import load_digits

import dsb_jax
from dsb_jax.data import long_tail

BATCH, STEPS = 64, 300


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.last = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)

    def forward(self, images):
        features = torch.relu(self.hidden(images))
        return features, self.last(features)


def main() -> float:
    """The accuracy on test images."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16.0, dtype=torch.float32)
    rows = long_tail.subset(labels[:1297], long_tail.exponential_counts(100, 10, imbalance=20), seed=0)
    network, order = Network(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    balancer = dsb_jax.balancers.semantic_scale(10, capacity=384, batch_size=BATCH)
    update, pool = jax.jit(balancer.update, donate_argnums=0), balancer.init()
    for _ in range(STEPS):
        chosen = order.choice(rows, BATCH, replace=False)
        targets = torch.tensor(labels[chosen])
        features, logits = network(images[chosen])
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        weights, pool = update(pool, features.detach().numpy(), labels[chosen].astype(np.int32))
        loss = torch.mean(torch.tensor(np.asarray(weights))[targets] * losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        predicted = network(images[1297:])[1].argmax(dim=1).numpy()
    return float(np.mean(predicted == labels[1297:]))


if __name__ == "__main__":
    print(f"test accuracy {main():.3f}")
