"""The README's file tree, made from the first line of each module; run it and README.md is up to date."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- file tree: python scripts/file_tree.py -->\n```\n", "```\n<!-- end of file tree -->"

# What has no module docstring, or is told in one line for a whole folder.
TOLD = {
    "Makefile": "setup, demo, test, lint, bench, reliability, clean",
    "pyproject.toml": "package, tools, import contracts",
    "constraints.txt": "the exact versions that ran together",
    "cluster.yaml": "a Ray cluster on AWS, for `ray up`",
    ".ci/run": "what continuous integration calls",
    "dkt_ray/pipelines/eda.html.jinja": "the data report's page",
    "dkt_ray/pipelines/page.css.jinja": "how pages look",
    "dkt_ray/pipelines/experiment.html.jinja": "the page of a run",
    "dkt_ray/pipelines/report.html.jinja": "the report's page",
    "dkt_ray/pipelines/sections.html.jinja": "what the report's page shows, for pages that show more as well",
    "dkt_ray/serving/docs.html": "the API's documentation page: no script from elsewhere",
    "dkt_ray/serving/haproxy.sh": "HAProxy as Serve starts it, without the ports that nobody asked for",
    "jobs/": "one script per job, for a checkout and for `ray job submit`; configs/ holds commented settings",
    "serve_app/serve.yaml": "both applications, for `serve deploy`",
    "deploy/": "Dockerfile; a Grafana dashboard; Prometheus: what to scrape, and alerts",
    "benchmarks/": "each prints one JSON line (`make bench`)",
    "scripts/": "file tree and picture of this README, size report of `make lint`",
    "docs/": "architecture, features, models, benchmarks, operations, decision records",
    "tests/unit/": "one file per module; no Ray, no network",
    "tests/property/": "what holds for every history: no future, batch = online",
    "tests/contract/": "what every model family of the catalog promises",
    "tests/integration/": "real Ray, real S3 server, cluster.yaml's commands",
    "tests/e2e/": "Serve over HTTP, the page in a browser, the whole path",
}
DESCRIBED_BY_MODULES = ("dkt_ray", "serve_app")


def first_line(path: Path) -> str:
    """The first line of a module's docstring, without the final stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".")


def entries() -> Iterator[tuple[str, str]]:
    """(path, one line) of everything in the tree, in the order of the README."""
    for folder in DESCRIBED_BY_MODULES:
        for path in sorted((ROOT / folder).rglob("*.py"), key=lambda path: (len(path.parts), path)):
            if path.name != "__init__.py":
                yield str(path.relative_to(ROOT)), first_line(path)
    yield from TOLD.items()


def tree() -> str:
    """The tree as text: folders, then their files."""
    told = dict(entries())
    lines: list[str] = []
    folder = ""
    for path in sorted(told, key=_order):
        parent = "" if path.startswith(".") else path.rstrip("/").rpartition("/")[0]
        if parent != folder and not path.endswith("/"):
            folder = parent
            if folder:
                lines.append(f"{folder}/")
        indent = "  " if parent and not path.endswith("/") else ""
        name = path.rpartition("/")[2] if indent else path
        lines.append(f"{indent + name:<24} {told[path]}".rstrip())
    return "\n".join(lines) + "\n"


def _order(path: str) -> tuple[int, str, str]:
    places = ("dkt_ray", "jobs", "serve_app", "tests", "benchmarks", "scripts", "docs", "deploy", "")
    top = path.partition("/")[0] if "/" in path and not path.startswith(".") else ""
    return places.index(top), path.rstrip("/").rpartition("/")[0] if not path.endswith("/") else path, path


def written(readme: str) -> str:
    """The README's text with the tree of today."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tree() + END + after


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
