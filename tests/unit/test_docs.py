"""The documents say what is there: file tree, commands, job table, links, decision records."""

import re
import subprocess
from pathlib import Path

import pytest

from dkt_ray.cli import JOBS
from scripts import features_doc
from scripts.file_tree import entries, written
from scripts.size_report import long_functions

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/models.md",
    "docs/operations.md",
]


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def files() -> list[str]:
    """What git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


def test_the_file_tree_of_the_readme_is_up_to_date():
    assert written(text("README.md")) == text("README.md"), "run: python scripts/file_tree.py"


def test_the_features_document_is_made_from_the_table():
    assert features_doc.PATH.read_text(encoding="utf-8") == features_doc.text(), "run: python scripts/features_doc.py"


def test_every_module_says_in_one_line_what_it_is():
    assert [path for path, line in entries() if not line] == []


def test_every_file_is_in_the_tree_or_in_a_folder_of_it():
    told = {path for path, _ in entries()}
    known = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", ".gitignore"}  # the README links them
    folders = tuple(path for path in told if path.endswith("/"))
    left = [path for path in files() if path not in told | known and not path.startswith(folders)]
    # the tests' own fixtures, and packages without code of their own
    assert [path for path in left if not path.startswith("tests/") and not path.endswith("__init__.py")] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_exists(document):
    fenced = re.compile(r"```.*?```", re.DOTALL)
    code = "\n".join(fenced.findall(text(document)) + re.findall(r"`[^`\n]+`", fenced.sub("", text(document))))
    for job in re.findall(r"\bdkt ([a-z]+)", code):
        assert job in JOBS, job
    for script in re.findall(r"python ((?:jobs|scripts)/[a-z_]+\.py)", code):
        assert (ROOT / script).exists(), script
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z]+)", code, re.MULTILINE):
        assert target in targets, target


def test_the_job_table_is_complete():
    assert re.findall(r"^\| `dkt ([a-z]+)`", text("README.md"), re.MULTILINE) == list(JOBS)


def test_every_job_has_its_script():
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(JOBS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", text(document)):
        if not target.startswith("http"):
            assert ((ROOT / document).parent / target).exists(), target


def test_the_picture_is_small_enough():
    assert (ROOT / "docs/demo.png").stat().st_size <= 300_000


def test_decision_records_are_numbered_short_and_of_one_form():
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40, path.name
        headings = [line for line in lines if line.startswith("## ")]
        assert headings == ["## Context", "## Decision", "## Consequences", "## What would change our mind"], path.name


def test_size_report_finds_a_long_function_and_does_not_count_its_docstring():
    body = "\n".join("    x = 1" for _ in range(50))
    assert list(long_functions(f"def f():\n{body}\n")) == [("f", 1, 51)]
    docstring = '    """One.\n\n    Two.\n    """'
    assert list(long_functions(f"def f():\n{docstring}\n{body[:-10]}\n")) == []
