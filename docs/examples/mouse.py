"""A mouse brain, with any atlas of it, as if it were ten times larger: the registration knows sizes of human brains.

python mouse.py template.nii.gz labels.nii.gz labels.csv scan.nii.gz -o results
python mouse.py template.nii.gz labels.nii.gz labels.csv scan.nii.gz -o results --train study

The scan is a brain, cut out or masked as the atlas is, and of the same contrast. No weights for mice ship: without
--train the labels are carried over by alignment alone. `study` holds images/ and labels/ of labeled scans.
Results are on the scan's own grid, and volumes in its own mm3.
"""

import argparse
from pathlib import Path

import nibabel as nib

import monai_lcs as lcs
from monai_lcs.study.checks import read_scan

TIMES = 10


def enlarged(path, folder):
    """A copy of an image whose header says that it is larger; voxels stay as they are."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3] *= TIMES
    copy = Path(folder) / Path(path).name
    copy.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.dataobj, affine), copy)
    return copy


def train(study, atlas, out, epochs):
    """Train on the enlarged scans of a study; returns the weights."""
    for part in ("images", "labels"):
        for path in sorted((Path(study) / part).iterdir()):
            enlarged(path, out / "study" / part)
    return lcs.train(out / "study", atlas, out / "model", epochs=epochs)


def segment(segmenter, scan, folder):
    """Segment the enlarged scan; the segmentation of the scan itself."""
    result, original = segmenter(enlarged(scan, folder)), read_scan(scan)
    label_map = result.label_map.clone()
    label_map.affine = original.affine
    return lcs.Segmentation(label_map, original, result.table, result.quality)


def main(arguments=None):
    """Segment scans of mice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="atlas image")
    parser.add_argument("labels", help="atlas label map; ids below 16777216")
    parser.add_argument("table", help="label table: CSV with id and name, or another format of `monai-lcs labels`")
    parser.add_argument("scans", nargs="+", help="NIfTI files")
    parser.add_argument("-o", "--out", type=Path, default=Path("results"))
    parser.add_argument("--train", metavar="STUDY", help="folder with images/ and labels/ to train on first")
    parser.add_argument("--epochs", type=int, default=300)
    args = parser.parse_args(arguments)
    larger = args.out / "enlarged"
    atlas = lcs.Atlas.read(enlarged(args.image, larger), enlarged(args.labels, larger), args.table)
    weights = train(args.train, atlas, larger, args.epochs) if args.train else None
    segmenter = lcs.Segmenter.load(weights, atlas)
    for scan in args.scans:
        result = segment(segmenter, scan, larger / "scans")
        print(result, *result.save(args.out).values(), sep="\n  ")


if __name__ == "__main__":
    main()
