"""Run the notebooks from top to bottom and keep what they show (the target `make notebooks`).

python runs/notebooks.py                            # all four, in their places
python runs/notebooks.py 02 --output executed       # the second, written elsewhere
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LONGEST = 600  # seconds a cell may take


def small(picture: str) -> str:
    """A PNG in base64 with at most 64 colours: drawings look the same and take a third of the room."""
    few = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE).save(few, "PNG", optimize=True)
    return base64.b64encode(few.getvalue()).decode()


def execute(path: Path, output: Path) -> None:
    """Run a notebook in its own folder and write it with its outputs.

    Nothing that differs from run to run or from machine to machine is written beside them: no times, no versions.

    Raises:
        CellExecutionError: a cell failed; nothing is written.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=LONGEST,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    for data in (output["data"] for output in shown if "image/png" in output["data"]):
        data["image/png"] = small(data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    output.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, output)


def main() -> int:
    """Run those whose names begin as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names, as 01; none: all")
    parser.add_argument("--output", type=Path, help="another folder for what was run")
    asked = parser.parse_args()
    found = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path.name.startswith(tuple(asked.names or [""]))]
    if not found:
        parser.error(f"no notebook begins with {' or '.join(asked.names)}")
    for path in found:
        print(f"{path.name} ...", flush=True)
        try:
            execute(path, (asked.output or NOTEBOOKS) / path.name)
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
