"""The same pipeline with label conditioned segmentation: one output channel, any number of labels.

python spleen_lcs.py Task09_Spleen, a folder of the Medical Segmentation Decathlon, with imagesTr/ and labelsTr/.
"""

import argparse
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.transforms import (
    AsDiscrete,
    Compose,
    ConcatItemsd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    Spacingd,
)

from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.transforms import AddAtlasd, AlignAtlasd, RandSelectLabelsd

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("task", type=Path, help="folder with imagesTr/ and labelsTr/")
parser.add_argument("--labels", type=int, default=1, help="labels 1, 2 ... of the label maps")
parser.add_argument("--validation", type=int, default=9, help="how many of the last cases are for validation")
parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 2.0), help="voxel size in mm")
parser.add_argument("--roi", type=int, nargs=3, default=(96, 96, 96), help="size of a patch in voxels")
parser.add_argument("--epochs", type=int, default=600)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()

images = sorted((args.task / "imagesTr").glob("[!.]*.nii.gz"))
files = [{"image": str(image), "label": str(args.task / "labelsTr" / image.name)} for image in images]
scans, maps = ["image", "atlas_image"], ["label", "atlas_label"]
atlas, concatenate = files.pop(0), ConcatItemsd([*scans, "atlas_label"], name="image")
load = [
    AddAtlasd(atlas["image"], atlas["label"]),
    LoadImaged(scans + maps, ensure_channel_first=True),
    Orientationd(scans + maps, axcodes="RAS", labels=None),
    Spacingd(scans, pixdim=args.spacing),
    Spacingd(maps, pixdim=args.spacing, mode="nearest"),
    ScaleIntensityRanged(scans, a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
    AlignAtlasd("image", mode="affine"),
]
augment = [
    RandSelectLabelsd(maps, num_labels=4),
    RandCropByPosNegLabeld(scans + maps, label_key="label", spatial_size=args.roi, num_samples=4),
    RandShiftIntensityd(scans, offsets=0.1, prob=0.5),
    concatenate,
]
train_set = CacheDataset(files[: -args.validation], Compose(load + augment))
val_set = CacheDataset(files[-args.validation :], Compose([*load, concatenate]))

network = LabelConditionedUNet(channels=(16, 32, 64, 128), conditioning="multiscale", norm="instance", prior_logit=2)
loss_function = DiceLoss(sigmoid=True)
inferer = LabelSweepInferer(roi_size=args.roi)

network.to(args.device)
optimizer = torch.optim.Adam(network.parameters(), 1e-3)
for epoch in range(args.epochs):
    network.train()
    for batch in DataLoader(train_set, batch_size=1, shuffle=True):
        optimizer.zero_grad()
        loss = loss_function(network(batch["image"].to(args.device)), batch["label"].to(args.device))
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")

network.eval()
onehot = AsDiscrete(to_onehot=1 + args.labels)
dice = DiceMetric(include_background=False, reduction="mean_batch")
for batch in DataLoader(val_set):
    with torch.no_grad():
        label_map = inferer(batch["image"].to(args.device), network)
    dice(y_pred=[onehot(label_map[0])], y=[onehot(batch["label"][0].to(args.device))])
print("Dice:", *(f"{value:.3f}" for value in dice.aggregate().tolist()))
