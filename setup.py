"""Packaging: everything that can be a setting is read from settings.ini."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

statuses = ["", "1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable"]
extras = {name: cfg[f"{name}_requirements"].split() for name in ("lab", "priors", "formats", "nets", "export", "toolkits", "dev")}
minor = int(cfg["min_python"].split(".")[1])

# the package index shows the README away from its repository: relative links become absolute there
at_tag = rf"{cfg['git_url']}/{{}}/v{cfg['version']}/"
readme = Path("README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{at_tag.format('raw')}", readme)
readme = re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{at_tag.format('blob')}", readme)

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"]},
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"],
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status'])]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        *(f"Programming Language :: Python :: 3.{m}" for m in range(minor, 15)),
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["sr_distill", "sr_distill.*"]), "sr_distill.studies", "sr_distill.ready"],
    package_data={"sr_distill": ["py.typed", "curves.json", "fitted.json"], "sr_distill.studies": ["*.toml"],
                  "sr_distill.ready": ["*/*", "*/images/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],  # lets the docs of other projects link here
    },
    zip_safe=False,
)
