"""Groups of the labels of malc2012: what a network is trained on that is asked for finer labels afterwards."""

import pandas as pd

LEFT_OUT = 5  # every fifth label is never trained in the row "a fifth left out"
FIRST_GYRUS = 100  # the smallest id of a gyrus in labels.csv
LOBES = {  # the first word after the side, as labels.csv abbreviates the gyri
    "frontal": "AOrG FO FRP GRe IFG IOrG LOrG MFC MFG MOrG MPrG MSFG OFC OpIFG OrIFG POrG PrG SCA SFG SMC TrIFG CO",
    "parietal": "AnG MPoG PCu PO PoG SMG SPL",
    "temporal": "Ent FuG ITG MTG PHG PP PT STG TMP TTG",
    "occipital": "Calc Cun IOG LiG MOG OCP OFuG SCLC SOG",
    "cingulate": "ACgG CgG MCgG PCgG",
    "insula": "AIns PIns",
}


def coarse_labels(kind: str, table: pd.DataFrame) -> dict[str, list[int]]:
    """Names and fine ids of the groups to train on.

    Args:
        kind: ``"sides"``: left and right of each structure together; ``"lobes"``: the gyri of a lobe and a side
            together; ``"left out"``: four labels of five, each by itself; ``"one"``: all together.
        table: ids and names of the labels that the atlas has.
    """
    if kind == "one":
        return {"all": table.id.tolist()}
    if kind == "left out":
        kept = table.drop(index=table.index[LEFT_OUT - 1 :: LEFT_OUT])
        return {name: [int(label)] for label, name in zip(kept.id, kept.name, strict=True)}
    name_of = structure_of if kind == "sides" else lobe_of
    groups: dict[str, list[int]] = {}
    for label, name in zip(table.id, table.name, strict=True):
        groups.setdefault(name_of(int(label), name), []).append(int(label))
    return groups


def split_side(name: str) -> tuple[str, str]:
    """``"Left"``, ``"Right"`` or nothing, and the rest of a label's name."""
    side, _, structure = name.partition(" ") if name.startswith(("Left", "Right")) else ("", "", name)
    return side, structure


def structure_of(label: int, name: str) -> str:
    """The name of a label without its side."""
    return split_side(name)[1].strip()


def lobe_of(label: int, name: str) -> str:
    """The side and lobe of a gyrus; the name of any other label."""
    side, structure = split_side(name)
    gyrus = structure.split()[0]
    lobe = next((lobe for lobe, gyri in LOBES.items() if gyrus in gyri.split()), structure)
    return f"{side} {lobe if label >= FIRST_GYRUS else structure}".strip()
