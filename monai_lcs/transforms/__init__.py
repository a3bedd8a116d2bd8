"""Transforms: which labels are asked for, and where the atlas lies on the image."""

import monai_lcs.study.images  # noqa: F401  registers the reader of FreeSurfer's files with MONAI
from monai_lcs.atlas.fusion import fuse_atlases
from monai_lcs.labels.groups import LabelGroup, as_groups, label_mask, present_labels
from monai_lcs.transforms.align import AlignAtlas, AlignAtlasD, AlignAtlasd, AlignAtlasDict
from monai_lcs.transforms.atlas_pool import (
    AddAtlasD,
    AddAtlasd,
    AddAtlasDict,
    RandDrawAtlasD,
    RandDrawAtlasd,
    RandDrawAtlasDict,
    RandPickAtlas,
    RandPickAtlasD,
    RandPickAtlasd,
    RandPickAtlasDict,
)
from monai_lcs.transforms.deform import RandDeformD, RandDeformd, RandDeformDict
from monai_lcs.transforms.fuse import FuseAtlasesD, FuseAtlasesd, FuseAtlasesDict
from monai_lcs.transforms.labels import (
    MapLabels,
    MapLabelsD,
    MapLabelsd,
    MapLabelsDict,
    SelectLabels,
    SelectLabelsD,
    SelectLabelsd,
    SelectLabelsDict,
)
from monai_lcs.transforms.random_labels import (
    RandSelectLabels,
    RandSelectLabelsD,
    RandSelectLabelsd,
    RandSelectLabelsDict,
)
from monai_lcs.transforms.save import (
    SaveSegmentation,
    SaveSegmentationD,
    SaveSegmentationd,
    SaveSegmentationDict,
)

__all__ = [
    "AddAtlasD",
    "AddAtlasDict",
    "AddAtlasd",
    "AlignAtlas",
    "AlignAtlasD",
    "AlignAtlasDict",
    "AlignAtlasd",
    "FuseAtlasesD",
    "FuseAtlasesDict",
    "FuseAtlasesd",
    "LabelGroup",
    "MapLabels",
    "MapLabelsD",
    "MapLabelsDict",
    "MapLabelsd",
    "RandDeformD",
    "RandDeformDict",
    "RandDeformd",
    "RandDrawAtlasD",
    "RandDrawAtlasDict",
    "RandDrawAtlasd",
    "RandPickAtlas",
    "RandPickAtlasD",
    "RandPickAtlasDict",
    "RandPickAtlasd",
    "RandSelectLabels",
    "RandSelectLabelsD",
    "RandSelectLabelsDict",
    "RandSelectLabelsd",
    "SaveSegmentation",
    "SaveSegmentationD",
    "SaveSegmentationDict",
    "SaveSegmentationd",
    "SelectLabels",
    "SelectLabelsD",
    "SelectLabelsDict",
    "SelectLabelsd",
    "as_groups",
    "fuse_atlases",
    "label_mask",
    "present_labels",
]
