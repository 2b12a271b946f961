"""What the site's reader of docstrings has to be told of ours."""

import re
from typing import Any

import griffe

# of one paragraph, which may begin in the line of its heading
PARAGRAPH = re.compile(r"^(Source|Differs): +(.*(?:\n(?!\w+:).+)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Example is what it calls Examples; Source and Differs stand in the line of their text."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite a docstring before it is parsed."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            # T* is no emphasis
            text = re.sub(r"(?<=[A-Z])\*(?=[\[ ])", r"\\*", text)
            obj.docstring.value = PARAGRAPH.sub(_box, text)

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Show what a wing offers once, where it is written."""
        if mod.parent:
            mod.exports = None


def _box(found: re.Match[str]) -> str:
    return f"{found[1]}:\n    {' '.join(found[2].split())}"
