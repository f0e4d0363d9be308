"""Links to other libraries' documentation, from short lists of names instead of their inventories, so offline.

A list has the address of the site in its first line, then a name, its role and its page in each. `$` in a page stands
for the name.
"""

import zlib
from pathlib import Path


def mapping(lists: Path, built: Path) -> dict[str, tuple[str, str]]:
    """Sphinx's `intersphinx_mapping`, with each list written as an inventory."""
    built.mkdir(parents=True, exist_ok=True)
    found = {}
    for path in sorted(lists.glob("*.txt")):
        address, *lines = path.read_text().split("\n")
        inventory = built / f"{path.stem}.inv"
        inventory.write_bytes(_inventory(path.stem, [line for line in lines if line]))
        found[path.stem] = (address.removeprefix("# "), str(inventory))
    return found


def _inventory(project: str, lines: list[str]) -> bytes:
    """Version 2 of Sphinx's format: four lines, then `name role priority page title`, compressed."""
    rows = [(name, role, page.replace("$", name)) for name, role, page in (line.split() for line in lines)]
    body = "".join(f"{name} {role} 1 {page} -\n" for name, role, page in rows)
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    return f"{head}# The remainder of this file is compressed using zlib.\n".encode() + zlib.compress(body.encode())
