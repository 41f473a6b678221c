"""Compiled kernels are cached only where the cache can be trusted, and never outlive their sources."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import qnode.kernels as kernels
directory = kernels.cache_directory("qnode.tags.order")
print(directory, kernels._trusted(directory))
"""


def ask(cache: Path) -> list[str]:
    environment = os.environ | {"QNODE_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True)
    return done.stdout.decode().split()


def test_the_cache_is_named_by_version_processor_room_and_digest(tmp_path: Path) -> None:
    directory, trusted = ask(tmp_path)
    assert trusted == "True"
    assert Path(directory).parent == tmp_path
    assert Path(directory).name.startswith("kernels-")
    assert "-tags-" in Path(directory).name


def test_a_cache_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert ask(tmp_path)[1] == "False"
