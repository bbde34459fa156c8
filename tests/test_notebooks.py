"""The notebooks: what is committed of them, and, by `-m slow`, that they run."""

from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 400_000
TIMEOUT = 600  # seconds a cell: several times what the longest takes on two cores

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def test_are_found() -> None:
    assert NOTEBOOKS, f"there are no notebooks in {FOLDER}"


@each_notebook
def test_committed_as_executed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs, "the notebook was saved without its outputs"
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", f"a warning or progress bar: {output.text}"


@each_notebook
def test_small_and_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    text = path.read_text(encoding="utf-8")
    assert not [folder for folder in ("/tmp/", "/home/", "/root/", "/work/") if folder in text]


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # its history is none of the user's
    folder = tmp_path / "notebooks"
    folder.mkdir()
    # Where no kernel is looked up, that of the running interpreter is taken.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    notebook = nbformat.read(path, as_version=4)
    # It raises what a cell raises.
    NotebookClient(notebook, km=manager, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}}).execute()
    assert not list(folder.iterdir()), "a notebook cleans up what it writes"
