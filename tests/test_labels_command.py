"""monai-lcs labels: shown, checked, compared and converted; and how light it is."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import save_nifti
from phantom import AFFINE, TABLE, make_volume

from monai_lcs import cli
from monai_lcs.labels import Label, LabelTable
from monai_lcs.labels.compare import table_problems

FORMATS = (".tsv", ".csv", ".txt", ".ctab", ".lut", ".ctbl", ".label", ".json")


@pytest.fixture
def files(tmp_path):
    save_nifti(make_volume()[1], tmp_path / "map.nii.gz", AFFINE)
    TABLE.write(tmp_path / "table.tsv")
    return tmp_path


def run(capsys, *words, status=0):
    assert cli.main(["labels", *map(str, words)]) == status
    return capsys.readouterr().out


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_every_format_to_every_format(first, second, files, capsys):
    run(capsys, files / "table.tsv", "--to", files / f"a{first}")
    run(capsys, files / f"a{first}", "--to", files / f"b{second}")
    back = LabelTable.read(files / f"b{second}")
    assert (back.ids, back.names) == (TABLE.ids, TABLE.names)
    assert [label.hemisphere for label in back] == ["L", None, "R"]  # of the names
    if ".json" not in (first, second):
        assert [label.color for label in back] == [label.color for label in TABLE]


def test_a_map_is_shown_with_volumes_and_named_by_its_table(files, capsys):
    counts = np.bincount(make_volume()[1].ravel())
    rows = [line.split("\t") for line in run(capsys, files / "map.nii.gz").splitlines()]
    assert rows == [[str(id), f"label-{id}", "", "", str(counts[id]), f"{counts[id] * 64}"] for id in (11, 16, 50)]
    table = LabelTable([*TABLE, Label(99, "nowhere")])
    table.write(files / "more.ctbl")
    assert "3 labels" in run(capsys, files / "map.nii.gz", files / "more.ctbl", "--to", files / "new.tsv")
    assert LabelTable.read(files / "new.tsv").names == TABLE.names
    assert "1 only in " + str(files / "more.ctbl") + ": 99 (nowhere)" in run(
        capsys, files / "map.nii.gz", files / "more.ctbl"
    )


def test_tables_are_compared(files, capsys):
    LabelTable([Label(11, "caudate"), Label(16, "Stem"), Label(17, "new")]).write(files / "other.csv")
    shown = run(capsys, files / "table.tsv", files / "other.csv").splitlines()
    assert shown == [
        "2 labels in both",
        f"1 only in {files / 'table.tsv'}: 50 (Right-Caudate)",
        f"1 only in {files / 'other.csv'}: 17 (new)",
        "1 named differently: 11 (Left-Caudate, caudate)",
    ]


def test_check(files, capsys):
    assert run(capsys, files / "table.tsv", "--check") == "Nothing is wrong.\n"
    assert run(capsys, files / "map.nii.gz", files / "table.tsv", "--check") == "Nothing is wrong.\n"
    swapped = [Label(11, "Right-Caudate", hemisphere="R"), Label(50, "Left-Caudate", hemisphere="L")]
    LabelTable(swapped).write(files / "swapped.tsv")
    shown = run(capsys, files / "map.nii.gz", files / "swapped.tsv", "--check", status=1)
    assert "Without a name: 16 (" in shown
    assert "labels of the left lie to the right" in shown
    flipped = np.diag([-1.0, 1, 1, 1]) @ AFFINE
    save_nifti(make_volume()[1], files / "flipped.nii.gz", flipped)
    shown = run(capsys, files / "flipped.nii.gz", files / "table.tsv", "--check", status=1)
    assert "labels of the left lie to the right" in shown


def test_problems_of_a_table():
    same = [Label(1, "x", hemisphere="L"), Label(2, "x", hemisphere="R"), Label(3, "y", color=(1, 2, 3))]
    assert table_problems(LabelTable(same)) == []
    problems = table_problems(LabelTable([*same, Label(4, "z", color=(1, 2, 3)), Label(2**24, "x", hemisphere="L")]))
    assert problems == [
        "Several labels have the same name: 1 (x), 16777216 (x).",
        "Several labels have the same color: 3 (y), 4 (z).",
        "The id is above 16777215, the largest in a label map: 16777216 (x).",
    ]


HELP = [
    [*command.split(), "--help"] for command in ("", "segment", "bids", "evaluate", "train", "labels", "atlas merge")
]


@pytest.mark.parametrize(
    "words",
    [["labels", "table.tsv"], ["labels", "table.tsv", "--to", "b.label"], ["atlases"], ["--version"], *HELP],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(words, files):
    code = (
        "import sys; from monai_lcs.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"  # of --help
        "sys.exit(', '.join({'torch', 'monai', 'SimpleITK', 'pandas', 'scipy'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, *words], cwd=files, check=True)


def test_an_empty_label_map_is_no_table(files, capsys):
    save_nifti(np.zeros((4, 4, 4), np.uint8), files / "empty.nii.gz", np.eye(4))
    for words in ([], [files / "table.tsv"]):
        assert "Nothing is wrong" not in run(capsys, files / "empty.nii.gz", *words, "--check", status=1)
