"Packaging. Every fact comes from settings.ini; the wheel carries the chapters, so that a job runs without a checkout."

from configparser import ConfigParser
from pathlib import Path
from shutil import copy2, copytree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf8")
cfg = cfg["DEFAULT"]
kinds = [
    "Development Status :: 3 - Alpha",
    f"Intended Audience :: {cfg['audience']}",
    f"Natural Language :: {cfg['language']}",
    "Programming Language :: Python :: 3 :: Only",
    *(f"Programming Language :: Python :: {v}" for v in cfg["pythons"].split()),
]


class BuildWithChapters(build_py):
    "Put the parts of `nbs/` into the built package as `simpsons_llm/chapters/`."

    def run(self):
        super().run()
        if self.editable_mode:
            return  # a checkout reads its own nbs/
        to = Path(self.build_lib) / cfg["lib_path"] / "chapters"
        for nb in sorted((here / cfg["nbs_path"]).glob("[0-9]_*/[0-9]*.ipynb")):
            (to / nb.parent.name).mkdir(parents=True, exist_ok=True)
            copy2(nb, to / nb.parent.name)
        # what chapters show that is not run everywhere
        copytree(here / cfg["nbs_path"] / "_results", to / "_results", dirs_exist_ok=True)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    long_description=(here / "README.md").read_text(encoding="utf8"),
    long_description_content_type="text/markdown",
    classifiers=kinds,
    packages=[cfg["lib_path"], *(f"{cfg['lib_path']}.{p}" for p in find_packages(here / cfg["lib_path"]))],
    package_data={cfg["lib_path"]: ["data/*.csv", "character/*.txt", "talk/*.html", "py.typed"]},
    include_package_data=False,
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={k.removesuffix("_requirements"): v.split() for k, v in cfg.items() if k.endswith("_requirements")},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    cmdclass={"build_py": BuildWithChapters},
    zip_safe=False,
)
