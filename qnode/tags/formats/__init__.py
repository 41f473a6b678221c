"""Tag files of time taggers: recognised, and read in constant memory.

`open_tag_file` gives a `TagFile`, whose `blocks` are read one after the other.
"""

from qnode.tags.formats.model import TagFile, TagFileBlock, TagFileSummary
from qnode.tags.formats.recognition import FORMATS, open_tag_file

__all__ = ["FORMATS", "TagFile", "TagFileBlock", "TagFileSummary", "open_tag_file"]
