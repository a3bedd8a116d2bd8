"""Scan in, segmentation out: settings, preprocessing, the segmenter and the training. Every surface is a door to it."""

from monai_lcs.pipeline.best_model import BestModel
from monai_lcs.pipeline.further_atlases import (
    describe_other_labels,
    describe_untrained_fusion,
    read_further_atlases,
)
from monai_lcs.pipeline.handlers import ClipGradient, SeedEpochs
from monai_lcs.pipeline.prepared_dataset import PreparedDataset
from monai_lcs.pipeline.preprocessing import AlignedAtlas, Preprocessing, Scan, ToNatived, to_native
from monai_lcs.pipeline.random_atlas import AtlasPool
from monai_lcs.pipeline.ranks import MeanLoss
from monai_lcs.pipeline.run_definition import RunDefinition
from monai_lcs.pipeline.segmenter import Segmenter
from monai_lcs.pipeline.settings import Settings, make_network, on_device
from monai_lcs.pipeline.trainer import train
from monai_lcs.pipeline.weights import (
    bundle_folder,
    check_trained_for,
    describe_weights,
    join_weights,
    load_weights,
    shipped_weights,
)

__all__ = [
    "AlignedAtlas",
    "AtlasPool",
    "BestModel",
    "ClipGradient",
    "MeanLoss",
    "Preprocessing",
    "PreparedDataset",
    "RunDefinition",
    "Scan",
    "SeedEpochs",
    "Segmenter",
    "Settings",
    "ToNatived",
    "bundle_folder",
    "check_trained_for",
    "describe_other_labels",
    "describe_untrained_fusion",
    "describe_weights",
    "join_weights",
    "load_weights",
    "make_network",
    "on_device",
    "read_further_atlases",
    "shipped_weights",
    "to_native",
    "train",
]
