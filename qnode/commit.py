"""The commit that this code was built from, for `--version`. The build runs this file, too."""

from pathlib import Path

RECORD = "commit"  # beside this file in a wheel, written by the build


def commit() -> str | None:
    """Return the commit of the build, or of the checkout that holds this file; None if neither is known.

    It ends with ``-dirty`` if files of the checkout were changed after the commit.
    """
    here = Path(__file__).parent
    try:
        return (here / RECORD).read_text().strip()
    except FileNotFoundError:
        return commit_of(here.parent)


def commit_of(top: Path) -> str | None:
    """Return the commit of the checkout at ``top``; None if it is not known."""
    if not (top / ".git").exists():
        return None
    import subprocess  # slow to import, and seldom needed

    describe = ["git", "-C", str(top), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() or None
