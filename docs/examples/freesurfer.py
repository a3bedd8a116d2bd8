"""A subject that FreeSurfer has processed as the atlas: its aparc+aseg is carried to other scans, in minutes not hours.

python freesurfer.py $SUBJECTS_DIR/bert $FREESURFER_HOME/FreeSurferColorLUT.txt scan.nii.gz -o results

The scan may be of anyone, in any orientation. Neither has the skull (mri/brain.mgz); with --with-skull both have it
(mri/T1.mgz), which the shipped weights were not trained on. `--weights none` carries the labels by alignment alone.
"""

import argparse
from pathlib import Path

import monai_lcs as lcs


def freesurfer_atlas(subject, table, with_skull=False):
    """The atlas of a subject's folder; `table` is FreeSurferColorLUT.txt, which names far more labels."""
    mri = Path(subject) / "mri"
    return lcs.Atlas.read(mri / ("T1.mgz" if with_skull else "brain.mgz"), mri / "aparc+aseg.mgz", table)


def main(arguments=None):
    """Segment scans by a subject of FreeSurfer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", help="folder of a subject")
    parser.add_argument("table", help="FreeSurferColorLUT.txt")
    parser.add_argument("scans", nargs="+", help="files that nibabel or ITK reads, such as other subjects' brain.mgz")
    parser.add_argument("-o", "--out", default="results")
    parser.add_argument("--with-skull", action="store_true", help="both subject and scans have the skull")
    parser.add_argument("--weights", default="permissive", help="permissive, none, or a file")
    parser.add_argument("--labels", nargs="+", help='such as "*Hippocampus" "ctx-lh-*"; all by default')
    args = parser.parse_args(arguments)
    atlas = freesurfer_atlas(args.subject, args.table, args.with_skull)
    weights = {"none": None, "permissive": lcs.shipped_weights()}.get(args.weights, args.weights)
    segmenter = lcs.Segmenter.load(weights, atlas)
    for scan in args.scans:
        result = segmenter(scan, labels=args.labels)
        print(result, *result.save(args.out).values(), sep="\n  ")


if __name__ == "__main__":
    main()
