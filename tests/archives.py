"""Archives of tests, unpacked alike by every Python from 3.11.2 on, which has no filter for members."""

import tarfile
from pathlib import Path


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the plain files of an archive of our own below ``folder``."""
    for entry in archive:
        if (content := archive.extractfile(entry)) is None:
            continue
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read())
