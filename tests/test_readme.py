"""What README.md and docs say is true: Python blocks run, commands are understood, overrides and modules exist."""

import argparse
import ast
import functools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import save_nifti

import monai_lcs as lcs
from monai_lcs import cli
from monai_lcs.atlas import NAMED_ATLASES
from monai_lcs.pipeline import bundle_folder, make_network

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BUNDLE_README = (bundle_folder() / "docs/README.md").read_text()
CONFIGS = {path.stem: json.loads(path.read_text()) for path in (bundle_folder() / "configs").glob("*.json")}
KEYS = set().union(*(CONFIGS[name] for name in ("train", "inference", "evaluate")))

MM = 4.0
SHAPE = (24, 26, 22)
AFFINE = np.array([[MM, 0, 0, -48], [0, MM, 0, -52], [0, 0, MM, -44], [0, 0, 0, 1]])
BLOBS = {  # center and radii in mm, brightness
    "Left-Hippocampus": ((-20, 12, 2), (10, 14, 10), 0.9),
    "Left-Amygdala": ((-18, -16, 4), (9, 9, 9), 0.6),
    "Right-Caudate": ((16, 8, 6), (9, 12, 12), 0.7),
}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def volume(shift=(0, 0, 0)):
    """A head with three blobs, moved by some mm."""
    xyz = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3] + AFFINE[:3, 3] - shift
    image = 20.0 * (((xyz / (40, 46, 38)) ** 2).sum(-1) < 1)
    labels = np.zeros(SHAPE, np.int16)
    for label, (center, radii, brightness) in enumerate(BLOBS.values(), 1):
        inside = (((xyz - center) / radii) ** 2).sum(-1) < 1
        image[inside], labels[inside] = 100 * brightness, label
    return image.astype(np.float32), labels


