"""``python -m monai_lcs.label_app DIR``: write the app and say how the server is started."""

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
    """The command that starts the server."""
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app_dir)]
    command += ["--studies", str(options.studies), "--host", options.host, "--port", str(options.port)]
    command += ["--uvicorn_app", "monai_lcs.label_app.server.asgi:app"]
    for name in ("atlas_image", "atlas_labels", "label_table", "checkpoint"):
        if value := getattr(options, name):
            command += ["--conf", name, str(Path(value).absolute())]
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the MONAI Label app into a folder and print the line that starts the server."""
    parser = argparse.ArgumentParser(prog="python -m monai_lcs.label_app", description=main.__doc__)
    parser.add_argument("folder", metavar="DIR", help="folder for the app; it must be writable")
    parser.add_argument("--studies", default="STUDY", help="folder of the scans")
    parser.add_argument("--atlas_image", help="the atlas, needed for a new study only: image,")
    parser.add_argument("--atlas_labels", help="label map")
    parser.add_argument("--label_table", help="and names of the labels")
    parser.add_argument("--checkpoint", help="weights to begin with")
    parser.add_argument("--host", default="127.0.0.1", help="who may connect; 0.0.0.0 for other machines")
    parser.add_argument("--port", default=8000, type=int)
    options = parser.parse_args(arguments)
    folder = Path(options.folder).absolute()
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
