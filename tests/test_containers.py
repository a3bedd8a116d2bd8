"""The recipes of containers: what they copy exists, what they install is pinned, and both do the same."""

import configparser
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKER = (ROOT / "Dockerfile").read_text(encoding="utf-8")
APPTAINER = (ROOT / "containers/monai-lcs.def").read_text(encoding="utf-8")
PINS = dict(
    line.split("==")
    for line in (ROOT / "containers/constraints.txt").read_text(encoding="utf-8").split("\n")
    if "==" in line
)


def copied():
    """The files that each recipe copies."""
    by_docker = [word for line in re.findall(r"^COPY (.*)$", DOCKER, re.M) for word in line.split()[:-1]]
    section = APPTAINER[APPTAINER.index("%files") : APPTAINER.index("%post")]
    return by_docker, re.findall(r"^ +(\S+) /", section, re.M)


def installed(recipe):
    """The base image, and the words of each `pip install`."""
    image = re.search(r"^(?:FROM|From:) (.*)$", recipe, re.M)[1]
    return image, [line.split("&&")[0].split() for line in re.findall(r"pip install (.*)$", recipe, re.M)]


def test_both_copy_the_same_files_and_these_exist():
    by_docker, by_apptainer = copied()
    assert by_docker == by_apptainer
    assert all((ROOT / name).exists() for name in by_docker)
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    ]
    assert sorted(kept) == sorted(by_docker)


def test_both_install_the_same():
    assert installed(DOCKER) == installed(APPTAINER)


def test_pytorch_is_that_of_the_makefile():
    (torch, *_), _ = installed(DOCKER)[1]
    assert torch == re.search(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    assert torch == f"torch=={PINS['torch']}"


@pytest.mark.parametrize("part", ["install_requires", "atlases", "bundle"])
def test_what_the_package_requires_is_pinned(part):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    section = config["options" if part == "install_requires" else "options.extras_require"]
    names = {re.split(r"[\[<>=]", line)[0].replace("-", "_").lower() for line in section[part].split()}
    names |= {"pytorch_ignite"} if part == "bundle" else set()
    assert names <= {name.replace("-", "_").lower() for name in PINS}


def test_the_package_is_all_there_is_to_copy():
    """No file that setup.cfg or setup.py read is left out."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    meta = config["metadata"]
    read = {meta["long_description"].removeprefix("file:").strip(), *meta["license_files"].split()}
    assert read <= {name for name in copied()[0] if not fnmatch(name, "*/*")}
