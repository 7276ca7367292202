"""ONNX Runtime Web for the page "Try it": fetched from npm, in one version with one checksum, into _runtime/, which Git ignores.

    python tools/runtime.py     fetches it, if it is not there; needs npm

The site ships six of its files; a reader's browser loads three of them, when a photo is chosen."""
import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="   # of the archive, as npm states it
FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
         "ort.webgpu.min.js", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
NOTICE = f"{PACKAGE} {VERSION}, https://www.npmjs.com/package/{PACKAGE}, copyright Microsoft Corporation, MIT licence\n"
PLACE = Path(__file__).resolve().parents[1] / "_runtime" / f"{PACKAGE}-{VERSION}"


def ready() -> bool: return all((PLACE / name).is_file() for name in FILES)

def unpack(archive: Path):
    "The files that the site needs, out of an archive whose checksum is right."
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != SHA512: raise SystemExit(f"{archive.name} has the checksum {found}, not {SHA512}: it is not taken")
    PLACE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PLACE.parent) as folder, tarfile.open(archive) as tar:
        for name in FILES:
            with tar.extractfile(f"package/dist/{name}") as source, open(Path(folder) / name, "wb") as f: shutil.copyfileobj(source, f)
        Path(folder, "LICENCE.txt").write_text(NOTICE, encoding="utf-8")
        shutil.copytree(folder, PLACE, dirs_exist_ok=True)

def fetch():
    "Have the files in `PLACE`; `SystemExit` where npm cannot bring them."
    if ready(): return
    npm = shutil.which("npm")
    if npm is None: raise SystemExit("npm is missing: https://nodejs.org has it")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", folder], capture_output=True, text=True, timeout=300)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives: raise SystemExit(f"npm could not fetch {PACKAGE} {VERSION}: {done.stderr.strip()[-300:]}")
        unpack(archives[0])


if __name__ == "__main__":
    fetch()
    print(f"{PACKAGE} {VERSION} is in {PLACE}")
