"""The house as a test: who may import whom, what is pure, and the pages that show it.

The law is the tables below; docs/architecture.md prints them (`python tests/test_tree.py` writes its two generated
blocks anew). Imports count wherever they stand: at the top, in a function, under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"

# Rank, modules (a package stands for all of its modules; the longest name wins), what they are.
LAYERS: Sequence[tuple[int, str, str]] = (
    (7, "__main__", ""),
    (6, "cli", "people"),
    (5, "agent hub doctor", "programs; none imports another"),
    (
        4,
        "link uplink inbound rounds hooks host names spf silence whereabouts",
        "edges: each does I/O, none knows another",
    ),
    (3, "delivery config.files config.passwords config.paths", "what is on the disk"),
    (2, "store logs traffic", "our own state, our own words"),
    (
        2,
        "rounds.machine rounds.policy rounds.ledger rounds.record rounds.choice rounds.habits inbound.admission "
        "inbound.says delivery.routing "
        "link.settle status config",
        "decisions, without I/O",
    ),
    (1, "wire", "SMTP itself"),
    (0, "errors events config.sections config.hours", "words"),
)

# Nothing here waits, opens, draws lots or asks the clock: time and chance come in as arguments.
PURE = (
    "errors events wire rounds.machine rounds.policy rounds.ledger rounds.record rounds.choice rounds.habits "
    "inbound.admission inbound.says delivery.routing link.settle status config"
)
NOT_PURE = "config.files config.passwords config.paths"
IMPURE_MODULES = (
    "asyncio concurrent http multiprocessing os random secrets select selectors shutil signal socket sqlite3 ssl "
    "subprocess tempfile threading time watchdog aiosmtpd aiosmtplib"
)
IMPURE_CALLS = frozenset({"open", "input", "print"})
IMPURE_CLOCKS = frozenset({"now", "utcnow", "today"})

# A library's own words stay in these rooms; its exceptions are translated there.
ONLY_IN: Mapping[str, str] = {
    "aiosmtplib": "uplink hub.push",
    "aiosmtpd": "inbound hub.server",
    "click": "cli",
    "rich": "cli",
    "sqlite3": "store",
    "watchdog": "link.hookdir host.folders",
    "importlib": "cli.main link.backend",  # what is named by a string cannot be checked here
}
# Big, and needed by few: imported where it is used, never when a module is loaded.
LAZY = frozenset({"dns", "idna", "platformdirs", "watchdog"})


@dataclass(frozen=True)
class Import:
    """One import of one module, wherever it stands. `runs`: when the importing module is loaded."""

    line: int
    module: str
    runs: bool


def _matches(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def rank_of(module: str, modules: Sequence[str]) -> int:
    """The layer of a module (its name below siteagent). A package's ``__init__`` is as low as its lowest module,

    since importing any of them runs it. Raises LookupError for one that no layer names.
    """
    if module == "":
        return 0
    inner = [other for other in modules if other.startswith(f"{module}.")]
    if inner:
        return min(rank_of(other, modules) for other in inner)
    named = [(len(name), rank) for rank, names, _ in LAYERS for name in names.split() if _matches(module, [name])]
    if not named:
        raise LookupError(module)
    return max(named)[1]


def is_pure(module: str) -> bool:
    return _matches(module, PURE.split()) and not _matches(module, NOT_PURE.split())


def sources() -> dict[str, str]:
    """Module name below siteagent -> its text; "" is the package itself."""
    found = {}
    for path in sorted((ROOT / "siteagent").rglob("*.py")):
        parts = path.relative_to(ROOT / "siteagent").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    return found


def imports_of(module: str, tree: ast.AST, modules: Sequence[str]) -> Iterator[Import]:
    """Everything that `tree` imports; what is ours as ``siteagent.<module>``, as deep as a module goes."""
    at_load = set(_run_at_load(tree))
    package = module if any(other.startswith(f"{module}.") for other in modules) else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: count up from the package
                up = ["siteagent", *filter(None, package.split("."))]
                up = up[: len(up) - node.level + 1]
                base = ".".join([*up, *filter(None, [node.module])])
            names = [_deepest(f"{base}.{alias.name}", modules) for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(node.lineno, name, node in at_load)


def _deepest(name: str, modules: Sequence[str]) -> str:
    """`from siteagent.wire import reply` imports a module, `from siteagent.errors import worst` a thing of one."""
    if not name.startswith("siteagent."):
        return name.rpartition(".")[0]
    return name if name.removeprefix("siteagent.") in modules else name.rpartition(".")[0]


def _run_at_load(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is loaded: not those of functions, nor those only for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_at_load(node)


def violations(texts: Mapping[str, str]) -> list[str]:
    """Every breach of the law in these modules, one sentence each."""
    modules = [name for name in texts if name]
    found: list[str] = []
    for module, text in texts.items():
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            found.append(f"{module or '__init__'}: has no docstring")
        try:
            rank = rank_of(module, modules)
        except LookupError:
            found.append(f"{module}: stands in no layer; add it to LAYERS in tests/test_tree.py")
            continue
        found += [f"{module}:{line}: {breach}" for line, breach in _breaches(module, rank, tree, modules)]
    return sorted(set(found))


def _breaches(module: str, rank: int, tree: ast.Module, modules: Sequence[str]) -> Iterator[tuple[int, str]]:
    for one in imports_of(module, tree, modules):
        top = one.module.partition(".")[0]
        if top == "siteagent":
            yield from _upward(module, rank, one, modules)
        else:
            if top in ONLY_IN and not _matches(module, ONLY_IN[top].split()):
                yield one.line, f"imports {top}, which stays in {ONLY_IN[top]}"
            if top in LAZY and one.runs:
                yield one.line, f"imports {top} at load: import it where it is used"
        if is_pure(module) and top in IMPURE_MODULES.split():
            yield one.line, f"is pure and imports {top}"
    if is_pure(module):
        yield from _impure_calls(tree)


def _upward(module: str, rank: int, one: Import, modules: Sequence[str]) -> Iterator[tuple[int, str]]:
    target = one.module.removeprefix("siteagent").lstrip(".")
    try:
        other = rank_of(target, modules)
    except LookupError:
        yield one.line, f"imports {one.module}, which stands in no layer"
        return
    own = module.partition(".")[0] == target.partition(".")[0]
    if other > rank or (other == rank and not own and target):
        yield one.line, f"(rank {rank}) imports {target} (rank {other})"


def _impure_calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    # What stands under `if __name__ == "__main__"` is a command, and no part of the module.
    parts = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    for node in (inner for part in parts for inner in ast.walk(part)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield node.lineno, f"is pure and calls {node.func.id}()"
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in IMPURE_CLOCKS
            and ast.unparse(node.func.value).rpartition(".")[2] in ("datetime", "date")
        ):
            yield node.lineno, f"is pure and asks the clock by {ast.unparse(node.func)}()"


# --- the page ---------------------------------------------------------------------------------------------------------


def tree_block() -> str:
    """The tree with each module's own first sentence, packages after single modules."""
    texts = sources()
    names = [name for name in texts if name]
    packages = sorted({name.partition(".")[0] for name in names if "." in name})
    lines = ["siteagent/"]
    for name in sorted(set(names) - set(packages)):
        if "." not in name:
            lines.append(_entry(f"  {name}.py", texts[name]))
    for package in packages:
        lines.append(_entry(f"  {package}/", texts.get(package, "")))
        for name in sorted(other for other in names if other.startswith(f"{package}.")):
            lines.append(_entry(f"    {name.partition('.')[2].replace('.', '/')}.py", texts[name]))
    return "\n".join(lines)


