"""What holds for the package as a whole."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("package", ["models", "diffusion"])
def test_networks_and_samplers_import_nothing_of_ours(package):
    files = sorted((ROOT / "attrjax" / package).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are absolute"
                names = [node.module]
            ours = [name for name in names if name.split(".")[0] == "attrjax"]
            assert all(name.startswith(f"attrjax.{package}") for name in ours), f"{file} imports {ours}"


def test_nothing_imports_torch_at_run_time():
    for file in sorted((ROOT / "attrjax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {(name or "").split(".")[0] for name in names}
            assert not roots & {"torch", "diffusers", "peft", "accelerate"}, file


def test_a_start_does_not_wait_for_torch_where_it_is_installed(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')")
    # It has a version, too: transformers imports what has none to ask for it.
    installed = tmp_path / "torch-2.9.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    (installed / "RECORD").write_text("torch/__init__.py,,\n")
    program = (
        "import attrjax.attributes.customize, attrjax.attributes.export, attrjax.sample\n"
        "from attrjax.attrworld import bundled, train_unet\n"
        "from attrjax.checkpoints.pipeline import load_pipeline\n"
        "load_pipeline(bundled.BASE)\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    made = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr[-2000:]


def test_every_package_that_the_tests_install_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in pins)
    pinned = {canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()}
    waiting, seen = [("attrjax", extra) for extra in ("", "test", "dev", "parity")], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name != "attrjax":
            assert name in pinned, f"{name} is installed and has no pin in constraints.txt"
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # the extra that wants it is not installed here
        for text in requires:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                dependency = canonicalize_name(requirement.name)
                waiting += [(dependency, wanted) for wanted in ("", *requirement.extras)]
