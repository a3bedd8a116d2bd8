"""The sweep with a network of your own: any network of one tensor, here MONAI's SegResNet.

Its input has three channels: the scan, the aligned atlas image and the atlas mask of one label. Its output has one:
the logits of this label. Nothing in it knows how many labels there are.
"""

import torch
from monai.losses import DiceLoss
from monai.networks.nets import SegResNet

from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.transforms import RandSelectLabels


def train(network, samples, steps=100, labels_a_step=4):
    """Train with random labels; a sample is (scan, label map, atlas image, atlas label map), each (1, *spatial)."""
    draw = RandSelectLabels(num_labels=labels_a_step)
    optimizer, loss_function = torch.optim.Adam(network.parameters(), 1e-3), DiceLoss(sigmoid=True)
    for step in range(steps):
        scan, label_map, atlas_image, atlas_labels = samples[step % len(samples)]
        targets, masks = draw(label_map, atlas_labels)  # (K, *spatial), the same K labels in both
        volumes = torch.cat([scan, atlas_image])
        inputs = torch.stack([torch.cat([volumes, mask[None]]) for mask in masks])  # the batch is the labels
        optimizer.zero_grad()
        loss_function(network(inputs), targets[:, None]).backward()
        optimizer.step()


def segment(network, scan, atlas_image, atlas_labels, labels=None):
    """Segment labels or unions, such as [3, (1, 2)]; all by default. Returns ids, (1, *spatial)."""
    inferer = LabelSweepInferer(labels=labels, roi_size=(96, 96, 96), margin_mm=10)
    with torch.no_grad():
        return inferer(torch.cat([scan, atlas_image, atlas_labels])[None], network.eval())[0]


if __name__ == "__main__":
    network = SegResNet(spatial_dims=3, init_filters=8, in_channels=3, out_channels=1)
    scan, atlas_image = torch.rand(2, 1, 24, 24, 24)  # in place of data: noise with two cubes
    atlas_labels = torch.zeros(1, 24, 24, 24)
    atlas_labels[:, 3:9, 6:12, 6:12], atlas_labels[:, 12:20, 8:16, 8:16] = 1, 2
    label_map = atlas_labels.roll((1, 2), dims=(1, 3))
    train(network, [(scan + label_map, label_map, atlas_image + atlas_labels, atlas_labels)], steps=3)
    print(segment(network, scan + label_map, atlas_image + atlas_labels, atlas_labels).unique())