def _entry(label: str, text: str) -> str:
    docstring = ast.get_docstring(ast.parse(text)) or ""
    first = docstring.partition("\n")[0].replace("``", "")
    return f"{label:<23} {first}".rstrip()


def layers_block() -> str:
    lines = []
    for rank, names, what in LAYERS:
        lines.append(f"{rank}  {'  '.join(names.split())}")
        if what:
            lines[-1] += f"\n     {what}"
    return "\n".join(lines)


BLOCKS = {"tree": tree_block, "layers": layers_block}


def with_blocks(page: str) -> str:
    """The page with its generated blocks made anew."""
    for name, make in BLOCKS.items():
        pieces = re.split(f"<!-- {name}:.*?<!-- end of {name} -->", page, flags=re.DOTALL)
        if len(pieces) != 2:
            raise ValueError(f"{PAGE.name} has {len(pieces) - 1} blocks of {name}, and must have one")
        block = f"<!-- {name}: printed by tests/test_tree.py -->\n```\n{make()}\n```\n<!-- end of {name} -->"
        page = block.join(pieces)
    return page


# --- the tests --------------------------------------------------------------------------------------------------------


def test_no_import_goes_up_or_sideways_and_what_is_pure_stays_pure() -> None:
    assert violations(sources()) == []


def test_every_kind_of_breach_is_seen() -> None:
    doc = '"""Words."""\n'
    legal = {
        "": doc,
        "errors": doc,
        "wire": doc,
        "wire.reply": f"{doc}from siteagent.errors import worst\n",
        "rounds": doc,
        "rounds.machine": doc,
        "rounds.runner": f"{doc}import asyncio\nfrom siteagent.rounds import machine\nfrom . import machine\n",
        "uplink": doc,
        "uplink.ask": f"{doc}import aiosmtplib\nfrom siteagent.wire.reply import Reply\n",
        "hub": doc,
        "hub.push": f"{doc}import aiosmtplib\n",
        "agent": f"{doc}from siteagent.uplink import ask\n",
        "cli": doc,
        "cli.main": f"{doc}import click\nfrom siteagent import __version__\n",
    }
    assert violations(legal) == []
    planted = {
        "upwards": ("wire.reply", "from siteagent.uplink.ask import ask"),
        "upwards inside a function": ("wire.reply", "def f():\n    import siteagent.uplink.ask"),
        "upwards for the type checker": (
            "wire.reply",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from siteagent.agent import Agent",
        ),
        "upwards in its own package": ("rounds.machine", "from siteagent.rounds.runner import Runner"),
        "upwards in its own package, relatively": ("rounds.machine", "from . import runner"),
        "upwards by a package": ("rounds", "from siteagent.rounds.runner import Runner"),
        "sideways": ("uplink.ask", "from siteagent.rounds.runner import Runner"),
        "sideways, relatively": ("uplink.ask", "from ..rounds import runner"),
        "one program by the other": ("hub.push", "from siteagent.agent import Agent"),
        "the whole package": ("errors", "from siteagent.wire import reply"),
        "pure and waiting": ("wire.reply", "import asyncio"),
        "pure and waiting later": ("rounds.machine", "def f():\n    from time import monotonic"),
        "pure and reading": ("wire.reply", "def f():\n    return open('x')"),
        "pure and asking the clock": ("rounds.machine", "import datetime\nx = datetime.datetime.now()"),
        "a library out of its room": ("hub.push", "import aiosmtpd.smtp"),
        "the command line's library": ("agent", "def f():\n    from rich import print"),
        "another database": ("agent", "import sqlite3"),
        "heavy at load": ("agent", "import dns.resolver"),
        "named by a string": ("agent", "import importlib"),
    }
    for name, (module, line) in planted.items():
        seen = violations({**legal, module: legal[module] + line + "\n"})
        assert len(seen) >= 1, f"not seen: {name}"
        assert all(one.startswith(f"{module}:") for one in seen), name
    assert violations({**legal, "util": doc}) == ["util: stands in no layer; add it to LAYERS in tests/test_tree.py"]
    assert violations({**legal, "errors": "x = 1\n"}) == ["errors: has no docstring"]


