"""The bundle's metadata: MONAI's schema, the labels of the sample atlas, and a network that keeps its word."""

import json
import re
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import verify_net_in_out

import monai_lcs
import monai_lcs.bundle
from monai_lcs.atlas import AlignmentCache
from monai_lcs.labels import LabelTable
from monai_lcs.sample_data import _load_sources

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles/whole_brain_lcs_segmentation"
FILE = BUNDLE / "configs/metadata.json"

# What meta_schema_20240725.json requires, and the type of all it knows; the schema itself needs a download.
REQUIRED = {
    **dict.fromkeys(("schema", "version", "monai_version", "pytorch_version", "numpy_version"), str),
    **dict.fromkeys(("task", "description", "authors", "copyright"), str),
    **dict.fromkeys(("required_packages_version", "network_data_format"), dict),
}
OPTIONAL = {
    **dict.fromkeys(
        ("data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use"), str
    ),
    **dict.fromkeys(("changelog", "eval_metrics", "supported_apps"), dict),
    "references": list,
    "name": str,  # the model zoo's display name
}
TENSOR = {
    **dict.fromkeys(("type", "format", "dtype"), str),
    "num_channels": int,
    "spatial_shape": list,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}


@pytest.fixture(scope="module")
def metadata():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table():
    return _load_sources()[2]


def test_has_what_the_schema_requires(metadata):
    assert metadata["schema"].endswith("/meta_schema_20240725.json")
    assert REQUIRED.keys() <= metadata.keys() <= REQUIRED.keys() | OPTIONAL.keys()
    for key, value in metadata.items():
        assert isinstance(value, (REQUIRED | OPTIONAL)[key]), key
    assert all(isinstance(text, str) for text in metadata["references"])


def test_tensors_have_what_the_schema_requires(metadata):
    formats = metadata["network_data_format"]
    assert formats.keys() == {"inputs", "outputs"}
    for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        assert TENSOR.keys() <= tensor.keys() <= TENSOR.keys() | {"modality"}
        for key, kind in TENSOR.items():
            assert type(tensor[key]) is kind, key
        assert all(isinstance(size, str | int) for size in tensor["spatial_shape"])
    image = formats["inputs"]["image"]
    assert list(image["channel_def"]) == [str(i) for i in range(image["num_channels"])]


def test_versions_agree_with_the_package(metadata):
    assert metadata["version"] in metadata["changelog"]
    assert metadata["required_packages_version"]["monai-lcs"] == monai_lcs.__version__


def test_labels_are_those_of_the_sample_atlas(metadata, table):
    formats = metadata["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == table.channel_def(), (
        f"Write LabelTable.channel_def() of the sample atlas into {FILE}."
    )
    for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        assert tensor["value_range"] == [0, max(table.ids)]


def test_label_table_reads_the_metadata(table):
    read = LabelTable.read(FILE)
    assert (read.ids, read.names) == (table.ids, table.names)


VERIFY = {
    "net_id": "network_def",
    "meta_file": str(FILE),
    "config_file": str(BUNDLE / "configs/inference.json"),
    "device": "cpu",
    "channels": [4, 8, 8, 8],
}


def test_configs_call_what_the_package_exports_for_them_and_nothing_is_exported_in_vain():
    texts = [path.read_text(encoding="utf-8") for path in (BUNDLE / "configs").glob("*.json")]
    called = {name for text in texts for name in re.findall(r"\b(?:lcs|monai_lcs\.bundle)\.(\w+)", text)}
    assert called == set(monai_lcs.bundle.__all__)


@pytest.mark.parametrize("size", [16, 19])
def test_network_keeps_its_word(size):
    verify_net_in_out(**VERIFY, n=1, p=2, any=size)


def test_another_number_of_channels_is_noticed():
    two = {"_meta_#network_data_format#outputs#pred#num_channels": 2}
    with pytest.raises(ValueError, match=r"output channel number `1` doesn't match: `2`"):
        verify_net_in_out(**VERIFY, any=16, **two)


def test_license_is_the_repository_s():
    assert (BUNDLE / "LICENSE").read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_bfloat16_on_a_cpu_without_the_instructions(monkeypatch, recwarn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monai_lcs.bundle.check_bfloat16(True, "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monai_lcs.bundle.check_bfloat16(False, "cpu")
    monai_lcs.bundle.check_bfloat16(True, "cuda:0")
    assert not recwarn
    with pytest.warns(UserWarning, match="AMX"):
        monai_lcs.bundle.check_bfloat16(True, "cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monai_lcs.bundle.check_bfloat16(True, "cpu")  # an older PyTorch does not tell


@pytest.mark.parametrize("config", ["train", "inference"])
def test_flags_and_paths_are_what_was_typed(config, monkeypatch):
    """All that a config checks of the command line is there; the word ``false`` is true, and ``#`` begins a comment."""
    content = json.loads((BUNDLE / f"configs/{config}.json").read_text(encoding="utf-8"))
    said = "".join(content["initialize"])
    flags = {name for name, value in content.items() if isinstance(value, bool)} - {"up_activation", "soft_masks"}
    paths = {name for name in content if name.endswith("_dir") or name in ("checkpoint", "pretrained", "present")}
    for name in flags | (paths - {"dataset_dir"}):
        assert f"{name}=@{name}" in said, name
    with pytest.raises(SystemExit, match="--overwrite takes True or False, got 'false'"):
        monai_lcs.bundle.check_flags(overwrite="false")
    typed = ["run", "--output_dir", "run#2", "--ckpt_dir", "@output_dir"]
    monkeypatch.setattr("sys.argv", ["my_script.py", *typed])  # whose words are not the bundle's
    monai_lcs.bundle.check_paths(output_dir="run", ckpt_dir="run")
    monkeypatch.setattr("sys.argv", [str(Path(monai.bundle.__file__).parent / "__main__.py"), *typed])
    monai_lcs.bundle.check_paths(ckpt_dir="run")
    with pytest.raises(SystemExit, match="quote it twice"):
        monai_lcs.bundle.check_paths(output_dir="run", checkpoint="")
    with pytest.raises(SystemExit, match="must be a path, got 20240115"):
        monai_lcs.bundle.check_paths(ckpt_dir=20240115)
    monai_lcs.bundle.check_paths(cache_dir=AlignmentCache(), ckpt_dir=Path("run"))  # of Python