def test_defaults_of_the_overrides_are_those_of_the_configs():
    settings, checked = lcs.Settings().to_dict(), []
    for row in re.findall(r"^\| (`--.*) \|$", README, re.M):
        options, defaults = (
            re.findall(pattern, cell)
            for pattern, cell in zip((r"`--(\w+)", "`([^`]+)`"), row.split(" | "), strict=False)
        )
        if len(options) != len(defaults):
            continue  # paths, or words
        for name, text in zip(options, defaults, strict=True):
            value = next((CONFIGS[kind][name] for kind in ("train", "inference") if name in CONFIGS[kind]), None)
            value = settings.get(name, value)
            if isinstance(value, bool | int | float | list):
                assert ast.literal_eval(text) == value, name
                checked.append(name)
    assert {"labels_per_image", "learning_rate", "epochs", "spacing", "upsample", "strict"} <= set(checked)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the README names, in the current folder; its training takes one epoch."""
    monkeypatch.chdir(tmp_path)
    for i, case in enumerate(("ann", "bob", "cat", "dan", "eve")):
        image, labels = volume((i - 2, 0, 2 - i))
        save_nifti(image, Path(f"study/images/{case}.nii.gz"), AFFINE)
        save_nifti(labels, Path(f"study/labels/{case}.nii.gz"), AFFINE)
    save_nifti(image, Path("scan.nii.gz"), AFFINE)
    image, labels = volume()
    for folder in (Path("."), Path("atlas")):
        save_nifti(image, folder / "T1w.nii.gz", AFFINE)
        save_nifti(labels, folder / "dseg.nii.gz", AFFINE)
        rows = [f"{id}\t{name}\n" for id, name in enumerate(BLOBS, 1)]
        (folder / "dseg.tsv").write_text("index\tname\n" + "".join(rows))
    settings = lcs.Settings(align="none", spacing=(MM,) * 3, channels=(4, 8))
    torch.manual_seed(0)
    torch.save(make_network(settings).state_dict(), "model.pt")
    settings.write("model.json")
    quick = functools.partial(lcs.train, settings=settings, epochs=1, labels_per_image=2, device="cpu")
    monkeypatch.setattr(lcs, "train", quick, raising=False)
    return tmp_path


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split()[1])
def test_python_blocks(files, block):
    found = {}
    exec(compile(block, "README.md", "exec"), found)
    if "segmenter" in found:
        names = ["Left-Hippocampus + Left-Amygdala", "Right-Caudate"]
        assert list(found["result"].volumes["name"]) == names
        assert list(found["result"].volumes.columns) == ["id", "name", "voxels", "mm3"]
        assert found["result"].label_map.shape == (1, *SHAPE)
        assert (files / "results/scan_dseg.nii.gz").is_file()
        assert (files / "model/model.pt").is_file()
    elif "sample" in found:
        assert found["sample"]["image"].shape == (2 + 16, *SHAPE)
        assert found["sample"]["label"].shape == (16, *SHAPE)
    else:
        assert found["label_map"].shape == found["atlas_labels"][None].shape
        assert set(found["label_map"].unique().tolist()) <= set(range(6))
        assert found["logits"].shape == (1, 4, *found["image"].shape[2:])


def shell_lines():
    """The commands of the bash blocks, one a line, with the values of their variables."""
    variables = {}
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            name, is_assignment, value = line.partition("=")
            if is_assignment and name.isidentifier():
                variables[name] = value.strip('"')
                continue
            yield functools.reduce(lambda text, name: text.replace(f"${name}", variables[name]), variables, line)


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("monai-lcs ")])
def test_commands_are_understood(line):
    options = cli._parser().parse_args(shlex.split(line, comments=True)[1:])
    assert isinstance(options, argparse.Namespace)
    if "atlas" in options:
        assert len(options.atlas) == 3 or options.atlas[0] in NAMED_ATLASES


@pytest.mark.parametrize("text", [README, BUNDLE_README], ids=["README", "bundle"])
def test_overrides_are_keys_of_the_configs(text):
    others = {"bundle_root", "config_file", "meta_file", "n", "p", "any"}  # of `python -m monai.bundle`
    others |= {"standalone", "nproc_per_node"}  # of torchrun
    others |= {"atlas", "weights", "set", "table"}  # of monai-lcs
    others |= {"no"}  # of pip: --no-deps
    others |= {"subjects"}  # of monai_lcs.sample_data
    named = set(re.findall(r"(?<![\w-])--(\w+)", text))
    assert len(named) > 15
    assert named - others <= KEYS


def table_of_overrides():
    """What the table says is the default of each key."""
    for row in re.findall(r"^\| (`--.*?) \| (.*?) \| .* \|$", README, re.M):
        keys, defaults = re.findall(r"--(\w+)", row[0]), re.findall(r"`(.*?)`", row[1])
        if len(keys) == len(defaults):
            yield from zip(keys, defaults, strict=True)


@pytest.mark.parametrize(("key", "default"), [each for each in table_of_overrides() if "/" not in each[1]])
def test_defaults_of_the_table(key, default):
    settings = lcs.Settings().to_dict()
    actual = settings.get(key, CONFIGS["train"].get(key, CONFIGS["inference"].get(key)))
    assert str(actual) == default or actual == ast.literal_eval(default)


@pytest.mark.parametrize("text", [README, BUNDLE_README], ids=["README", "bundle"])
def test_modules_that_are_run_exist(text):
    for name in set(re.findall(r"-m (monai_lcs[\w.]*)", text)):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def layers():
    """The rows of the table in docs/architecture.md: the modules and folders of each."""
    text = (ROOT / "docs/architecture.md").read_text()
    table = text[text.index("| `monai_lcs/`") : text.index("## Where to change")]
    return [re.findall(r"`(\w+)(?:\.py|/)`", row.split("|")[1]) for row in table.splitlines()[2:] if row[:1] == "|"]


def modules_imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "monai_lcs":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("monai_lcs."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("monai_lcs."))


def test_imports_go_one_way():
    rank = {name: i for i, row in enumerate(layers()) for name in row}
    entrances = {"__init__", "__main__"}
    found = {path.stem if path.is_file() else path.name for path in (ROOT / "monai_lcs").iterdir()}
    assert rank.keys() == found - entrances - {"__pycache__", "py"} - {"py.typed"}
    for name in rank:
        folder = ROOT / "monai_lcs" / name
        for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
            for other in set(modules_imported_by(path)) - {name, "__version__"}:
                assert rank[other] <= rank[name], f"{path} imports {other}"


def test_files_named_in_the_documents():
    text = (ROOT / "docs/architecture.md").read_text()
    for name in re.findall(r"`([a-z_]+/[\w/]*\.py)`", text):
        assert (ROOT / "monai_lcs" / name).is_file(), name
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
