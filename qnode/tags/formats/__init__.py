"""Tag files of time taggers: recognised, and read in constant memory.

`open_tag_file` gives a `TagFile`, whose `blocks` are read one after the other. `write_tag_file` writes blocks
in an open format.
"""

from qnode.tags.formats.model import TagFile, TagFileBlock, TagFileSummary
from qnode.tags.formats.recognition import FORMATS, open_tag_file
from qnode.tags.formats.writing import WRITABLE, write_tag_file

__all__ = [
    "FORMATS",
    "WRITABLE",
    "TagFile",
    "TagFileBlock",
    "TagFileSummary",
    "open_tag_file",
    "write_tag_file",
]
