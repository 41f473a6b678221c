"""`qnode warm` compiles what reading tag files needs."""

from pathlib import Path
from types import ModuleType

import pytest
from tag_file_writers import INPUT, PTU_KINDS, Event, Pattern, a1_content, tdc1_content
from tag_files_support import read

from qnode.tags.formats import (
    open_tag_file,
    picoharp_records,
    ptu_records,
    recognition,
    sfifteen,
    tdc1_words,
    text,
    ticks,
)

KERNEL_MODULES: tuple[ModuleType, ...] = (picoharp_records, ptu_records, sfifteen, tdc1_words, text, ticks)
PATTERNS = [Pattern(ticks * 1000, frozenset({1, 3})) for ticks in range(1, 40)]
CONTENTS = {
    **{
        kind: PTU_KINDS[kind].content([Event(INPUT, 1, ticks) for ticks in range(20)])[0]
        for kind in PTU_KINDS
    },
    **{form: a1_content(PATTERNS, form) for form in ("a1", "a1-swapped", "a0", "a2")},
    "tdc1": tdc1_content(PATTERNS),
    "csv": b"1,2\n",
}


def compiled() -> dict[str, list[object]]:
    return {
        f"{module.__name__}.{name}": list(kernel.signatures)
        for module in KERNEL_MODULES
        for name, kernel in vars(module).items()
        if hasattr(kernel, "signatures") and not kernel.targetoptions.get("inline")
    }


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_is_read_with_what_was_compiled_ahead(tmp_path: Path, name: str) -> None:
    recognition.warm()
    before = compiled()
    assert all(signatures for signatures in before.values())
    path = tmp_path / "tags"
    path.write_bytes(CONTENTS[name])
    assert len(read(open_tag_file(path)).times_ps)
    assert compiled() == before
