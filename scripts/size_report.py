"""Print the files over 400 lines and the functions over 50 (docstrings not counted): aims, so the exit code is 0."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, FUNCTION_LINES = 400, 50
FOLDERS = ("dkt_ray", "jobs", "serve_app", "benchmarks", "scripts", "tests")


def long_functions(source: str) -> Iterator[tuple[str, int, int]]:
    """(name, first line, length without the docstring) of each function over the aim."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if is_docstring else 0
        length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring
        if length > FUNCTION_LINES:
            yield node.name, node.lineno, length


def report(root: Path) -> list[str]:
    """One line for each file or function over the aim, then the totals."""
    lines, files, rows = [], 0, 0
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        length = source.count("\n")
        files, rows = files + 1, rows + length
        if length > FILE_LINES:
            lines.append(f"{path.relative_to(root)}: {length} lines (aim {FILE_LINES})")
        for name, line, size in long_functions(source):
            lines.append(f"{path.relative_to(root)}:{line} {name}: {size} lines (aim {FUNCTION_LINES})")
    return [*lines, f"size report: {files} files, {rows} lines, {len(lines)} over the aim"]


if __name__ == "__main__":
    sys.stdout.write("\n".join(report(Path(__file__).resolve().parent.parent)) + "\n")
