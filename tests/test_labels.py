"""Label tables (files of each format, round trips, queries, bad input) and the check of label maps."""

import copy
import csv
import json
import pickle
import string
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_lcs.labels import MAX_FLOAT32_ID, MAX_ID, Label, LabelTable, check_label_map
from monai_lcs.labels.cells import guard_cell, unguard_cell
from monai_lcs.labels.exact import EXACT_INTEGERS, holds_exactly
from monai_lcs.labels.label_map import as_label_array, check_known, voxel_ids

HIPPOCAMPI = LabelTable(
    [
        Label(53, "Right-Hippocampus", "Hippocampus", "R", (220, 216, 20), "RHip"),
        Label(16, "Brain-Stem", color=(119, 159, 176)),
        Label(17, "Left-Hippocampus", "Hippocampus", "L", (220, 216, 21)),
    ]
)


def read(tmp_path, name, text):
    """Read a table from literal file contents, text or bytes."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return LabelTable.read(path)


# ---- reading --------------------------------------------------------------------------------------------------------


def test_reads_bids_tsv(tmp_path):
    text = (
        "index\tname\tabbreviation\tcolor\tmapping\tparent\themisphere\n"
        "0\tBackground\tBG\t#000000\t0\tn/a\tn/a\n"
        "53\tRight-Hippocampus\tRHip\t#DCD814\t12\tHippocampus\tR\n"
        "16\tBrain-Stem\tn/a\t#779fb0\tn/a\tn/a\tn/a\n"
        "17\tLeft-Hippocampus\t\t#dcd815\t12\tHippocampus\tL\n"
    )
    assert read(tmp_path, "a_dseg.tsv", text) == HIPPOCAMPI


def test_reads_freesurfer_color_table(tmp_path):
    text = (
        "#$Id: FreeSurferColorLUT.txt $\n\n#No. Label Name:   R   G   B   A\n\n0   Unknown  0 0 0 0\n"
        "16\tBrain-Stem\t119\t159\t176\t0\n  17  Left-Hippocampus   220 216 20  0\n#18 Left-Amygdala 1 2 3 0\n"
        "1035  ctx-lh-insula   255 192 32  255\n9 Area 4 p 1 2 3 0\n"
    )
    for name in ("lut.txt", "aparc.annot.ctab", "LUT.TXT", "aseg.lut"):
        table = read(tmp_path, name, text)
        assert table.ids == (9, 16, 17, 1035)
        assert table.names == ("Area 4 p", "Brain-Stem", "Left-Hippocampus", "ctx-lh-insula")
        assert [label.hemisphere for label in table] == [None, None, "L", "L"]
        assert table[17].color == (220, 216, 20)


def test_reads_slicer_color_table(tmp_path):
    text = "# Color table file a.ctbl\n# 3 values\n0 Background 0 0 0 0\n17 Left_Hippocampus 220 216 20 255\n"
    assert read(tmp_path, "a.ctbl", text) == LabelTable([Label(17, "Left_Hippocampus", None, "L", (220, 216, 20))])


def test_reads_itk_snap_label_description(tmp_path):
    text = (
        "################\n# ITK-SnAP Label Description File\n# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n"
        '    0     0    0    0        0  0  0    "Clear Label"\n'
        '   17   220  216   20        1  1  1    "Left Hippocampus"\n'
        '   16   119  159  176     0.50  1  0    "Brain Stem (all)"\n'
    )
    for name in ("a.label", "itksnap.txt"):  # ITK-SNAP exports both
        table = read(tmp_path, name, text)
        assert table.ids == (16, 17)
        assert table.names == ("Brain Stem (all)", "Left Hippocampus")
        assert table[17] == Label(17, "Left Hippocampus", None, "L", (220, 216, 20))


def test_reads_channel_def_and_metadata(tmp_path):
    channel_def = {"0": "background", "2": "Right Amygdala", "1": "csf"}
    metadata = {"version": "1", "network_data_format": {"outputs": {"pred": {"channel_def": channel_def}}}}
    expected = LabelTable([Label(1, "csf"), Label(2, "Right Amygdala", hemisphere="R")])
    assert read(tmp_path, "labels.json", json.dumps(channel_def)) == expected
    assert read(tmp_path, "metadata.json", json.dumps(metadata)) == expected
    assert LabelTable.from_channel_def(channel_def) == expected
    assert expected.channel_def() == channel_def


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Label Number,Label Name,Class\n4,3rd Ventricle,CSF\n30,Left Accumbens Area,GM\n",
            "4,3rd Ventricle,None,None",
        ),
        ("id,label,hemisphere,structure\n1,bankssts,L,cortex\n42,bankssts,R,cortex\n", "1,bankssts,L,cortex"),
        ("id,label,hemisphere,structure\n83,brainstem,B,subcortex\n", "83,brainstem,None,subcortex"),
        ("label,name\n3,Insula_R\n", "3,Insula_R,R,None"),
        ("label,structure\n3,R_V1_ROI\n", "3,R_V1_ROI,R,None"),
        ("Label Value,LABEL,lobe\n7,cuneus,occipital\n", "7,cuneus,None,occipital"),
        ("label,index,name\nlh.cun,5,x\n", "5,x,None,None"),
        ("label,index,name\n99,5,x\n", "5,x,None,None"),
        ("number,abbreviation\n5,CSF\n", "5,CSF,None,None"),
        ("label_id;Region-Name;x\n5;a, b;1,5\n", "5,a, b,None,None"),
        ("#ID\tname\n5.0\tleft x\n", "5,left x,L,None"),
        ("name,hemi,value\nx,rh,5\n", "5,x,R,None"),
        ("ID,LabelName,Red,Green,Blue,Alpha\n5,Left-x,1,2,3,0\n", "5,Left-x,L,None"),  # FastSurfer
        ("LabelValue,Name,Color_R,Color_G,Color_B\n5,x,1,2,3\n", "5,x,None,None"),  # 3D Slicer
        ("LABEL_VALUE,label-name\n5,x\n", "5,x,None,None"),
        ("ROIid;ROIabbr;ROIname\n5;lAcc;Left Accumbens\n", "5,Left Accumbens,L,None"),  # CAT12
        ("#No.,Label Name:\n5,x\n", "5,x,None,None"),
        ("# made by us, in 2020\n\n# id,x\nid,name\n# no label\n5,a\n#6,b\n", "5,a,None,None"),
        ("# id, name\n5,x\n", "5,x,None,None"),
        ("# of the lab; of ours, and others\nid;name\n5;x\n", "5,x,None,None"),
        ("name,id\n#5,5\n", "5,#5,None,None"),  # a row, no comment
        ("\ufeffid,name\n5,x\n", "5,x,None,None"),
    ],
)
def test_finds_the_columns_by_their_usual_headings(tmp_path, text, expected):
    label = next(iter(read(tmp_path, "a.csv", text)))
    assert f"{label.id},{label.name},{label.hemisphere},{label.parent}" == expected


def test_reads_colors_and_abbreviations(tmp_path):
    table = read(tmp_path, "a.csv", "id,name,R,G,B,Acronym\n1,a,1,2,3,x\n2,b,,,,\n")
    assert table[1] == Label(1, "a", color=(1, 2, 3), abbreviation="x")
    assert table[2] == Label(2, "b")
    assert read(tmp_path, "b.csv", "id,name,colour\n1,a,#0102ff\n2,b,0102FF\n")[2].color == (1, 2, 255)
    assert read(tmp_path, "d.csv", "LabelValue,LabelName,Color_R,Color_G,Color_B\n1,a,1,2,3\n")[1].color == (1, 2, 3)
    assert read(tmp_path, "c.csv", "id,name,r\n1,a,7\n2,b,\n")[2] == Label(2, "b")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_reads_what_editors_and_spreadsheets_write(tmp_path, newline, bom):
    text = '\nid,name,note\n\n0,,\n 1 , " Gyrus, ""left"" part",x\n,,\n2,Größe,\n\n'
    table = read(tmp_path, "a.csv", bom + text.replace("\n", newline).encode())
    assert table.names == ('Gyrus, "left" part', "Größe")
    assert table.ids == (1, 2)


@pytest.mark.parametrize(
    ("name", "hemisphere"),
    [
        *[(name, "L") for name in ("Left-Hippocampus", "ctx-lh-insula", "lh.insula", "L_V1_ROI", "Left Amygdala")],
        *[(name, "L") for name in ("Hippocampus_L", "kidney_left", "7Networks_LH_Vis_1", "wm-lh-x", "Cbm_Left_IX")],
        *[(name, "L") for name in ("hippocampus_l", "L-insula", "Amygdala (left)", "insula (L)", "LeftInsula", "l_V1")],
        *[(name, "R") for name in ("G_Frontal_Sup-1-R", "kidney.r", "R-V1", "[right] x", "xRight", "Insula, right")],
        *[(name, None) for name in ("Left/Right", "level", "Vermis-l2", "Area (lr)", "LeftoverX", "l", "V-L-R_l x")],
        *[(name, "R") for name in ("Right-Thalamus-Proper*", "ctx_rh_G_front", "RH-x", "R.BSTS", "Insula R", "R x")],
        *[(name, None) for name in ("Brain-Stem", "lhos", "Leftover", "Vermal Lobules I-V", "L", "R-C-S", "Bright")],
        *[(name, None) for name in ("rhinal", "Left_or_Right", "lh-x_R", "corpus callosum", "LAntThalRadiation")],
    ],
)
def test_infers_the_hemisphere_from_the_name(name, hemisphere):
    assert LabelTable.from_channel_def({"1": name})[1].hemisphere == hemisphere


def test_a_hemisphere_column_overrules_the_name(tmp_path):
    table = read(tmp_path, "a.csv", "id,name,hemisphere\n1,Left-x,n/a\n2,Left-y,right\n3,z,LH\n4,Left-u,Both\n")
    assert [label.hemisphere for label in table] == [None, "R", "L", None]


@pytest.mark.parametrize(
    ("line", "name", "color"),
    [
        ("819 Left-HypoThal-noMB  0  80  0 0 2", "Left-HypoThal-noMB", (0, 80, 0)),  # FreeSurfer 8
        ("819 Left-HypoThal-noMB  0  80  0 255 -1", "Left-HypoThal-noMB", (0, 80, 0)),
        ("819\tV1\t1\t2\t3\t0\t2", "V1", (1, 2, 3)),
        ("9 Area 4 p 1 2 3 0", "Area 4 p", (1, 2, 3)),
        ("9 4 1 2 3 0", "4", (1, 2, 3)),
        ("9 Area_4 1 2 3 0", "Area_4", (1, 2, 3)),
        ('9 1 2 3 1 1 1 "Area 4 5"', "Area 4 5", (1, 2, 3)),
        ('9 1 2 3 1 1 1 "Area" 4"', 'Area" 4', (1, 2, 3)),
    ],
)
def test_a_name_swallows_no_number(tmp_path, line, name, color):
    table = read(tmp_path, "a.txt", f"# x\n0 Unknown 0 0 0 0\n{line}\n1040 y 1 2 3 0\n")
    label = next(iter(table))
    assert (label.name, label.color) == (name, color)


@pytest.mark.parametrize(
    "content",
    [
        {"0": "background", "1": "liver", "2": "left kidney"},
        {"background": 0, "liver": 1, "left kidney": 2},
        {"background": 0, "liver": [1], "left kidney": 2, "ignore": 3},
    ],
)
def test_reads_the_labels_of_a_dataset(tmp_path, content):
    expected = LabelTable([Label(1, "liver"), Label(2, "left kidney", hemisphere="L")])
    dataset = {"name": "x", "channel_names": {"0": "CT"}, "labels": content, "numTraining": 1, "file_ending": ".nii.gz"}
    for text in (json.dumps(content), json.dumps(dataset), "\ufeff" + json.dumps(dataset)):
        assert read(tmp_path, "dataset.json", text) == expected


@pytest.mark.parametrize(
    "name",
    ["Background", "unknown", "Clear Label", "ClearLabel", "BG", "Unlabeled", "???", "n/a", "", "none", "exterior",
     "Background+FreeSurfer_Defined_Medial_Wall", "ctx-lh-unknown", "label_0", "air", "everything else", "Non-brain"],
)  # fmt: skip
def test_names_of_background(tmp_path, name):
    assert read(tmp_path, "a.csv", f"id,name\n0,{name}\n1,x\n").ids == (1,)


# ---- bad files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,name\n1,a\n\n1,b\n", "line 4: label 1 is already defined at line 2"),
        ("a.txt", "# x\n1 a 1 2 3 0\n1 b 1 2 3 0\n", "line 3: label 1 is already defined at line 2"),
        ("a.label", '1 1 2 3 1 1 1 "a"\n1 1 2 3 1 1 1 "b"\n', "line 2: label 1 is already defined at line 1"),
        ("a.json", '{"1": "a", "1": "b"}', "key '1' is defined 2 times"),
        ("a.json", '{"1": "a", "01": "b"}', "key '01': label 1 is already defined at key '1'"),
        ("a.tsv", "index\tname\n1\ta\n-2\tb\n", "line 3: .* integers > 0 .*got -2"),
        ("a.txt", "-2 a 1 2 3 0\n", "line 1: .* integers > 0 .*got -2"),
        ("a.json", '{"-2": "a"}', "key '-2': .* integers > 0 .*got -2"),
        ("a.csv", "id,name\n1.5,a\n", "line 2: .*integers, got '1.5'"),
        ("a.csv", "id,name\n,a\n", "line 2: .*integers, got ''"),
        ("a.csv", f"id,name\n{2**63},a\n", "line 2: .*fit 64 bits"),
        ("a.label", 'x 1 2 3 1 1 1 "a"\n', "line 1: .*integers, got 'x'"),
        ("a.csv", "label,name\n1,a\nx,b\n", "line 3: .*integers, got 'x'"),
        ("a.json", '{"liver": "1"}', "key 'liver': .*integers, got 'liver'"),
        ("a.csv", "", "the file is empty"),
        ("a.txt", " \n\n", "the file is empty"),
        ("a.csv", ",,\n", "the file is empty"),
        ("a.csv", "id,name\n", "holds no labels"),
        ("a.csv", "id,name\n0,background\n", "holds no labels"),
        ("a.txt", "# nothing here\n", "holds no labels"),
        ("a.json", "{}", "holds no labels"),
        ("a.csv", "id,name\n1,\n", "line 2: Label 1 has no name"),
        ("a.tsv", "index\tname\n1\tn/a\n", "line 2: Label 1 has no name"),
        ("a.label", '1 1 2 3 1 1 1 ""\n', "line 1: Label 1 has no name"),
        ("a.json", '{"1": ""}', "key '1': Label 1 has no name"),
        ("a.json", '{"1": 5}', "key '1': the name must be a string, got 5"),
        ("a.csv", "id,name\n1,a\n2,b,c\n", "line 3: expected 2 columns .*got 3"),
        ("a.tsv", "index\tname\tcolor\n1\ta\n", "line 2: expected 3 columns .*got 2"),
        ("a.txt", "1 a 1 2 3\n", "line 1: expected `id name R G B A`.*got `1 a 1 2 3`"),
        ("a.label", "1 1 2 3 1 1 1 a\n", 'line 1: expected .*`id R G B A VIS MSH "name"`'),
        ("a.txt", "1 a 1 2 3 0\n2 1 2 3 0\n", "line 2: expected"),
        ("a.csv", 'id,name\n1,"a\n2,b\n', "line 3: unexpected end of data"),
        ("a.csv", 'id,name\n1,"a\nb"\n', "line 3: .*must not .*line breaks"),
        ("a.csv", "name,class\na,b\n", "no id column found among the headings 'name', 'class'; call it 'id'"),
        ("a.csv", "id,class\n1,b\n", "no name column found among the headings 'id', 'class'; call it 'name'"),
        ("a.csv", "label,class\n1,b\n", "no name column found"),
        ("a.csv", "label,name\na,b\n", "no id column found"),
        ("a.tsv", "index,name\n1,a\n", "no id column found among the headings 'index,name'"),
        ("a.csv", "id,name,color\n1,a,red\n", "line 2: Colors must be .*got 'red'"),
        ("a.csv", "id,name,r,g,b\n1,a,0.5,0,1\n", "line 2: Colors must be .*got 0.5, 0, 1"),
        ("a.txt", "1 a 1 2 256 0\n", "line 1: The color of label 1 .*256"),
        ("a.csv", "id,name,hemisphere\n1,a,up\n", "line 2: The hemisphere must be .*got 'up'"),
        ("a.json", '{"1": "a"', "line 1 column"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"labels": {"background": 0, "tumor": [1, 2], "core": 2}}', "region of the ids .*union, '1 [+] 2'"),
        ("a.json", '{"labels": {"liver": 0}}', "Id 0 is called 'liver'"),
        ("a.json", '{"labels": {"liver": 1, "spleen": 1}}', "'spleen': label 1 is already defined at label 'liver'"),
        ("a.json", '{"labels": ["background", "liver"]}', "expected a channel_def .*dataset.json"),
        ("a.json", '{"labels": {"liver": true}}', "the name must be a string, got True"),
        ("a.csv", "index,name\n0,Frontal Pole\n1,Insular Cortex\n", "line 2: Id 0 .*'Frontal Pole'.* add 1 to"),
        ("a.tsv", "index\tname\n0.0\tFrontal Pole\n", "line 2: Id 0 .*if this is the background, call it 'background'"),
        ("a.txt", "0 Frontal_Pole 1 2 3 0\n1 Insula 1 2 3 0\n", "line 1: Id 0 .*add 1 to every id"),
        ("a.label", '0 1 2 3 1 1 1 "Frontal Pole"\n', "line 1: Id 0 .*add 1 to every id"),
        ("a.json", '{"0": "liver"}', "key '0': Id 0 .*add 1 to every id"),
        ("a.txt", "1 Area 4 1 2 3 0\n", "line 1: it is not clear where the name ends in `Area 4 1 2 3 0`; write `_`"),
        ("a.txt", "1 Area 1 1 0 0 2\n2 Area 2 1 0 0 2\n", "line 1: it is not clear where the name ends"),
        ("a.txt", "1 x y 1 2 3 0\n2 Area 2 1 0 0 2\n", "line 2: it is not clear where the name ends"),
        ("a.txt", "1 Area 4 5 1 2 3 0\n", "line 1: expected `id name R G B A`"),
        ("a.json", '["a"]', "expected a channel_def"),
        ("a.json", '{"network_data_format": {"outputs": {}}}', "expected a channel_def"),
        ("a.json", '{"network_data_format": {"outputs": {"pred": {"channel_def": 1}}}}', "expected a channel_def"),
        ("a.xlsx", "id,name\n1,a\n", r"the format of a.xlsx is unknown; label tables end in .tsv, .csv"),
        ("labels", "id,name\n1,a\n", "the format of labels is unknown"),
        ("a.csv", "id,name\n1,Größe\n".encode("latin-1"), "not UTF-8 text .*at byte 12"),
        ("a.csv", "id,name\n1,a\n".encode("utf-16"), "not UTF-8 text .*at byte 0"),
    ],
)
def test_bad_files_name_file_line_and_value(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=f"(?s){name}: .*{message}"):
        read(tmp_path, name, text)


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"There is no label table {path}"):
            LabelTable.read(path)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_writes_what_other_tools_read(tmp_path):
    texts = {}
    for suffix in ("tsv", "csv", "txt", "lut", "ctbl", "label", "json"):
        HIPPOCAMPI.write(tmp_path / f"a.{suffix}")
        texts[suffix] = (tmp_path / f"a.{suffix}").read_text(encoding="utf-8").splitlines()
    assert texts["tsv"][0] == "index\tname\tabbreviation\tcolor\tmapping\tparent\themisphere"
    assert texts["tsv"][1] == "16\tBrain-Stem\tn/a\t#779fb0\tn/a\tn/a\tn/a"
    assert texts["csv"][-1] == "53,Right-Hippocampus,RHip,#dcd814,Hippocampus,R"
    assert texts["txt"][-1].split() == ["53", "Right-Hippocampus", "220", "216", "20", "0"]
    assert texts["lut"] == texts["txt"]
    assert texts["ctbl"][1].split() == ["0", "Unknown", "0", "0", "0", "0"]
    assert texts["ctbl"][-1].split() == ["53", "Right-Hippocampus", "220", "216", "20", "255"]  # opaque
    assert texts["label"][-1].split() == ["53", "220", "216", "20", "1", "1", "1", '"Right-Hippocampus"']
    assert json.loads("".join(texts["json"])) == HIPPOCAMPI.channel_def()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"a.{suffix}" for suffix in texts)


def random_table(rng):
    def text(characters=string.ascii_letters + string.digits + " ,;.-_'\"#|*[]\\/()éß海"):
        length = rng.integers(1, 20)
        return "x" + "".join(rng.choice(list(characters), length)).strip()

    def maybe(value):
        return value if rng.random() < 0.5 else None

    ids = rng.choice(np.concatenate([np.arange(1, 300), [2**16, 2**31 - 1, 2**31, 2**40]]), rng.integers(1, 60), False)
    hemispheres = (None, "L", "R")
    return LabelTable(
        Label(
            id,
            text(),
            maybe(text()),
            hemispheres[rng.integers(3)],
            maybe(tuple(rng.integers(0, 256, 3))),
            maybe(text()),
        )
        for id in ids
    )


@pytest.mark.parametrize("seed", range(20))
def test_round_trips(tmp_path, seed):
    table = random_table(np.random.default_rng(seed))
    for suffix in ("tsv", "csv", "txt", "ctab", "lut", "ctbl", "label", "json"):
        table.write(tmp_path / f"a.{suffix}")
        again = LabelTable.read(tmp_path / f"a.{suffix}")
        assert again.ids == table.ids
        if suffix in ("tsv", "csv"):
            assert again == table
        lost = {"txt": " ", "ctab": " ", "lut": " ", "ctbl": " ", "label": '"'}.get(suffix, "")
        assert again.names == tuple(
            name.translate({ord(c): {" ": "_", '"': "'"}[c] for c in lost}) for name in table.names
        )
        if suffix != "json":
            assert [label.color for label in again] == [label.color for label in table]


FORMULAS = ["=1+1", "+A1", "-x", "@sum", "'=x", "''-x", "'tis", "＝x", "' =x", "a=b", "x-y", "'"]  # noqa: RUF001


def test_names_that_a_spreadsheet_would_run(tmp_path):
    table = LabelTable(Label(i, name, name, abbreviation=name) for i, name in enumerate(FORMULAS, start=1))
    for suffix in ("tsv", "csv"):
        table.write(tmp_path / f"a.{suffix}")
        assert LabelTable.read(tmp_path / f"a.{suffix}") == table
        with open(tmp_path / f"a.{suffix}", newline="") as stream:
            cells = [cell for row in csv.reader(stream, delimiter={"tsv": "\t", "csv": ","}[suffix]) for cell in row]
        assert not [cell for cell in cells if cell.startswith(tuple("=+-@＝"))]  # noqa: RUF001
        assert "a=b" in cells


def test_cells_come_back_as_they_were():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("'=+-@\t\r x"), rng.integers(0, 6))) for _ in range(2000)]
    assert [unguard_cell(guard_cell(text)) for text in texts] == texts
    assert not [text for text in texts if guard_cell(text).startswith(tuple("=+-@\t\r"))]


def test_write_replaces_only_when_told(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.tsv exists: .*overwrite=True"):
        HIPPOCAMPI.write(path)
    assert path.read_text(encoding="utf-8") == "mine"
    HIPPOCAMPI.write(path, overwrite=True)
    assert LabelTable.read(path) == HIPPOCAMPI


def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_text("mine")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk on fire")))
    with pytest.raises(OSError, match=r"Cannot write .*a\.tsv: disk on fire"):
        HIPPOCAMPI.write(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]
    assert path.read_text(encoding="utf-8") == "mine"


def test_write_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"the format of a\.nii is unknown"):
        HIPPOCAMPI.write(tmp_path / "a.nii")
    with pytest.raises(OSError, match=r"Cannot write .*/none/a.csv: No such file or directory"):
        HIPPOCAMPI.write(tmp_path / "none" / "a.csv")


# ---- labels and tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": 0}, "ids must be integers > 0 .*got 0"),
        ({"id": 1.0}, "ids must be integers, got 1.0"),
        ({"id": "1"}, "ids must be integers, got '1'"),
        ({"id": True}, "ids must be integers, got True"),
        ({"name": " "}, "Label 1 has no name"),
        ({"name": None}, "Label 1 has no name"),
        ({"name": "a\tb"}, "name of label 1 must not .*line breaks, got 'a.tb'"),
        ({"name": "N/A"}, "name of label 1 must not"),
        ({"parent": 3}, "parent of label 1 must be a string, got 3"),
        ({"hemisphere": "left"}, 'must be "L", "R" or None, got \'left\''),
        ({"color": (0, 0, 256)}, "three integers from 0 to 255"),
        ({"color": (0.5, 0, 0)}, "three integers from 0 to 255"),
        ({"color": (0, 0)}, "three integers from 0 to 255"),
    ],
)
def test_label_checks_its_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        Label(**{"id": 1, "name": "a", **arguments})


def test_default_colors_are_distinct_and_stable():
    colors = [label.color for label in LabelTable.from_ids(range(1, 501))]
    assert len(set(colors)) == 500
    assert Label(7, "a").color == Label(7, "b").color
    steps = np.abs(np.diff(np.array(colors), axis=0)).max(1)
    assert steps.min() > 30  # ids side by side differ for the eye, too


def test_table_is_an_ordered_immutable_collection():
    assert HIPPOCAMPI.ids == (16, 17, 53)
    assert HIPPOCAMPI.names == ("Brain-Stem", "Left-Hippocampus", "Right-Hippocampus")
    assert len(HIPPOCAMPI) == 3
    assert [label.id for label in HIPPOCAMPI] == [16, 17, 53]
    assert 17 in HIPPOCAMPI
    assert np.int16(17) in HIPPOCAMPI
    assert 0 not in HIPPOCAMPI
    assert HIPPOCAMPI[np.uint8(53)].abbreviation == "RHip"
    assert LabelTable(reversed(list(HIPPOCAMPI))) == HIPPOCAMPI
    assert hash(LabelTable(reversed(list(HIPPOCAMPI)))) == hash(HIPPOCAMPI)
    assert LabelTable.from_ids(HIPPOCAMPI.ids) != HIPPOCAMPI
    assert HIPPOCAMPI != "x"
    assert pickle.loads(pickle.dumps(HIPPOCAMPI)) == copy.deepcopy(HIPPOCAMPI) == HIPPOCAMPI
    with pytest.raises(TypeError, match="does not support item assignment"):
        HIPPOCAMPI[1] = Label(1, "a")
    with pytest.raises(KeyError, match=r"There is no label 18 in the label table, .*16 to 53; the nearest: 16, 17, 53"):
        HIPPOCAMPI[18]
    with pytest.raises(ValueError, match=r"must be unique, got more than one label with id 1, 3\."):
        LabelTable([Label(id, "a") for id in (1, 2, 3, 3, 1)])


def test_table_without_labels():
    table = LabelTable([])
    assert (table.ids, table.select("all"), table.children(), table.dtype) == ((), (), {}, np.dtype("uint8"))
    assert repr(table) == "LabelTable(0 labels)"
    assert table.channel_def() == {"0": "background"}
    with pytest.raises(ValueError, match="There is no label 1 in the label table, which has 0 labels"):
        table.select(1)


@pytest.mark.parametrize("largest", [1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1])
def test_dtype_is_the_smallest_that_holds_every_id(largest):
    types = [np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")]
    assert LabelTable.from_ids([1, largest] if largest > 1 else [1]).dtype == next(
        dtype for dtype in types if largest <= np.iinfo(dtype).max
    )


def test_from_ids_takes_what_unique_gives():
    for ids in (np.array([0, 4, 17], np.int16), torch.tensor([0, 17, 4]), {4, 17}, range(4, 18, 13)):
        assert LabelTable.from_ids(ids).channel_def() == {"0": "background", "4": "label-4", "17": "label-17"}
    with pytest.raises(ValueError, match=r"integers, got np.float64"):
        LabelTable.from_ids(np.array([1.0]))
    with pytest.raises(ValueError, match="got -1"):
        LabelTable.from_ids([-1])


# ---- queries --------------------------------------------------------------------------------------------------------

CORTEX = LabelTable(
    [
        Label(1, "insula", "insula", "L"),
        Label(2, "insula", "insula", "R"),
        Label(3, "Left-cuneus", "occipital", "L"),
        Label(4, "Right-cuneus", "occipital", "R"),
        Label(5, "Left-pole*", "occipital", "L"),
        Label(6, "brainstem"),
        Label(7, "Left-pole*2"),
    ]
)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (None, (1, 2, 3, 4, 5, 6, 7)),
        ("all", (1, 2, 3, 4, 5, 6, 7)),
        (3, (3,)),
        (np.int64(3), (3,)),
        (np.array(3), (3,)),
        (torch.tensor(3), (3,)),
        ("3", (3,)),
        ("insula", (1, 2)),
        ("occipital", (3, 4, 5)),
        ("Left-*", (3, 5, 7)),
        ("*t-cuneus", (3, 4)),
        ("[LR]*-cuneus", (3, 4)),
        ("Left-pole*", (5,)),  # a name goes before a glob
        ("Left-pole?", (5,)),
        ([], ()),
        ([6, "2", "cuneus?", "*cuneus", 6], None),
        ([6, "2", "*cuneus", 6], (2, 3, 4, 6)),
        (("brainstem", ["insula", 6]), (1, 2, 6)),
        (np.array([6, 1]), (1, 6)),
        (torch.tensor([6, 1]), (1, 6)),
        ({"insula"}, (1, 2)),
        ("Insula", (1, 2)),
        ("left-CUNEUS", (3,)),
        ("LEFT-*", (3, 5, 7)),
        ("left-pole*", (5,)),
        ("Lobe:OCC*", (3, 4, 5)),
        ("insula,brainstem", None),
        ("", None),
    ],
)
def test_select(query, ids):
    if ids is None:
        with pytest.raises(ValueError, match="names no label of the label table"):
            CORTEX.select(query)
    else:
        assert CORTEX.select(query) == ids
        assert all(type(id) is int for id in CORTEX.select(query))


def test_case_is_passed_over_only_where_that_is_unambiguous():
    table = LabelTable([Label(1, "Insula", "cortex"), Label(2, "insula", "Cortex"), Label(3, "Pons")])
    assert [table.select(query) for query in ("Insula", "insula", "I*", "cortex", "PONS")] == [
        (1,),
        (2,),
        (1,),
        (1,),
        (3,),
    ]
    assert table.select("lobe:cort*") == (1,)
    for query in ("INSULA", "INS*", "CORTEX"):
        with pytest.raises(ValueError, match="names no label of the label table"):
            table.select(query)
    with pytest.raises(ValueError, match=r"the nearest: 'Insula', 'insula'\.$"):
        table.select("INSULA")
    with pytest.raises(ValueError, match=r"'CORT\*' is no coarse name .*they are 'Cortex', 'cortex'"):
        table.select("lobe:CORT*")


def test_select_names_the_file_and_the_nearest(tmp_path):
    CORTEX.write(tmp_path / "a.tsv")
    table = LabelTable.read(tmp_path / "a.tsv").subset("Left-*")
    with pytest.raises(ValueError, match=r"'left-cunneus' names no label of .*a\.tsv; the nearest: 'Left-cuneus'"):
        table.select("left-cunneus")
    with pytest.raises(ValueError, match=r"'ocipital' .*; the nearest: 'occipital'"):
        table.select(["occipital", "ocipital"])
    with pytest.raises(ValueError, match=r"'0xyz' .*; its names are 'Left-cuneus', 'Left-pole\*', 'Left-pole\*2'\."):
        table.select("0xyz")
    with pytest.raises(
        ValueError, match=r"There is no label 6 in .*a\.tsv, .*3 labels, ids 3 to 7; the nearest: 3, 5, 7"
    ):
        table.select([3, "6"])
    with pytest.raises(ValueError, match=r"integers, got 3\.0"):
        table.select(3.0)
    with pytest.raises(ValueError, match="There is no label 0"):
        table.select(0)


def test_select_is_the_union_of_its_members():
    rng = np.random.default_rng(0)
    members = [1, "6", "insula", "occipital", "Left-*", "Right-*", 4]
    for _ in range(50):
        query = [members[i] for i in rng.integers(0, len(members), rng.integers(0, 5))]
        expected = set().union(*[CORTEX.select(member) for member in query])
        assert CORTEX.select(query) == tuple(sorted(expected))


def test_subset_keeps_labels_as_they_are():
    subset = HIPPOCAMPI.subset([53, "Brain-Stem"])
    assert subset == LabelTable([HIPPOCAMPI[16], HIPPOCAMPI[53]])
    assert HIPPOCAMPI.subset(None) == HIPPOCAMPI
    with pytest.raises(ValueError, match="There is no label 1 "):
        HIPPOCAMPI.subset([1])


def test_children_partition_the_labels():
    children = CORTEX.children()
    assert children == {"insula": (1, 2), "occipital": (3, 4, 5), "brainstem": (6,), "Left-pole*2": (7,)}
    assert all(CORTEX.select(name) == ids for name, ids in children.items())


# ---- label maps -----------------------------------------------------------------------------------------------------

TYPES = ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64"]


def is_label_map(values):
    """Voxel by voxel, with Python's own numbers."""
    return all(float(v).is_integer() and 0 <= int(v) <= 2**31 - 1 for v in np.ravel(values).tolist())


