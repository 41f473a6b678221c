"""`qnode warm` compiles everything that both daemons of a link need."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qnode.cli.warm import warm
from qnode.kernel_cache import cache_base, cache_directory

# The first process on a machine compiles the kernels, which takes minutes on a slow one.
pytestmark = [pytest.mark.timeout(600)]


def code_in(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*.nb?")}


@pytest.mark.link
def test_a_link_runs_on_what_was_compiled_ahead(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "qnode", "warm"], check=True)
    version = cache_directory("qnode.distill.amplification.amplify").parent.name
    cache = tmp_path / "cache"
    shutil.copytree(cache_base() / version, cache / version)
    before = code_in(cache)
    assert len({name.rpartition("/")[0] for name in before}) > 10
    subprocess.run(
        [sys.executable, "-m", "qnode", "loopback", "--speed", "max", "--until-keys", "1"],
        env=os.environ | {"QNODE_CACHE_DIR": str(cache)}, check=True, capture_output=True,
    )  # fmt: skip
    assert code_in(cache) == before


def test_a_place_that_cannot_be_trusted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("QNODE_CACHE_DIR", str(tmp_path))
    done = CliRunner().invoke(warm, standalone_mode=False)
    assert done.return_value == 1
    assert f"chmod go-w {tmp_path}" in done.stderr
