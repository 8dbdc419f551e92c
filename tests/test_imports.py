"""The modules of the package do not import each other in circles, and layers only what lies below them."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import csd_nerf

PACKAGE = Path(csd_nerf.__file__).parent
Graph = dict[str, set[str]]


def import_graph(package: Path) -> Graph:
    """Which modules of a package import which; those for type checkers alone left out."""
    files = {module_name(package, file): file for file in package.rglob("*.py")}
    return {name: imported(file, name, set(files)) - {name} for name, file in files.items()}


def module_name(package: Path, file: Path) -> str:
    return ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path, name: str, modules: set[str]) -> set[str]:
    found: set[str] = set()
    for node in executed(ast.parse(file.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name: this test does not follow those"
            origin = str(node.module)
            inner = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {module if module in modules else origin for module in inner}
    return found & modules


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node that runs, inside of functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            children = child.orelse
        else:
            children = [child]
        for part in children:
            yield part
            yield from executed(part)


def circles(graph: Graph) -> list[list[str]]:
    """A way around each group of modules that import each other."""
    reached = {name: reachable(graph, name) for name in graph}
    groups = {frozenset(m for m in reached[name] if name in reached[m]) for name in graph}
    return [way_around(graph, group) for group in groups if group]


def reachable(graph: Graph, start: str) -> set[str]:
    """All that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def way_around(graph: Graph, group: frozenset[str]) -> list[str]:
    """The shortest way from a module of the group back to it."""
    start = min(group)
    ways = [[start]]
    while True:
        way = ways.pop(0)
        for name in sorted(graph[way[-1]] & group):
            if name == start:
                return [*way, start]
            ways.append([*way, name])


def package_of(folder: Path, **modules: str) -> Path:
    package = folder / "example"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, text in modules.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    return package


def test_no_circles():
    found = [" -> ".join(circle) for circle in circles(import_graph(PACKAGE))]
    assert not found, "modules import each other:\n" + "\n".join(found)


def test_the_measures_know_nothing_of_scenes():
    graph = import_graph(PACKAGE)
    wrong = {
        f"{name} -> {other}"
        for name in graph
        if name.startswith("csd_nerf.evaluation")
        for other in reachable(graph, name)
        if other.startswith("csd_nerf.nerf")
    }
    assert not wrong, f"evaluation imports nerf: {sorted(wrong)}"


def test_ray_is_imported_where_it_is_asked_for_alone():
    trees = {file.name: ast.parse(file.read_text(encoding="utf8")) for file in PACKAGE.rglob("*.py")}
    assert [name for name, tree in trees.items() if any(map(names_ray, executed(tree)))] == ["on_ray.py"]
    assert not any(map(names_ray, trees["on_ray.py"].body)), "and there in functions alone"


def names_ray(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == "ray" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "ray"


def test_a_circle_through_a_function_is_found(tmp_path):
    package = package_of(
        tmp_path,
        first="import example.second",
        second="from example import third",
        third="""
            def later():
                from example.first import something
        """,
    )
    assert circles(import_graph(package)) == [
        ["example.first", "example.second", "example.third", "example.first"]
    ]


def test_imports_for_type_checkers_make_no_circle(tmp_path):
    package = package_of(
        tmp_path,
        first="import example.second",
        second="""
            from typing import TYPE_CHECKING

            if TYPE_CHECKING:
                from example.first import Something
        """,
    )
    assert circles(import_graph(package)) == []