@pytest.mark.parametrize("container", [np.asarray, torch.from_numpy, lambda array: MetaTensor(torch.from_numpy(array))])
@pytest.mark.parametrize("dtype", TYPES)
def test_check_label_map_equals_a_loop_over_voxels(container, dtype):
    candidates = [0, 1, 7, 255, 2**24, MAX_ID, MAX_ID + 1, 2**40, -1, -128, 0.5, 7.000001]
    seen = set()
    for value in candidates:
        with np.errstate(invalid="ignore"):
            label_map = np.array([[0, 1], [value, 1]]).astype(dtype)
        if dtype != "float32" and label_map[1, 0] != value:
            continue  # the type does not hold it
        expected = is_label_map(label_map)
        seen.add(expected)
        if expected:
            check_label_map(container(label_map))
            np.testing.assert_array_equal(as_label_array(container(label_map)), label_map)
            np.testing.assert_array_equal(voxel_ids(container(label_map)).numpy(), label_map.ravel())
        else:
            with pytest.raises(ValueError, match="A label map must hold"):
                check_label_map(container(label_map))
    assert seen == {True} | ({False} if dtype not in ("bool", "uint8", "uint16") else set())


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.float32([0, 1406.9994]), r"A label map must hold integers >= 0, got 1406\.9994; resample"),
        (torch.tensor([0, 1406.9994]), r"got 1406\.9994;"),
        (torch.tensor([0, 1406.9994], dtype=torch.float64), r"got 1406\.9994;"),
        (torch.tensor([0, 0.1], dtype=torch.float16), r"got 0\.1;"),
        (torch.tensor([0, 2.25], dtype=torch.bfloat16), r"got 2\.25;"),
        (np.array([3, -1], np.int8), r"integers >= 0, got -1;"),
        (np.array([np.nan, 1]), r"integers >= 0, got nan;"),
        (np.array([-np.inf, 1]), r"integers >= 0, got -inf;"),
        (np.array([2**31]), r"must hold ids up to 2147483647, got 2147483648; renumber"),
        (np.float32([2**31]), r"must hold ids up to 2147483647, got 2147483648; renumber"),
        (np.array([2**64 - 1], np.uint64), r"got 18446744073709551615; renumber"),
        (
            MetaTensor(torch.tensor([0.5]), meta={"filename_or_obj": "a_dseg.nii.gz"}),
            r"The label map a_dseg\.nii\.gz must hold integers >= 0, got 0\.5;",
        ),
    ],
)
def test_a_value_that_is_no_id_is_said_exactly(label_map, message):
    for check in (check_label_map, as_label_array, voxel_ids):
        with pytest.raises(ValueError, match=message):
            check(label_map)
    with pytest.raises(ValueError, match="The atlas must hold"):
        check_label_map(label_map, "The atlas")


