"""What the build of a wheel adds to the sources: the commit, which `qnode --version` shows."""

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Put the commit into the wheel, as ``qnode/commit``; a checkout without git gives none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the file; an editable install asks its checkout instead."""
        self._folder = tempfile.TemporaryDirectory()
        module = runpy.run_path(str(Path(self.root) / "qnode" / "commit.py"))
        commit = module["commit"]()
        if version != "editable" and commit is not None:
            record = Path(self._folder.name) / module["RECORD"]
            record.write_text(f"{commit}\n")
            build_data["force_include"][str(record)] = f"qnode/{module['RECORD']}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the file."""
        self._folder.cleanup()
