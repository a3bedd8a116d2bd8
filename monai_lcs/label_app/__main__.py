"""``python -m monai_lcs.label_app DIR``: writes the app and says how to start the server."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from monai_lcs.files import check_writable, write_atomically

__all__ = ["main", "server_command"]

MAIN = '''"""MONAI Label finds the app here."""

from monai_lcs.label_app.server.app import LabelConditionedApp  # noqa: F401
'''


def server_command(app_dir: Path, options: argparse.Namespace) -> list[str]:
    """Give the command that starts the server, word by word.

    Args:
        app_dir: the folder of the app.
        options: the options of :func:`main`.

    Example:
        >>> names = ("atlas_image", "atlas_labels", "label_table", "checkpoint")
        >>> options = argparse.Namespace(studies="scans", host="127.0.0.1", port=8000, **dict.fromkeys(names))
        >>> server_command(Path("app"), options)[1:8]
        ['-m', 'monailabel.main', 'start_server', '--app', 'app', '--studies', 'scans']
    """
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app_dir)]
    command += ["--studies", str(options.studies), "--host", options.host, "--port", str(options.port)]
    command += ["--uvicorn_app", "monai_lcs.label_app.server.asgi:app"]
    for name in ("atlas_image", "atlas_labels", "label_table", "checkpoint"):
        if value := getattr(options, name):
            command += ["--conf", name, str(Path(value).absolute())]
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the MONAI Label app into a folder and print the line that starts the server.

    Args:
        arguments: the words of the command line; those of the process by default.

    Raises:
        SystemExit: if the folder cannot be written to.

    Example:
        >>> folder = getfixture("tmp_path") / "app"
        >>> main([str(folder), "--studies", "scans"])  # doctest: +ELLIPSIS
        /... -m monailabel.main start_server --app ...
        >>> (folder / "main.py").is_file()
        True
    """
    parser = argparse.ArgumentParser(prog="python -m monai_lcs.label_app", description="Write the MONAI Label app.")
    parser.add_argument("folder", metavar="DIR", help="folder for the app; it must be writable")
    parser.add_argument("--studies", required=True, help="folder of the scans")
    parser.add_argument("--atlas_image", help="image of the atlas, needed for a new study only")
    parser.add_argument("--atlas_labels", help="label map of the atlas")
    parser.add_argument("--label_table", help="label table of the atlas")
    parser.add_argument("--checkpoint", help="weights to begin with")
    parser.add_argument("--host", default="127.0.0.1", help="who may connect; 0.0.0.0 for other machines")
    parser.add_argument("--port", default=8000, type=int)
    options = parser.parse_args(arguments)
    folder = Path(options.folder).absolute()
    for word in ("atlas_image", "atlas_labels", "label_table", "checkpoint"):
        file = getattr(options, word)
        if file and not Path(file).is_file():
            parser.error(f"--{word} {file}: there is no such file")
    try:
        check_writable(folder)
        write_atomically(folder / "main.py", lambda temporary: temporary.write_text(MAIN))
    except OSError as error:
        raise SystemExit(f"Error: {error}") from error
    if importlib.util.find_spec("monailabel") is None:
        print("Note: MONAI Label is not installed here, see docs/monai_label.md.", file=sys.stderr)
    print(shlex.join(server_command(folder, options)))


if __name__ == "__main__":
    main()
