"""Write the software bill of materials of a wheel (CycloneDX, JSON) beside it.

It lists what a full installation of greenq needs, with versions and hashes from demo.txt. Two
builds of the same files give the same list except for the time.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

LOCK = Path(__file__).with_name("demo.txt")
VERSION = SchemaVersion.V1_6


def component(name: str, version: str, hashes: list[str], kind: ComponentType) -> Component:
    """Describe one package."""
    purl = PackageURL("pypi", name=name, version=version)
    return Component(
        type=kind, name=name, version=version, purl=purl, bom_ref=str(purl),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in hashes],
    )  # fmt: skip


def locked() -> list[Component]:
    """Return the packages in the requirements file."""
    found = []
    for entry in re.split(r"\n(?=\S)", LOCK.read_text("utf-8")):
        named = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", entry)
        # setuptools only builds greenq, which does not need it afterwards.
        if named is not None and named[1] != "setuptools":
            hashes = re.findall(r"--hash=sha256:(\w+)", entry)
            found.append(component(named[1], named[2], hashes, ComponentType.LIBRARY))
    return found


def main() -> None:
    """Write ``<wheel>.cdx.json`` for the only wheel in a folder."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    name, version, *_ = wheel.name.split("-")
    bom = Bom()
    own = hashlib.sha256(wheel.read_bytes()).hexdigest()
    bom.metadata.component = component(name, version, [own], ComponentType.LIBRARY)
    needed = locked()
    bom.components.update(needed)
    bom.register_dependency(bom.metadata.component, needed)
    text = make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=2)
    problem = JsonStrictValidator(VERSION).validate_str(text)
    if problem is not None:
        raise SystemExit(f"the bill of materials does not match its schema: {problem}")
    wheel.with_suffix(".cdx.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
