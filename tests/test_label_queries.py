"""Requested labels: what a user may write, the ids that unions get, and the label table of the result."""

import numpy as np
import pytest
import torch

from monai_lcs.labels import Label, LabelTable, RequestedLabel, label_names, parse_request, requested_table

TABLE = LabelTable(
    [Label(11, "Left-Caudate", "Striatum", "L"), Label(50, "Right-Caudate", "Striatum", "R"), Label(16, "Stem")]
)
PARTS = LabelTable([*TABLE, Label(12, "Left-Putamen", "Striatum", "L", (1, 2, 3), "LPut"), Label(7, "a, b + c; d")])
EVERYTHING = LabelTable([*TABLE, Label(2, "Left-Pole*", "lobe:frontal", "L"), Label(3, "insula"), Label(4, "insula")])


@pytest.mark.parametrize(
    ("request_", "ids"),
    [
        (None, [11, 16, 50]),
        ("all", [11, 16, 50]),
        (" ", [11, 16, 50]),
        ([], []),
        (16, [16]),
        (np.int16(16), [16]),
        (np.array([16, 11]), [11, 16]),
        (torch.tensor([16, 11]), [11, 16]),
        ({16, "50"}, [16, 50]),
        ("16; Left-Caudate", [11, 16]),
        ("16\nLeft-Caudate,", [11, 16]),
        ("Striatum", [11, 50]),
        (["*-Caudate", "16"], [11, 16, 50]),
        (["*-Caudate, 16"], [11, 16, 50]),
        ([["*-Caudate"], 16], [11, 16]),
        ("Left-Caudate + Stem, Stem", [11, 16]),
        ({"a": "Striatum", "b": [11, 16]}, [11, 16]),
    ],
)
def test_requests(request_, ids):
    assert [label.id for label in parse_request(request_, TABLE)] == ids


def test_singles_and_a_union_of_them():
    requested = parse_request(["Left-*", "Left-Caudate + Left-Putamen"], PARTS)
    assert requested == [
        RequestedLabel(11, "Left-Caudate", (11,)),
        RequestedLabel(12, "Left-Putamen", (12,)),
        RequestedLabel(51, "Left-Caudate + Left-Putamen", (11, 12)),  # above the ids of the atlas
    ]
    assert parse_request("Left-*; Left-Caudate + Left-Putamen", PARTS) == requested


@pytest.mark.parametrize(
    "union",
    ["Left-Caudate + Stem", [["Left-Caudate", "Stem"]], [(16, 11)], {"Left-Caudate + Stem": "11, 16"},
     {"Left-Caudate + Stem": "11 + 16"}, {"Left-Caudate + Stem": ["Left-Caudate + Stem", [16]]},
     ["11 + 16", "16 + 11", [np.uint8(11), "Stem"]]],
)  # fmt: skip
def test_one_union_in_all_its_spellings(union):
    assert parse_request(union, TABLE) == [RequestedLabel(11, "Left-Caudate + Stem", (11, 16))]


def test_every_requested_label_has_an_id_of_its_own():
    rng = np.random.default_rng(0)
    names = list(PARTS.names)
    for _ in range(100):
        parts = [rng.choice(names, rng.integers(1, 4), replace=False).tolist() for _ in range(rng.integers(1, 5))]
        unions = {tuple(sorted(part)) for part in parts}
        requested = parse_request([part[0] if len(part) == 1 else part for part in parts], PARTS)
        ids = [label.id for label in requested]
        assert ids == sorted(set(ids))
        assert len(ids) == len(unions)
        id_of = {label.name: label.id for label in PARTS}
        assert {label.ids for label in requested} == {tuple(sorted(id_of[n] for n in union)) for union in unions}
        for label in requested:
            others = set(ids) - {label.id}
            assert label.id in label.ids or (label.id > 50 and others.issuperset(label.ids))


def test_a_union_of_one_label_is_that_label():
    assert parse_request("Stem + Stem, Stem", TABLE) == [RequestedLabel(16, "Stem", (16,))]
    assert parse_request({"Brain stem": "Stem"}, TABLE) == [RequestedLabel(16, "Brain stem", (16,))]


def test_names_that_hold_separators_globs_or_come_twice():
    assert [label.id for label in parse_request("a, b + c; d", PARTS)] == [7]
    assert parse_request({"x": ["a, b + c; d", 16]}, PARTS) == [RequestedLabel(7, "x", (7, 16))]
    assert [label.id for label in parse_request("Left-Pole*", EVERYTHING)] == [2]
    assert [label.id for label in parse_request("lobe:frontal", EVERYTHING)] == [2]
    assert [label.id for label in parse_request("insula", EVERYTHING)] == [3, 4]
    assert parse_request("insula (4)", EVERYTHING) == [RequestedLabel(4, "insula (4)", (4,))]
    assert label_names(EVERYTHING)[4] == "insula (4)"


def test_labels_without_voxels_are_left_out():
    assert [label.id for label in parse_request("all", TABLE, present=[0, 11, 99])] == [11]
    assert [label.ids for label in parse_request("Striatum + Stem", TABLE, present=[11, 16])] == [(11, 16)]
    assert parse_request(["Stem", "Stem + Left-Caudate"], TABLE, present=[16]) == [RequestedLabel(16, "Stem", (16,))]


def test_requests_that_find_nothing():
    with pytest.raises(ValueError, match="nearest: 'Left-Caudate'"):
        parse_request("Stem, Left-Caudat", TABLE)
    with pytest.raises(ValueError, match="nearest: 'Left-Caudate'"):
        parse_request("Stem + Left-Caudat", TABLE)
    with pytest.raises(ValueError, match="no voxel of 'Stem'"):
        parse_request("Stem", TABLE, present=[11])
    with pytest.raises(ValueError, match="no voxel of 'Stem' \\+ 50"):
        parse_request([["Stem", 50]], TABLE, present=[11])
    with pytest.raises(ValueError, match=r"by an id or a name, got 1\.5"):
        parse_request([1.5], TABLE)
    with pytest.raises(ValueError, match=r"at least one label, got \[\]"):
        parse_request({"a": []}, TABLE)


def test_unions_without_an_id_of_their_own():
    with pytest.raises(
        ValueError, match=r"'b' is left without an id of its own, since 'a' is made of the same labels \[16\]: request"
    ):
        parse_request({"a": 16, "b": 16}, TABLE)
    full = LabelTable.from_ids([1, 2, 2**31 - 1])
    with pytest.raises(ValueError, match=r"its labels \[1, 2\] are requested by themselves as well.* up to 2147483647"):
        parse_request(["1, 2", "1 + 2"], full)


def test_the_table_of_a_result():
    requested = parse_request(["Left-*", "Left-Caudate + Left-Putamen", {"Caudates": "*-Caudate"}], PARTS)
    table = requested_table(requested, PARTS)
    assert table.subset([11, 12]) == PARTS.subset([11, 12])  # with all fields
    assert table[51] == Label(51, "Left-Caudate + Left-Putamen", "Striatum", "L")
    assert table[50] == Label(50, "Caudates", "Striatum", None, PARTS[50].color)
    assert requested_table(parse_request([[11, 16]], PARTS), PARTS)[11].parent is None
    assert requested_table(parse_request({"Brain stem": "Stem"}, TABLE), TABLE).names == ("Brain stem",)
    assert requested_table(parse_request(None, EVERYTHING), EVERYTHING) == EVERYTHING  # "insula" stays without its id