def test_a_library_that_is_imported_late_may_be_big() -> None:
    texts = {"": '"""Words."""', "spf": '"""Words."""\ndef f():\n    import dns.resolver\n'}
    assert violations(texts) == []


def test_every_name_in_the_law_exists_or_is_announced() -> None:
    announced = {"hub.push", "hub.server"}  # the provider half is growing
    modules = [name for name in sources() if name]
    named = {name for _, names, _ in LAYERS for name in names.split()}
    named |= {*PURE.split(), *NOT_PURE.split()} | {name for names in ONLY_IN.values() for name in names.split()}
    assert sorted(named - set(modules) - announced) == []


def test_the_page_shows_the_tree_and_the_layers_as_they_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_blocks(page), "run: python tests/test_tree.py"


def test_the_page_names_every_directory_and_every_other_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = [Path(line) for line in listed.stdout.splitlines()]
    tops = {f"`{path.parts[0]}/`" for path in files if len(path.parts) > 1}
    tops |= {f"`tests/{path.parts[1]}/`" for path in files if path.parts[0] == "tests" and len(path.parts) > 2}
    tops |= {
        f"`{path.name}`"
        for path in files
        if path.parts[0] == "docs" and path.suffix == ".md" and path.name != PAGE.name
    }
    assert files, "git lists nothing"
    assert sorted(name for name in tops - {"`siteagent/`"} if name not in page) == []


if __name__ == "__main__":
    PAGE.write_text(with_blocks(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
