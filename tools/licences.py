"""Licences of everything that installing sr_distill brings along, and of the photos that the demo uses.

    python tools/licences.py     writes nbs/results/licences.json from the packages installed here
"""
import re
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[1]

def plain(name: str) -> str: return re.sub(r"[-_.]+", "-", name).lower()

def required() -> list:
    "Names of the requirements in settings.ini, of those for this Python."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(REPO / "settings.ini", encoding="utf-8")
    wanted = map(Requirement, parser["DEFAULT"]["requirements"].split())
    return [plain(r.name) for r in wanted if r.marker is None or r.marker.evaluate()]

def licence(about) -> str:
    "What a package says about its licence: the expression, the classifiers, or the first line of the text."
    said = about.get("License-Expression") or ", ".join(c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::") and not c.endswith("OSI Approved"))
    return said or (about.get("License") or "").strip().split("\n")[0][:80]

def everything(names) -> dict:
    "The packages of these names and all that they need, extras left out: name → (version, licence)."
    found, todo = {}, list(names)
    while todo:
        name = plain(todo.pop())
        if name in found: continue
        try: package = distribution(name)
        except PackageNotFoundError: continue   # for another system
        found[name] = (package.version, licence(package.metadata))
        todo += [re.match(r"[\w.-]+", r)[0] for r in package.requires or [] if "extra ==" not in r]
    return found

def main():
    sys.path.insert(0, str(REPO))
    from sr_distill.core import write_json
    from sr_distill.data import EMBEDDED
    packages = [dict(name=name, version=version, licence=said) for name, (version, said) in sorted(everything(required()).items())]
    photos = []
    for name, text in EMBEDDED.items():
        credit, _, terms = text.rpartition("; ")
        photos.append(dict(name=name, credit=credit or text, licence=terms if credit else photos[-1]["licence"]))   # a half of a stereo pair comes under the terms of the other
    write_json(REPO / "nbs/results/licences.json", dict(command="python tools/licences.py", packages=packages, photos=photos))
    silent = [p["name"] for p in packages if not p["licence"]]
    print(f"{len(packages)} packages, {len(photos)} photos" + (f"; without a stated licence: {', '.join(silent)}" if silent else ""))

if __name__ == "__main__": main()