def test_any_integer_may_be_negative_or_huge_but_no_fraction():
    for label_map in (torch.tensor([-1, 2**40]), np.array([-3.0, 1e12]), np.zeros((0, 3))):
        check_label_map(label_map, any_integer=True)
    for value in (0.5, np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=f"must hold integers, got {value};"):
            check_label_map(torch.tensor([1, value]), any_integer=True)


def test_label_maps_of_any_layout():
    label_map = np.arange(24).reshape(2, 3, 4)
    for given in (label_map[::-1, :, ::2], np.asfortranarray(label_map), label_map.astype(">i2")):
        check_label_map(given)
        np.testing.assert_array_equal(as_label_array(given), given)
    assert as_label_array(label_map) is label_map
    assert as_label_array(np.array([True])).dtype == np.int32


def test_ids_that_the_table_lacks():
    check_known(np.array([0, 16, 53]), HIPPOCAMPI)
    with pytest.raises(ValueError, match=r"The label map holds \[1, 2, .* 10\] and 5 more, which LabelTable\(3 labels"):
        check_known(np.arange(18), HIPPOCAMPI)


def test_limits_are_what_the_types_hold():
    assert torch.iinfo(torch.int32).max == MAX_ID
    assert holds_exactly(torch.float32, [MAX_FLOAT32_ID])
    for dtype, largest in EXACT_INTEGERS.items():
        assert holds_exactly(dtype, [largest - 1, largest])
        assert not holds_exactly(dtype, [largest + 1])


def test_importing_labels_is_light():
    code = (
        "import sys, monai.data; before = set(sys.modules); import monai_lcs.labels;"
        "print({name.split('.')[0] for name in set(sys.modules) - before})"
    )
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "{'monai_lcs'}"
